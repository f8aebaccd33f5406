#!/usr/bin/env bash
# Report on a machine with a GPU, in Markdown: the tests on the GPU, its benchmark, and the time on the CPU in every
# precision with 1, 2, 4, ... threads. Takes at most 8 minutes, and needs no network.
#
#     bash benchmarks/device.sh REPORT [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--rounds N] ...
#
# The report is printed and written to the file REPORT. The options are those of benchmarks.gpu and benchmarks.growth.
# PYTHON is the interpreter (python3). It needs the packages that minigdino imports and builds with, pytest and
# hypothesis; for a GPU also CuPy, torch and transformers. Compiled modules that are missing are built, and minigdino is
# then installed in this folder. Without a GPU, only the CPU is measured.
#
# A part that fails does not stop the others. Exit status 1: a part failed or took too long.

set -o pipefail
python=${PYTHON:-python3}
report=$(realpath "$1") || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

limited() {  # SECONDS COMMAND...: run a command; print its errors if it fails or is not done in time
    timeout --kill-after 5 "$@" 2>"$folder/errors" && return
    echo "FAILED with exit status $? (124: not done within $1 seconds): ${*:2}"
    tail -n 40 "$folder/errors"
    failed=1
}

built() {  # whether every compiled module exists
    timeout 10 "$python" -m minigdino info 2>/dev/null | grep -q '^missing *none'
}

{
    echo "# Device report"
    echo
    built || limited 100 "$python" -m pip install --quiet --no-build-isolation --no-deps --editable .
    limited 15 "$python" -m minigdino info >"$folder/info"
    echo '```text'
    cat "$folder/info"
    echo '```'
    echo
    grep -q '^missing *none' "$folder/info" || {
        echo "FAILED: compiled modules are missing"
        echo
        failed=1
    }
    if grep -q '^gpu *none' "$folder/info"; then
        echo "No GPU was found, so only the CPU is measured."
        echo
    else
        echo "## Tests on the GPU"
        echo
        echo '```text'
        limited 110 "$python" -m pytest -m gpu --ignore tests/parity -q
        echo '```'
        echo
        echo "## Benchmark on the GPU"
        echo
        limited 95 "$python" -m benchmarks.gpu --rounds 2 --folder "$folder" "$@"
        echo
    fi
    echo "## Threads of the CPU"
    echo
    limited 115 "$python" -m benchmarks.growth --tables threads --rounds 1 --folder "$folder" \
        --programs minigdino minigdino-high minigdino-medium "$@"
    exit $failed
} | tee "$report"
