"""A run of `minigdino detect`: check all arguments, load the model, detect image by image, and write the outputs."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from . import (
    ArgumentError,
    Detections,
    Error,
    ImageError,
    datasets,
    detect_arguments,
    files,
    load,
    outputs,
    set_threads,
    video,
    writing,
)
from .checkpoints.json_file import is_folder, status
from .console import complain, printable, show, write
from .detector import prompts
from .errors import brief
from .inputs import Input, detect_each, frames, is_camera, is_video
from .progress import Progress


def run(arguments: argparse.Namespace) -> int:
    """Run `minigdino detect`.

    Args:
        arguments: the parsed arguments. Their `error` ends the process with a usage message.

    Returns:
        The exit status: 1 if an image or a folder could not be read, else 0.

    Raises:
        Error: if an argument is invalid, or an output cannot be written.
        SystemExit: with status 2, if arguments do not fit together.
    """
    sources, text = detect_arguments.sources_and_text(arguments)
    printed = _printed(arguments)
    if arguments.threads is not None:
        set_threads(arguments.threads)
    # before the first forward pass, check all arguments that concern every image
    skipped: list[Error] = []  # folders
    images = files.find_images(sources, recursive=arguments.recursive, on_error=skipped.append)
    for error in skipped:
        _report(error)
    _check_videos(arguments, images)
    many = images != sources or len(sources) > 1 or is_video(images[0])  # also a folder or a pattern with one image
    to_video = _to_video(arguments, images, sources)
    picture, crop = _checked_outputs(arguments, images, many, sources, to_video)
    rate = _rate(images[0], arguments.every or 1) if to_video else 0
    is_older = bool(to_video and status(arguments.out, follow=False))  # an annotated video of an earlier run
    image_ids = _image_ids(arguments.image_ids, images)
    model = load(arguments.model, device=arguments.device, precision=arguments.precision)
    parts = prompts(model, text, arguments.chunk)
    phrases = [phrase for prompt in parts for phrase in prompt.phrases]
    options = detect_arguments.options(arguments, phrases)
    model.detect([], text, **options)  # checks the options; a wrong one must not leave an empty file of --jsonl
    categories = datasets.categories(arguments.categories, phrases)
    collected = {"coco": datasets.Coco(categories, image_ids)} if arguments.coco else {}
    collected |= {"csv": datasets.Csv()} if arguments.csv else {}
    earlier = 0  # images with an error from an earlier run
    with _lines(arguments, model, parts, options) as lines:
        done = lines.done if lines else {}
        if lines and done:
            _add_earlier(lines, list(collected.values()), categories)
            earlier = _count(lines.failed, images)
            images = [image for image in images if image not in done]
        collected |= {"json": datasets.Json(many)} if arguments.json else {}  # without earlier images
        progress = Progress(sys.stderr, None if any(map(is_video, images)) else len(images)) if many else None
        writer = _Writer(list(collected.values()), lines, picture, crop, to_video,
                         None if printed or (lines and many) else _Table(many, _nothing(arguments)))
        results = detect_each(model, images, text, every=arguments.every or 1, done=done, progress=progress, **options)
        drawn = filter(None, itertools.starmap(writer.add, results))  # neither keeps an image
        if first := next(drawn, None):  # without an annotated video, there is none, and all images are done
            video.write(arguments.out, itertools.chain([first], drawn), rate,
                        overwrite=arguments.overwrite or is_older)
            complain(f"wrote {printable(arguments.out)}")
        failed = writer.failed + earlier + len(skipped)
    if earlier:
        complain(f"minigdino: {printable(str(arguments.jsonl))} has an error of an earlier run for {earlier} "
                 f"image{'s' * (earlier != 1)}. To try again, delete {'its line' if earlier == 1 else 'their lines'}")
    failed += _write_data_sets(arguments, collected)
    return 1 if failed else 0


def _nothing(arguments):
    """The line of the table of an image without detections."""
    threshold = "its threshold" if arguments.phrase_threshold else arguments.threshold
    area = f" and covers at most {arguments.max_area:g} of the image" if arguments.max_area is not None else ""
    return f"nothing scores above {threshold}{area}"


@dataclass
class _Writer:
    """Write all that belongs to one image, after its detection.

    Attributes:
        data_sets: data sets of `datasets`, which collect the images.
        lines: JSON Lines, or None.
        picture: function that returns the file of a picture; None for no pictures.
        crop: function that returns the file of a crop; None for no crops.
        to_video: whether the pictures become an annotated video. All must have the size of the first one.
        table: function that prints the detections; None for no tables.
        failed: number of images with an error.
        size: width and height of the first frame of the annotated video; None before it.
    """

    data_sets: Sequence[Any]
    lines: Any
    picture: Callable[[Input], str] | None
    crop: Callable[[Input, int, str], str] | None
    to_video: bool
    table: Callable[[Input, Detections], None] | None
    failed: int = 0
    size: tuple[int, int] | None = None

    def add(self, image: Input, result: Detections | Error) -> Image.Image | None:
        """Write the result of an image. Returns its picture if it becomes a frame of the annotated video."""
        for data_set in self.data_sets:
            data_set.add(image.name, result)
        if isinstance(result, Error):
            self.failed += 1
            _report(result)
        else:
            self._draw(image, result)
        if self.lines:  # after the pictures: --resume skips the image from now on
            self.lines.write(files.record(image.name, result))
        if isinstance(result, Error):
            return None
        if self.table:
            self.table(image, result)
        return self._frame(image, result) if self.to_video else None

    def _draw(self, image, found):
        if self.picture:
            path = self.picture(image)
            write(path, writing.encoded(found.plot(), path))
        if self.crop and len(found):
            for i, (label, part) in enumerate(zip(found.labels, found.crops())):
                path = self.crop(image, i, label)
                write(path, writing.encoded(part, path))

    def _frame(self, image, found):
        self.size = self.size or found.image_size
        if found.image_size != self.size:
            (width, height), size = self.size, found.image_size
            raise ArgumentError(f"{image.name}: an annotated video needs frames of one size, {width} x {height} as the "
                                f"first one; got {size[0]} x {size[1]}. Give --out a folder, with a slash at its end, "
                                "for a picture of each frame")
        return found.plot()


@dataclass
class _Table:
    """Print detections as a table.

    Attributes:
        named: whether the name of the image is printed, too.
        nothing: line that is printed without detections.
    """

    named: bool
    nothing: str

    def __call__(self, image: Input, found: Detections) -> None:
        if self.named:
            show(f"{printable(image.name)}:")
        if not len(found):
            show(self.nothing)
        labels = [printable(label) for label in found.labels]
        width = max(map(len, labels), default=0)
        for d, label in zip(found, labels):
            show(f"{label:{width}}  {d.score:.3f}  [{', '.join(f'{v:.1f}' for v in d.box)}]")


def _report(error):
    complain(f"minigdino: {printable(str(error))}")


def _count(names, images):
    """Number of names that are those of some images, or of frames of their videos."""
    images = set(images)
    return sum(name in images or name.rpartition("#")[0] in images for name in names)


def _printed(arguments):
    """The option whose output is printed instead of a table; None for the table."""
    names = ["--json"] if arguments.json else []
    names += [f"--{name} -" for name in ("jsonl", "coco", "csv") if getattr(arguments, name) == files.STDOUT]
    if len(names) > 1:
        arguments.error(f"expected at most one output on standard output; got {' and '.join(names)}")
    if arguments.jsonl == files.STDOUT and arguments.resume:
        arguments.error("--resume needs a file of --jsonl; standard output has no earlier lines")
    if arguments.resume and files.STDIN in arguments.source:
        arguments.error("--resume does not work with standard input, whose images have no names")
    if arguments.resume and not arguments.jsonl:
        arguments.error("--resume needs --jsonl, the file that it continues")
    outputs.check_ids(arguments)
    return names[0] if names else None


def _check_videos(arguments, images):
    """Check the options that concern videos, and that videos can be read."""
    videos = [image for image in images if is_video(image)]
    if arguments.every is not None and not videos:
        arguments.error("--every needs a video among the sources, such as clip.mp4; got none. Leave it out for images")
    if arguments.every is not None and arguments.every < 1:
        raise ArgumentError(f"--every must be 1 or more; got {arguments.every}")
    if videos and arguments.image_ids:
        arguments.error("--image-ids does not work with a video, whose number of frames is not known. Leave it out: "
                        "ids are then numbers from 1")
    if any(map(is_camera, videos)) and (names := [f"--{name}" for name in ("resume", "coco", "csv", "json")
                                                  if getattr(arguments, name)]):
        arguments.error(f"{' and '.join(names)} need a run with an end, which a camera does not have. Use --jsonl "
                        "without --resume")
    for image in images if videos else ():
        name, mark, number = image.rpartition("#")
        if mark and number.isdecimal() and name in videos:
            raise ArgumentError(f"{image} has the name of a frame of {name}. Rename it, or process the two in "
                                "different runs, with different outputs")
    if videos:
        with contextlib.suppress(ImageError):  # a missing file does not stop the others
            frames(videos[0], 1)  # an error if PyAV is not installed


def _to_video(arguments, images, sources):
    """Return whether --out is an annotated video, for the frames of one video file."""
    out = arguments.out or ""
    if (Path(out).suffix.lower() not in video.ENDINGS or out.endswith(("/", os.sep)) or is_folder(out)
            or not any(map(is_video, images))):
        return False
    if len(images) > 1 or images != sources or is_camera(images[0]) or Path(out).suffix.lower() not in video.OUTPUTS:
        raise ArgumentError(f"--out {out}: an annotated video needs one video file as the only source, and one of the "
                            f"endings {', '.join(video.OUTPUTS)}. Give --out a folder, with a slash at its end, for a "
                            "picture of each frame")
    if arguments.resume:
        arguments.error("--resume does not work with an annotated video, which would lack the frames of the earlier "
                        "run. Give --out a folder, with a slash at its end, for a picture of each frame")
    return True


def _rate(path, every):
    """The frames per second of the annotated video, which plays in real time."""
    if not 0.01 <= (rate := video.rate(path) / every) <= 1000:  # which `video.write` refuses
        raise ArgumentError(f"--every {every} would give an annotated video of {rate:.5g} frames per second; expected "
                            "0.01 to 1000. Choose another N, or give --out a folder, with a slash at its end")
    return rate


def _checked_outputs(arguments, images, many, sources, to_video):
    """Check all outputs. Returns the functions `picture` and `crop` of a `_Writer`."""
    out, crops = arguments.out, arguments.crops
    for option, path, other in (("--out", out, "a file or a folder"), ("--crops", crops, "a folder")):
        if path == files.STDOUT:
            raise ArgumentError(f"{option} - is not possible: pictures are not written to standard output. Give "
                                f"{option} {other}")
    is_one_file = bool(out) and (to_video or not (many or out.endswith(("/", os.sep)) or is_folder(out)))
    if is_one_file and not to_video:
        _check_format(out)
    others = [path for path in (arguments.jsonl, arguments.coco, arguments.csv) if path and path != files.STDOUT]
    drawn = cropped = None
    pictures = [str(Path(out))] if is_one_file else []
    if out and not is_one_file:
        drawn = outputs.Folder("--out", out, images, arguments.overwrite, others)
        pictures = drawn.check(sources, arguments.recursive)
    if crops:
        cropped = outputs.Folder("--crops", crops, images, arguments.overwrite, [*others, *pictures])
        cropped.check(sources, arguments.recursive)
    _check_paths(arguments, images, pictures)
    is_ours = IS_OURS | {"out": video.is_marked} if to_video else IS_OURS
    for name in is_ours:
        path = getattr(arguments, name)
        if path and path != files.STDOUT and (name != "out" or is_one_file):
            _check_replaceable(arguments, path, is_ours[name])
            writing.check_writable(path)
    if drawn:
        writing.check_writable(Path(out, "*") if many else pictures[0])
    if cropped:
        writing.check_writable(Path(crops, "*"))
    if arguments.jsonl and arguments.jsonl != files.STDOUT:
        files.check_lines(arguments.jsonl, arguments.resume, arguments.overwrite)
    picture = drawn.picture if drawn else (lambda _: _picture(arguments)) if is_one_file and not to_video else None
    return picture, cropped and cropped.crop


def _check_format(path):
    """Check that Pillow writes the format of a picture. A folder may have been meant."""
    try:
        writing.encoded(Image.new("RGB", (64, 64)), path)
    except ArgumentError as error:
        raise ArgumentError(f"--out {error}. For a folder, add a slash: --out {path}/") from None


# option -> function that recognises a file of an earlier run. A CSV file has no place for a mark
IS_OURS = {"out": writing.is_drawn, "coco": datasets.is_coco, "csv": lambda _: False}


def _check_replaceable(arguments, path, is_ours):
    """Check that a file of the user is not replaced: first before the run, then again when the file is written."""
    if not arguments.overwrite:
        writing.check_replaceable(path, is_ours)


def _picture(arguments):
    """The file of the only picture."""
    _check_replaceable(arguments, arguments.out, IS_OURS["out"])
    return arguments.out


def _write_data_sets(arguments, data_sets):
    """Write all data sets, also after an error. Returns the number of errors."""
    paths = {name: getattr(arguments, name) if name in IS_OURS else files.STDOUT for name in data_sets}
    failed = 0
    for name in sorted(paths, key=lambda name: paths[name] == files.STDOUT):  # which may be closed: last
        try:
            if paths[name] != files.STDOUT:
                _check_replaceable(arguments, paths[name], IS_OURS[name])
            write(paths[name], data_sets[name].content())
        except ArgumentError as error:
            _report(error)
            failed += 1
    return failed


def _check_paths(arguments, images, pictures):
    """Check that no output is an input or another output."""
    out, crops = arguments.out, arguments.crops
    if out and crops and is_folder(out) and is_folder(crops) and os.path.samefile(out, crops):
        raise ArgumentError(f"expected different folders for --out and --crops; got {crops} for both. Choose another "
                            "name for one of them")
    coco, csv, lines = (None if path == files.STDOUT else path
                        for path in (arguments.coco, arguments.csv, arguments.jsonl))
    outputs.check_paths([*(("a video" if is_video(image) else "an image",
                            "/dev/stdin" if image == files.STDIN else image) for image in images),
                         ("--phrases", arguments.phrases), ("--categories", arguments.categories),
                         ("--image-ids", arguments.image_ids),
                         *outputs.model_files(arguments.model)],
                        [*(("--out", path) for path in dict.fromkeys([out, *pictures])), ("--crops", crops),
                         ("--coco", coco), ("--csv", csv), ("--jsonl", lines)])


def _lines(arguments, model, parts, options):
    """The JSON Lines as a context; None without --jsonl."""
    if not arguments.jsonl:
        return contextlib.nullcontext()
    header = detect_arguments.header(model, parts, options)
    if arguments.jsonl == files.STDOUT:
        return _PrintedLines(header)
    return files.JsonLines(arguments.jsonl, arguments.resume, header=header, overwrite=arguments.overwrite)


class _PrintedLines(contextlib.nullcontext):
    """JSON Lines on standard output, with the interface of `files.JsonLines`."""

    def __init__(self, header):
        super().__init__(self)
        self.done = {}
        self.write(header)

    def write(self, line):
        """Print one line."""
        show(json.dumps(line, allow_nan=False))


def _add_earlier(lines, data_sets, categories):
    """Add the images that the file already has to data sets. Lines with an error are left out."""
    for line in lines.records() if data_sets else ():
        if "error" in line:
            continue
        found = files.detections(line, lines.path)
        if missing := [label for label in found.labels if label not in categories]:
            raise ArgumentError(f"{lines.path}: each label must be a phrase of the prompt; {brief(missing[0])} of "
                                f"{line['image']} is not. Delete its line, so that --resume processes it again")
        for data_set in data_sets:
            data_set.add(line["image"], found)


def _image_ids(path, images):
    """{file_name: id} from a file that must contain every image, with different ids; None without a file."""
    if not path:
        return None
    image_ids = files.read_image_ids(path)
    names = {}
    for image in images:
        files.check_new_id(files.image_id(image, image_ids), image, names)
    return image_ids
