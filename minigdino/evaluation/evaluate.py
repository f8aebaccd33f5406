"""`minigdino evaluate`: what the command does with its arguments."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from .. import outputs, writing
from ..console import complain, counted, listed, printable, show
from ..detector import load
from ..errors import ArgumentError
from ..files import JsonLines, check_lines
from ..inspection.explain import is_page
from ..progress import Progress
from ..runtime.threads import set_threads
from ..version import __version__
from . import run as runs
from .detections import RawDetections
from .report import percent, report
from .tasks import TASKS, DetectionTask, Task

TABLE, REPORT = "table.json", "report.html"
NAMED = 10  # images of one kind that are named; the others are counted
OPTION = "--out"


def run(arguments: argparse.Namespace) -> int:
    """Run `minigdino evaluate`.

    Args:
        arguments: the parsed arguments. Their `error` ends the process with a usage message.

    Returns:
        The exit status: 1 if an image could not be used or is missing, else 0.

    Raises:
        Error: if an argument, the annotations or the model are invalid, or an output cannot be written.
        SystemExit: with status 2, if arguments do not fit together.
    """
    task = _task(arguments)
    shard = runs.Shard.parsed(arguments.shard) if arguments.shard else None
    _check_arguments(arguments, task, shard)
    if arguments.threads is not None:
        set_threads(arguments.threads)
    truth = task.read(arguments.annotations)
    if shard is None:
        task.check()  # before the images are done
    pictures = truth.pictures[: arguments.limit]
    _check_outputs(arguments, shard)
    if not arguments.merge:
        own = pictures if shard is None else [picture for picture in pictures if picture.id in shard]
        path = arguments.out / runs.file_name(shard)
        failed = _detect(arguments, task, truth, own, path, shard)
        if shard is not None:
            show(f"wrote {printable(str(path))}. `minigdino evaluate {task.name} ANNOTATIONS --merge FILE ...` makes "
                 f"the table of all {shard.of} files")
            return 1 if failed else 0
    with RawDetections(arguments.merge or [path]) as raw:
        _check_header(raw, arguments, task)
        return _finish(arguments, task, truth, pictures, raw)


def _task(arguments) -> Task:
    task = TASKS[arguments.protocol]
    changes = {"score": arguments.score} if arguments.score else {}
    changes |= {"clip": False} if arguments.no_clip else {}
    if isinstance(task, DetectionTask):
        return dataclasses.replace(task, protocol=dataclasses.replace(task.protocol, **changes))
    if changes:
        arguments.error(f"--score and --no-clip need coco or lvis; {task.name} has one protocol")
    return task


def _check_arguments(arguments, task, shard):
    if arguments.merge:
        names = [f"--{name}" for name in ("model", "shard", "resume") if getattr(arguments, name)]
        if names:
            arguments.error(f"--merge makes the table of detections that files have; leave {' and '.join(names)} out")
    elif not (arguments.images and arguments.out):
        arguments.error("give the folder of the images and one for the results: --images FOLDER --out DIR")
    if arguments.report and not isinstance(task, DetectionTask):
        arguments.error(f"--report needs coco or lvis; {task.name} has no report")
    if arguments.report and not arguments.out:
        arguments.error("--report needs --out DIR, the folder of the report")
    if arguments.report and shard:
        arguments.error("--report needs the detections of all shards; give it with --merge")
    if arguments.limit is not None and arguments.limit < 1:
        raise ArgumentError(f"--limit must be 1 or more; got {arguments.limit}")


def _check_outputs(arguments, shard):
    """Check all files that will be written, before anything is computed."""
    if not arguments.out:
        return
    outputs.check_folder(OPTION, arguments.out)
    lines = arguments.out / runs.file_name(shard)
    table, page = arguments.out / TABLE, arguments.out / REPORT
    written = [] if arguments.merge else [lines]
    written += [table] if shard is None else []
    written += [page] if arguments.report else []
    outputs.check_paths([("ANNOTATIONS", arguments.annotations), *(("--merge", path) for path in arguments.merge or ()),
                         *(() if arguments.merge else outputs.model_files(arguments.model))],
                        [(OPTION, path) for path in written])
    for path, is_ours in ((table, is_table), (page, is_page)):
        if path in written:
            if not arguments.overwrite:
                writing.check_replaceable(path, is_ours)
            writing.check_writable(path)
    if lines in written:
        check_lines(lines, arguments.resume, arguments.overwrite, OPTION)


def is_table(path: str | Path) -> bool:
    """Return whether a file is a table of this command, which a later run may replace."""
    return writing.ends(path, len(TABLE_START))[0] == TABLE_START


TABLE_START = b'{\n  "minigdino": '


def _detect(arguments, task, truth, pictures, path, shard):
    """Detect in all images that the file does not have. Returns the number of those with an error."""
    if pictures:
        runs.check_images(pictures, arguments.images)
    model = load(arguments.model, device=arguments.device, precision=arguments.precision)
    model.settings.target(64, 48, arguments.size)  # an edge out of range is not an error of an image
    predict = task.predictor(model, truth, arguments.size)
    head, failed = runs.header(model, arguments.annotations, task, arguments.size, shard), 0
    with JsonLines(path, arguments.resume, header=head, overwrite=arguments.overwrite, option=OPTION) as lines:
        progress = Progress(sys.stderr, len(runs.to_do(pictures, lines)))
        for _, error in runs.detect_each(pictures, arguments.images, lines, predict):
            if error:
                progress.clear()
                complain(f"minigdino: {printable(str(error))}")
                failed += 1
            progress.step()
        progress.close()
    return failed


def _check_header(raw, arguments, task):
    """Check that the detections belong to the annotations and the protocol."""
    expected = {"annotations": runs.digest(arguments.annotations), **task.settings()}
    for name, value in expected.items():
        if raw.header.get(name) != value:
            raise ArgumentError(f"{raw.paths[0]}: expected detections with the {name} {value!r} of this command; got "
                                f"{raw.header.get(name)!r}. Give the arguments with which the file was made")


def _finish(arguments, task, truth, pictures, raw):
    """Make the table of the images that have detections, and name those that have not."""
    ids = [picture.id for picture in pictures]
    names = {picture.id: printable(f"{picture.id} ({picture.file_name})") for picture in pictures}
    missing, failed = raw.missing(ids), [number for number in ids if number in raw.errors]
    _name("without a line", [names[number] for number in missing])
    _name("with an error instead of detections", [names[number] for number in failed])
    _name("in several files, of which the first counts", [names[n] for n in raw.double if n in names])
    evaluated = [number for number in ids if number in raw]
    if not evaluated:
        raise ArgumentError(f"expected at least one image with detections; none of the {len(ids)} has any. See the "
                            "messages above")
    part = truth.only(evaluated)
    table = task.table(part, raw)
    without = len(missing) + len(failed)
    note = counted(len(evaluated), task.unit) + (f"; {without} of {len(ids)} have no detections" if without else "")
    show(_formatted(table, note))
    if arguments.out:
        _write(arguments.out / TABLE, _json(table, raw.header, len(evaluated), without))
    if arguments.report:
        model = Path(raw.header["model"]).name
        options = [f"{name} {value}" for name, value in task.settings().items() if value is not None]
        facts = f"{arguments.annotations.name}, {note}; {', '.join(options)}"
        html = report(part, lambda: task.candidates(part, raw), arguments.images, f"{model} on {task.name.upper()}",
                      facts, table)
        _write(arguments.out / REPORT, html)
    return 1 if without else 0


def _name(problem, names):
    if names:
        complain(f"minigdino: {counted(len(names), 'image')} {problem}: {listed(names[:NAMED], len(names))}")


def _formatted(table, note):
    """The table in percent, as the papers print it."""
    cells = [percent(value) for value in table.values()]
    widths = [max(len(name), len(cell)) for name, cell in zip(table, cells)]
    rows = (table, cells)
    return "\n".join(["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows] + [note])


def _json(table, header, evaluated, without) -> str:
    values: dict[str, Any] = {"minigdino": __version__}
    values |= {name: value for name, value in header.items() if name not in ("minigdino", "shard")}
    values |= {"images": evaluated, "without_detections": without,
               "table": {name: None if math.isnan(value) else value for name, value in table.items()}}
    return json.dumps(values, indent=2) + "\n"


def _write(path, text):
    writing.replace_file(path, text.encode("utf-8", "backslashreplace"))
    complain(f"wrote {printable(str(path))}")
