"""`minigdino run`: what the command does with its arguments."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
from collections.abc import Iterator
from functools import partial

from .. import detect_arguments, outputs
from ..console import complain, printable
from ..detector import load, prompts
from ..files import JsonLines, check_lines
from ..progress import Progress
from ..runtime.threads import MAX_THREADS, threads_each
from . import on_ray
from .items import Item, read_items
from .lines import FOUND, Done
from .shard import Shard, file_name
from .workers import Setup, Workers

OPTION = "--out"
LIMITS = {"workers": (1, 1024), "threads": (1, MAX_THREADS)}


def run(arguments: argparse.Namespace) -> int:
    """Run `minigdino run`.

    Args:
        arguments: the parsed arguments. Their `error` ends the process with a usage message.

    Returns:
        The exit status: 1 if an image could not be used and that is not allowed, else 0.

    Raises:
        Error: if an argument or a source is invalid, or the file cannot be written.
        SystemExit: with status 2, if arguments do not fit together.
    """
    sources, text = detect_arguments.sources_and_text(arguments)
    shard = Shard.parsed(arguments.shard) if arguments.shard is not None else None
    detect_arguments.check_limits(arguments, LIMITS)
    if is_on_ray := arguments.ray is not None:
        on_ray.check(arguments)
    path = arguments.out / file_name(FOUND, shard)
    _check_paths(arguments, sources, path)
    items = partial(_items, sources, arguments.recursive, shard)
    count = sum(1 for _ in items())  # an invalid row of a manifest ends the run before it begins
    model = load(arguments.model, device="cpu" if is_on_ray else arguments.device, precision=arguments.precision)
    parts = prompts(model, text, arguments.chunk)
    options = detect_arguments.options(arguments, [phrase for prompt in parts for phrase in prompt.phrases])
    model.detect([], text, **options)  # checks the options; a wrong one must not leave an empty file
    header = {**detect_arguments.header(model, parts, options), "sources": sources, "recursive": arguments.recursive,
              "shard": None if shard is None else str(shard)}
    if is_on_ray:
        results = partial(on_ray.results, arguments, text, options, header)
    else:
        workers = arguments.workers or 1
        threads = arguments.threads or threads_each(workers)
        results = partial(_results, Setup(pickle.dumps(model), header["fingerprint"], text, options, threads), workers)
    del model  # without mapped weights, it would need their memory
    failed = _detect(results, items, count, path, header)
    complain(f"wrote {printable(str(path))}")
    if failed:
        complain(f"minigdino: {failed} of {count} images {'has' if failed == 1 else 'have'} an error. The same "
                 "command tries again")
    return 1 if failed and not arguments.allow_errors else 0


def _check_paths(arguments, sources, path):
    """Check the file that will be written, before anything is computed."""
    outputs.check_folder(OPTION, arguments.out)
    outputs.check_paths([*(("a source", source) for source in sources), ("--phrases", arguments.phrases),
                         *outputs.model_files(arguments.model)], [(OPTION, path)])
    check_lines(path, True, False, OPTION)


def _items(sources, recursive, shard) -> Iterator[Item]:
    """The images of a shard."""
    return (item for item in read_items(sources, recursive=recursive) if shard is None or item.uri in shard)


def _detect(results, items, count, path, header):
    """Detect in all images that a file does not have, or has with an error. Returns the number of those with an error.

    Args:
        results: function of images, their number and a log that returns a context with their lines, in groups.
        items: function that lists the images.
        count: number of images.
        path: the file.
        header: its header.
    """
    done, failed = Done(), 0
    with JsonLines(path, True, header=header, option=OPTION, continues="a run that continues",
                   on_line=done.add) as lines:
        # before the first image is processed: an id of the file that is that of another image now is an error
        to_do = sum(item not in done for item in items()) if done else count
        progress = Progress(sys.stderr, to_do)
        rest = (item for item in items() if item not in done)
        with results(rest, to_do, partial(_complain, progress)) as groups:
            for group in groups:
                lines.write(*group)
                for values in group:
                    if "error" in values:
                        _complain(progress, values["error"])
                        failed += 1
                    progress.step()
        progress.close()
    return failed


@contextlib.contextmanager
def _results(setup, workers, items, to_do, log):
    """The lines of images, from this process or from several others."""
    if (workers := min(workers, to_do)) > 1:
        with Workers(setup, workers, log) as running:
            yield ([line] for line in running.detect_each(items))
    else:
        yield ([line] for line in map(setup.detector(), items))


def _complain(progress, text):
    """Print a message on a line of its own."""
    progress.clear()
    complain(f"minigdino: {printable(text)}")
