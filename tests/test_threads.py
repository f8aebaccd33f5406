"""One number of threads, for our loops and for BLAS."""

import os
import subprocess
import sys

import numpy as np
import pytest
from minigdino._ext import threads

import minigdino


def test_rows_are_covered_once_whatever_the_number_of_threads():
    try:
        for n_threads in (1, 2, 3):
            threads.limit(n_threads)
            for n in (0, 1, 5, 100):
                times = np.zeros(n, int)

                def visit(first, last, times=times):
                    times[first:last] += 1

                threads.for_rows(visit, n)
                assert (times == 1).all()
    finally:
        threads.limit(None)


def test_an_error_in_a_loop_comes_out():
    def fail(first, last):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        threads.for_rows(fail, 100)


def test_set_threads_reaches_both_pools():
    code = (
        "import minigdino, threadpoolctl; print(minigdino.info()['threads'], "
        "*{p['num_threads'] for p in threadpoolctl.threadpool_info()})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINIGDINO_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["1", "1"]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINIGDINO_THREADS": "two"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "MINIGDINO_THREADS must be a number of threads; 'two' is ignored" in run.stderr
    assert run.returncode == 0


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
def test_a_number_of_threads_is_a_positive_int(bad):
    with pytest.raises(minigdino.ArgumentError, match="positive int"):
        minigdino.set_threads(bad)
