"""The command line: parses arguments, calls the library, and prints text."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import itertools
import json
import os
import re
import sys
import warnings
from pathlib import Path

from . import (
    ArgumentError,
    Error,
    PromptWarning,
    __version__,
    datasets,
    files,
    info,
    load,
    outputs,
    set_threads,
    trace,
    use,
    writing,
)
from .checkpoints import hub
from .checkpoints.fingerprint import fingerprint
from .checkpoints.json_file import status
from .checkpoints.published import PUBLISHED, SHAPES
from .errors import brief
from .image import MAX_EDGE
from .runtime.kernels import mode
from .runtime.precision import PRECISIONS

MAX_TOKENS = 100_000  # of `bench`, before the model's own limit is known
INTERRUPTED = 130  # exit status after Ctrl-C, by the convention of shells


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None for `sys.argv`.

    Returns:
        The exit status: 0 for success, 1 after an error message, 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 for wrong arguments, and 0 after --help or --version.
    """
    _replace_closed_streams()
    try:
        try:
            arguments = _parsed(argv)
            with _short_warnings():
                return arguments.command(arguments)
        finally:
            _print("", end="")  # what --help wrote: at exit, a failure would not be reported
    except (Error, PromptWarning) as error:  # a warning only if Python's option -W makes it an error
        _complain(f"minigdino: {NEWLINE.join(map(printable, MESSAGE_BREAKS.split(str(error))))}")
        return 1
    except KeyboardInterrupt:
        _complain("\nminigdino: stopped")
        return INTERRUPTED
    except MemoryError:
        _complain("minigdino: there is not enough memory. Use a smaller --size, or a machine with more memory")
        return 1
    except BrokenPipeError:  # the program that reads the output, such as head, has ended
        return 1


@contextlib.contextmanager
def _short_warnings():
    """Print each PromptWarning once, as a message of the program. Other warnings keep Python's format."""
    with warnings.catch_warnings():
        show, shown = warnings.showwarning, set()

        def show_short(message, category, *place):
            if not issubclass(category, PromptWarning):
                show(message, category, *place)
            elif str(message) not in shown:
                shown.add(str(message))
                _complain(f"minigdino: warning: {printable(str(message))}")

        warnings.showwarning = show_short
        yield


NEWLINE = "\n"
# the line breaks that minigdino writes in a message; any other is part of a file name, and is escaped
MESSAGE_BREAKS = re.compile(r"\n(?=---> hint:|Local cache:)")


def printable(text: str, keep: str = "") -> str:
    r"""Replace control characters, which a file name could use to change the terminal, by their escapes.

    Args:
        text: any text.
        keep: characters that are not replaced.

    Returns:
        The text, for example with `\x1b` in place of an escape character.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _print(text, end="\n"):
    """Print to standard output, at once. A character that its encoding lacks is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise ArgumentError(f"standard output: cannot write there ({error.strerror}). Write to another place") from None


def _complain(text):
    """Print to standard error. If that fails, there is no place for the message, and the run goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream):
    """Send the rest of a stream to the null device: Python writes it at exit, and must not fail again."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _replace_closed_streams():
    """Open the null device for closed standard streams. Otherwise the next file would take the number of one."""
    for name, access in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, access, encoding="utf-8"))  # noqa: SIM115  for the whole process


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """Print the usage and a message in which file names are printable, and exit with status 2."""
        super().error(printable(message))


def _path(text):
    """A path. An empty one, as from an unset variable of a shell, would look like an option that was not given."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path; got ''")
    return Path(text)


def _file(text):
    """A path, or "-" for standard output. A file of that name is ./-"""
    return text if text == files.STDOUT else _path(text)


def _drawing(text):
    """A path as text: a slash at its end, which Path would drop, says that it is a folder."""
    _path(text)
    return text


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    top = _Parser(prog="minigdino", description="Detect objects in images from a text prompt. No PyTorch.")
    top.add_argument("--version", action="version", version=f"minigdino {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    detect = commands.add_parser(
        "detect", help="detect objects in images", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="minigdino detect SOURCE [SOURCE ...] TEXT [options]\n"
              "       minigdino detect SOURCE [SOURCE ...] --phrase P [--phrase P ...] [options]",
        epilog='examples:\n  minigdino detect cat.jpg "a cat. a remote control." --out found.png\n'
               "  minigdino detect photos/ --phrase 'st. bernard' --jsonl found.jsonl --resume")
    detect.add_argument("source", nargs="+", metavar="SOURCE",
                        help="an image, a URL, a folder, a glob pattern in quotes, or - for an image on standard "
                             "input. In folders and patterns, hidden files are skipped. A path given twice is "
                             "processed once. Without --phrase, the last argument is TEXT, the prompt: phrases that "
                             'end in dots, such as "a cat. a dog."')
    detect.add_argument("--phrase", action="append", metavar="P",
                        help="one phrase of the prompt, instead of TEXT; repeatable")
    detect.add_argument("--recursive", action="store_true", help="search the subfolders of folders, too")
    detect.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, short name (see '
                                                     '`minigdino models`), or "shapes" (default: $MINIGDINO_MODEL, '
                                                     "else grounding-dino-tiny)")
    detect.add_argument("--threshold", type=float, default=0.25, metavar="X",
                        help="score that a detection must exceed (default: 0.25)")
    detect.add_argument("--text-threshold", type=float, default=0.25, metavar="X",
                        help='probability that a token must exceed to become part of "phrase" (default: 0.25)')
    detect.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"),
                        help="shortest and longest edge of the resized image, in pixels (default: the checkpoint's)")
    detect.add_argument("--device", default="cpu", help='"cpu" (default), "cuda" or "cuda:N"')
    _add_precision(detect)
    detect.add_argument("--threads", type=int, metavar="N",
                        help="number of threads (default: the CPUs that this process may use, or OMP_NUM_THREADS if "
                             "that is less)")
    detect.add_argument("--out", metavar="PATH", type=_drawing,
                        help="draw the detections: a file for one image, or a folder, which must exist or end in a "
                             "slash if there is one image only")
    detect.add_argument("--json", action="store_true",
                        help="print JSON instead of a table: an object for one image, a list for several")
    detect.add_argument("--jsonl", metavar="FILE", type=_file,
                        help="append one line of JSON per image, as soon as it is done; - for standard output, also "
                             "with the next options")
    detect.add_argument("--coco", metavar="FILE", type=_file, help="write all detections as a COCO data set")
    detect.add_argument("--csv", metavar="FILE", type=_file, help="write all detections as CSV")
    detect.add_argument("--resume", action="store_true",
                        help="with --jsonl: skip images that the file already has, also those with an error. The "
                             "model, the prompt and the options must be the same")
    detect.add_argument("--overwrite", action="store_true",
                        help="replace existing files of other programs, and that of --jsonl. Without it, only "
                             "pictures, COCO and CSV files that minigdino wrote are replaced. Inputs are never "
                             "replaced")
    detect.add_argument("--categories", metavar="FILE", type=_path,
                        help="with --coco: JSON file with the id of each label, a different int for each")
    detect.add_argument("--image-ids", metavar="FILE", type=_path,
                        help="with --coco: COCO data set with the id of each image, such as the ground truth")
    detect.set_defaults(command=_detect, error=detect.error)

    download = commands.add_parser("download", help="download a published checkpoint into the local hub cache",
                                   epilog="example: minigdino download iSEE-Laboratory/llmdet_tiny")
    download.add_argument("id", metavar="ID", help="owner/name on the hub, or a short name (see `minigdino models`)")
    download.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    download.set_defaults(command=_download)

    verify = commands.add_parser("verify", help="compare a published checkpoint with its published results",
                                 epilog="example: minigdino verify IDEA-Research/grounding-dino-tiny")
    verify.add_argument("id", metavar="ID", nargs="?",
                        help="the checkpoint whose published results are expected, by id or short name (default: "
                             "grounding-dino-tiny)")
    verify.add_argument("--model", metavar="M", help="run this model instead of the checkpoint from the hub")
    verify.add_argument("--image", metavar="PATH", help="COCO image 000000039769 (default: download it once)")
    verify.set_defaults(command=_verify)

    trace = commands.add_parser("trace", help="print a forward pass as a tree of steps, with shapes, times, and places "
                                              "in the papers",
                                epilog='example: minigdino trace cat.jpg "a cat." --model shapes --depth 3')
    trace.add_argument("image", metavar="IMAGE", help="an image file")
    trace.add_argument("text", metavar="TEXT", help='the prompt, such as "a cat. a dog."')
    trace.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, or "shapes"')
    trace.add_argument("--depth", type=int, default=4, metavar="N", help="levels of nested calls to show (default: 4)")
    trace.add_argument("--no-steps", action="store_true", help="show functions only, not their named arrays")
    trace.add_argument("--reference", action="store_true",
                       help="run the NumPy reference, so that the steps inside compiled twins are shown too")
    trace.set_defaults(command=_trace)

    explain = commands.add_parser("explain", help="write a forward pass as one HTML page, with figures of every stage",
                                  epilog='example: minigdino explain cat.jpg "a cat." --out page.html')
    explain.add_argument("image", metavar="IMAGE", help="an image file")
    explain.add_argument("text", metavar="TEXT", help='the prompt, such as "a cat. a dog."')
    explain.add_argument("--out", metavar="PAGE", type=_path, required=True, help="the HTML file to write")
    explain.add_argument("--overwrite", action="store_true",
                         help="replace an existing file that is not such a page. The image is never replaced")
    explain.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, or "shapes"')
    explain.add_argument("--guide", metavar="URL",
                         help="URL of the guide that `make docs` builds, relative to the page; captions link to it")
    explain.set_defaults(command=_explain)

    bench = commands.add_parser("bench", help="measure the time of each stage of a forward pass",
                                epilog="example: minigdino bench --size 480 640 --passes 3")
    bench.add_argument("--model", metavar="M", help='directory, model id or "shapes" (default: the geometry of '
                                                    "grounding-dino-tiny with random weights)")
    bench.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(800, 1066),
                       help="size of the image in pixels (default: 800 1066)")
    bench.add_argument("--tokens", type=int, default=9, metavar="T", help="length of the prompt in tokens (default: 9)")
    bench.add_argument("--passes", type=int, default=5, metavar="N",
                       help="number of measured forward passes, after one for warm-up (default: 5)")
    _add_precision(bench)
    bench.add_argument("--threads", type=int, metavar="N",
                       help="number of threads (default: the CPUs that this process may use, or OMP_NUM_THREADS if "
                            "that is less)")
    bench.set_defaults(command=_bench)

    models = commands.add_parser("models", help="list the published models: size, accuracy, licence, if cached",
                                 epilog="example: minigdino models --json")
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(command=_models)

    about = commands.add_parser("info", help="print versions, CPU, BLAS, threads, compiled kernels, and models found",
                                epilog="example: minigdino info")
    about.set_defaults(command=_info)
    return top


def _parsed(argv):
    """The arguments of a command. SOURCE and TEXT may be anywhere: argparse leaves those after an option over."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and (arguments.command is not _detect or any(one.startswith("-") and one != "-" for one in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.source += rest
    return arguments


def _add_precision(command):
    command.add_argument("--precision", choices=PRECISIONS,
                         help="precision of the matrix products (default: $MINIGDINO_PRECISION, else highest). Lower "
                              "ones are faster on CPUs with AMX, and medium on AMD CPUs with AVX512-BF16")


def _detect(arguments):
    *sources, text = arguments.source if not arguments.phrase else [*arguments.source, arguments.phrase]
    if not sources:
        arguments.error('give an image and a text: minigdino detect cat.jpg "a cat."')
    if mistake := misplaced(sources, text):
        arguments.error(mistake)
    printed = _printed(arguments)
    if arguments.threads is not None:
        set_threads(arguments.threads)
    # before the first forward pass, check all arguments that concern every image
    images = files.find_images(sources, recursive=arguments.recursive)
    many = images != sources or len(sources) > 1  # True for a folder or a pattern, even with one image
    pictures = _checked_outputs(arguments, images, many, sources)
    image_ids = _image_ids(arguments.image_ids, images)
    model = load(arguments.model, device=arguments.device, precision=arguments.precision)
    options = {"threshold": arguments.threshold, "text_threshold": arguments.text_threshold, "size": arguments.size}
    model.detect([], text, **options)  # checks the options; a wrong one must not leave an empty file of --jsonl
    prompt = model.tokenize(text)
    categories = _categories(arguments.categories, prompt.phrases)
    data_sets = [(arguments.coco, datasets.Coco(categories, image_ids))] if arguments.coco else []
    data_sets += [(arguments.csv, datasets.Csv())] if arguments.csv else []
    collected = data_sets + ([(files.STDOUT, datasets.Json(many))] if arguments.json else [])
    broken = 0  # images with an error from an earlier run
    with _lines(arguments, model, prompt, options) as lines:
        def on_result(image, result):
            for _, data_set in collected:
                data_set.add(image, result)
            if isinstance(result, Error):
                _complain(f"minigdino: {printable(str(result))}")
            elif pictures:
                _write(pictures[image], writing.encoded(result.plot(), pictures[image]))
            if lines:  # after the picture: --resume skips the image from now on
                lines.write(files.record(image, result))
            if not printed and not isinstance(result, Error) and not (lines and many):
                _print_table(image if many else None, result, arguments.threshold)

        if lines and lines.done:
            _add_earlier(lines, data_sets, categories)
            broken = sum(image in lines.failed for image in images)
            images = [image for image in images if image not in lines.done]
        failed = files.detect_each(model, images, text, on_result=on_result, **options,
                                   progress=sys.stderr if many and sys.stderr.isatty() else None)
    if broken:
        _complain(f"minigdino: {printable(str(arguments.jsonl))} has an error of an earlier run for {broken} "
                  f"image{'s' * (broken != 1)}. To try again, delete {'its line' if broken == 1 else 'their lines'}")
    for path, data_set in sorted(collected, key=lambda pair: pair[0] == files.STDOUT):  # which may be closed: last
        _write(path, data_set.content())
    return 1 if failed or broken else 0


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
    return names[0] if names else None


def misplaced(sources: list[str], text: str | list[str]) -> str | None:
    """Recognise arguments of `detect` in a wrong order, without quotes, or of both forms.

    Args:
        sources: the arguments before the prompt, at least one.
        text: TEXT, or the list of phrases of --phrase.

    Returns:
        A message that says what to write; None if there is no such mistake.
    """
    first, last = sources[0], sources[-1]
    if not isinstance(text, str):
        if _is_prompt(last) and (" " in last or last.endswith(".")):
            return (f"expected SOURCE ... with --phrase; got {brief(last)}, which is no file. Give the prompt either "
                    "as TEXT or by --phrase, not both")
        return None
    if status(text) and _is_prompt(first):
        return (f"expected TEXT as the last argument; got {brief(text)}, which exists. Write: minigdino detect "
                f'{_quoted(text)} "{" ".join(sources)}"')
    prompts = [source for source in sources if _is_prompt(source) and " " in source]
    if status(text) and (prompts or re.search(rf"[/\\]|{ENDING}", text)):
        found = f"; {brief(prompts[0])} is no file" if prompts else ""
        return (f"expected TEXT as the last argument; got {brief(text)}, which exists{found}. Put the prompt in quotes "
                f'at the end: minigdino detect {" ".join(_quoted(s) for s in (*sources, text) if s not in prompts)} '
                f'"{prompts[0] if prompts else "a cat."}"')
    if " " in text.strip():  # was in quotes
        return None
    for i, word in enumerate(sources[1:], start=1):
        if _is_prompt(word) and re.fullmatch(r"[^\W\d][\w'-]*[.,;?]?", word):
            return (f"expected SOURCE ... before TEXT; got {brief(word)}, which is no file. Put a prompt of several "
                    f"words in quotes: minigdino detect {' '.join(map(_quoted, sources[:i]))} "
                    f'"{" ".join([*sources[i:], text])}"')
    return None


def _is_prompt(argument):
    """Return whether an argument can be a prompt: not that of a file, nor of the form of a path, pattern or URL."""
    return not re.search(rf"[/\\*\[]|{ENDING}|^-$", argument) and status(argument) is None


ENDING = r"\.\w+$"  # of a file name


def _quoted(path):
    return f'"{path}"' if " " in path else path


def _checked_outputs(arguments, images, many, sources):
    """Check all outputs. Returns {image: path of its picture}."""
    pictures = {} if not arguments.out else outputs.picture_paths(
        arguments.out, images, many, sources, recursive=arguments.recursive, overwrite=arguments.overwrite)
    coco, csv, lines = (None if path == files.STDOUT else path
                        for path in (arguments.coco, arguments.csv, arguments.jsonl))
    outputs.check_paths([*(("an image", "/dev/stdin" if image == files.STDIN else image) for image in images),
                         ("--categories", arguments.categories), ("--image-ids", arguments.image_ids),
                         *outputs.model_files(arguments.model)],
                        [*(("--out", path) for path in dict.fromkeys([arguments.out, *pictures.values()])),
                         ("--coco", coco), ("--csv", csv), ("--jsonl", lines)])
    picture = None if not pictures else Path(arguments.out, "*") if many else pictures[images[0]]
    for path, is_ours in ((picture, writing.is_drawn), (coco, datasets.is_coco), (csv, None)):
        if path:
            if not arguments.overwrite:
                writing.check_replaceable(path, is_ours or (lambda _: False))  # a CSV file has no place for a mark
            writing.check_writable(path)
    if lines:
        files.check_lines(lines, arguments.resume, arguments.overwrite)
    return pictures


def _lines(arguments, model, prompt, options):
    """The JSON Lines as a context; None without --jsonl."""
    if not arguments.jsonl:
        return contextlib.nullcontext()
    header = {"minigdino": __version__, "model": str(model.source),
              "fingerprint": fingerprint(model.tensors, model.config, model.settings.to_dict()),
              "text": prompt.phrases, "tokens": prompt.ids.tolist(), **options, "precision": model.precision}
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
        _print(json.dumps(line, allow_nan=False))


def _add_earlier(lines, data_sets, categories):
    """Add the images that the file already has to data sets. Lines with an error are left out."""
    for line in lines.records() if data_sets else ():
        if "error" in line:
            continue
        found = files.detections(line, lines.path)
        if missing := [label for label in found.labels if label not in categories]:
            raise ArgumentError(f"{lines.path}: each label must be a phrase of the prompt; {brief(missing[0])} of "
                                f"{line['image']} is not. Delete its line, so that --resume processes it again")
        for _, data_set in data_sets:
            data_set.add(line["image"], found)

def _categories(path, phrases):
    """{label: id} from a file that must contain every phrase; without a file, ids from 1 in the prompt's order."""
    if not path:
        return {phrase: i for i, phrase in enumerate(dict.fromkeys(phrases), start=1)}
    categories = files.read_categories(path)
    if missing := [phrase for phrase in phrases if phrase not in categories]:
        known = ", ".join(map(brief, itertools.islice(categories, 10)))
        raise ArgumentError(f"{path} must have an id for each phrase; it has no id for {brief(missing[0])}, only for "
                            f"{known}{', ...' if len(categories) > 10 else ''}. Add it")
    return categories


def _image_ids(path, images):
    """{file_name: id} from a file that must contain every image, with different ids; None without a file."""
    if not path:
        return None
    image_ids = files.read_image_ids(path)
    names = {}
    for image in images:
        files.check_new_id(files.image_id(image, image_ids), image, names)
    return image_ids


def _write(path, data):
    """Write a file from bytes or blocks of bytes, and name it on standard error; or print the blocks."""
    if path == files.STDOUT:
        for text in codecs.iterdecode(data, "utf-8", "surrogateescape"):
            _print(text, end="")
    else:
        writing.replace_file(path, data)
        _complain(f"wrote {printable(str(path))}")


def _print_table(image, found, threshold):
    if image:
        _print(f"{printable(image)}:")
    if not len(found):
        _print(f"nothing scores above {threshold}")
    labels = [printable(label) for label in found.labels]
    width = max(map(len, labels), default=0)
    for d, label in zip(found, labels):
        _print(f"{label:{width}}  {d.score:.3f}  [{', '.join(f'{v:.1f}' for v in d.box)}]")


def _download(arguments):
    _print(str(hub.download(arguments.id, arguments.revision)))
    return 0


def _verify(arguments):
    from .evaluation.verify import verify

    report = verify(arguments.id or hub.DEFAULT, arguments.image, arguments.model)
    _print(printable(str(report), keep=NEWLINE))
    return report.status


def _trace(arguments):
    from .inspection.tree import tree

    model = load(arguments.model)
    with use("reference" if arguments.reference else mode()), trace() as steps:
        model.detect(arguments.image, arguments.text)
    _print(tree(steps, arguments.depth, not arguments.no_steps))
    return 0


def _explain(arguments):
    from .inspection.explain import is_page, page

    outputs.check_paths([("the image", arguments.image), *outputs.model_files(arguments.model)],
                        [("--out", arguments.out)])
    if not arguments.overwrite:
        writing.check_replaceable(arguments.out, is_page)
    writing.check_writable(arguments.out)
    guide = None if arguments.guide is None else arguments.guide.rstrip("/") + "/"
    html = page(load(arguments.model), arguments.image, arguments.text, guide)
    _write(arguments.out, html.encode("utf-8", "backslashreplace"))
    return 0


def _bench(arguments):
    from .runtime.bench import bench

    if arguments.passes < 1:
        raise ArgumentError(f"--passes must be 1 or more; got {arguments.passes}")
    if not all(1 <= edge <= MAX_EDGE for edge in arguments.size):
        raise ArgumentError(f"--size must be HEIGHT and WIDTH in pixels, each 1 to {MAX_EDGE}; got "
                            f"{' '.join(map(str, arguments.size))}")
    if not 1 <= arguments.tokens <= MAX_TOKENS:
        raise ArgumentError(f"--tokens must be 1 to {MAX_TOKENS}; got {arguments.tokens}")
    if arguments.threads is not None:
        set_threads(arguments.threads)
    _print(str(bench(arguments.model, tuple(arguments.size), arguments.tokens, arguments.passes, arguments.precision)))
    return 0


def _models(arguments):
    cached = {SHAPES.id, *hub.cached()}
    models = [{"name": m.name, "id": m.id, "bytes": m.bytes, "parameters": m.parameters, "coco_ap": m.coco,
               "coco_in_training": m.coco_in_training, "lvis_ap": m.lvis, "licence": m.licence,
               "cached": m.id in cached} for m in (SHAPES, *PUBLISHED)]
    if arguments.json:
        _print(json.dumps(models, indent=2))
        return 0
    rows = [("name", "MB", "parameters", "COCO", "LVIS", "licence", "cached")]
    for m in models:
        rows.append((m["name"], f"{m['bytes'] / 1e6:.0f}", f"{m['parameters'] / 1e6:.0f} M",
                     f"{m['coco_ap'] or ''}{'*' if m['coco_in_training'] else ' '}", f"{m['lvis_ap'] or ''}",
                     m["licence"] or "", "yes" if m["cached"] else "no"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *figures, licence, is_cached in rows:
        numbers = "  ".join(map(str.rjust, figures, widths[1:5]))
        _print(f"{name:{widths[0]}}  {numbers}  {licence:{widths[5]}}  {is_cached}")
    _print("\nCOCO, LVIS: box AP on COCO val and LVIS minival, as reported by the authors.\n"
           "*: COCO was part of the training data. All other figures are zero-shot.\n"
           "Where no licence is shown, see the model card on the hub.")
    for model in filter(lambda model: hub.hidden(model.name), PUBLISHED):
        _print(f"{model.name} exists in the working directory, which hides that name here. Give the id: {model.id}")
    return 0


def _info(_):
    for name, value in info().items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {'yes' if v else 'NO'}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        _print(f"{name:10} {printable(str(value))}")
    return 0
