"""The command line: parses arguments, calls the library, and prints text."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import warnings
from pathlib import Path

from . import (
    ArgumentError,
    Error,
    PromptWarning,
    __version__,
    detect_run,
    files,
    info,
    load,
    missing,
    outputs,
    set_threads,
    trace,
    use,
    writing,
)
from .checkpoints import hub
from .checkpoints.published import PUBLISHED, SHAPES
from .console import complain, printable, replace_closed_streams, show, write
from .image import MAX_EDGE, endings
from .options import SCORES
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
    replace_closed_streams()
    try:
        try:
            arguments = _parsed(argv)
            with _short_warnings():
                return arguments.command(arguments)
        finally:
            show("", end="")  # what --help wrote: at exit, a failure would not be reported
    except (Error, PromptWarning) as error:  # a warning only if Python's option -W makes it an error
        complain(f"minigdino: {NEWLINE.join(map(printable, MESSAGE_BREAKS.split(str(error))))}")
        return 1
    except KeyboardInterrupt:
        complain("\nminigdino: stopped")
        return INTERRUPTED
    except MemoryError:
        complain("minigdino: there is not enough memory. Use a smaller --size, or a machine with more memory")
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
                complain(f"minigdino: warning: {printable(str(message))}")

        warnings.showwarning = show_short
        yield


NEWLINE = "\n"
# the line breaks that minigdino writes in a message; any other is part of a file name, and is escaped
MESSAGE_BREAKS = re.compile(r"\n(?=---> hint:|Local cache:)")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """Print the usage and a message in which file names are printable, and exit with status 2."""
        super().error(printable(message))

    def parse_known_args(self, args=None, namespace=None):
        """Refuse unknown options here, where the options of the command are known. Other arguments are left over."""
        namespace, rest = super().parse_known_args(args, namespace)
        if unknown := [one.partition("=")[0] for one in rest if one.startswith("-") and one != "-"]:
            from difflib import get_close_matches  # only for a message

            similar = get_close_matches(unknown[0], re.findall(r"--[a-z-]*[a-z]", self.format_help()), n=1)
            hint = f"Did you mean {similar[0]}?" if similar else f"`{self.prog} --help` lists the options"
            self.error(f"unrecognized arguments: {' '.join(rest)}. {hint}")
        return namespace, rest


def _path(text):
    """A path. An empty one, as from an unset variable of a shell, would look like an option that was not given."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path; got ''")
    return Path(text)


def _file(text):
    """A path, or "-" for standard output. A file of that name is ./-"""
    return text if text == files.STDOUT else _path(text)


def _phrase_threshold(text):
    """A phrase and its threshold. The phrase may contain "="."""
    phrase, _, value = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if phrase:
            return phrase, float(value)
    raise argparse.ArgumentTypeError(f'expected a phrase and a number, such as "a cat=0.4"; got {text!r}')


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
              "       minigdino detect SOURCE [SOURCE ...] --phrase P [--phrase P ...] [options]\n"
              "       minigdino detect SOURCE [SOURCE ...] --phrases FILE [options]",
        epilog='examples:\n  minigdino detect cat.jpg "a cat. a remote control." --out found.png\n'
               "  minigdino detect photos/ --phrase 'st. bernard' --jsonl found.jsonl --resume\n"
               '  minigdino detect clip.mp4 "a dog." --every 5 --jsonl found.jsonl --out found.mp4')
    detect.add_argument("source", nargs="+", metavar="SOURCE",
                        help="an image, a URL, a folder, a glob pattern in quotes, - for an image on standard "
                             "input, a video file, or a camera such as /dev/video0, which Ctrl-C ends. In folders and "
                             "patterns, hidden files are skipped; in folders, videos too. A path given twice is "
                             "processed once. Without --phrase and --phrases, the last argument is TEXT, the prompt: "
                             'phrases that end in dots, such as "a cat. a dog."')
    _add_prompt(detect)
    detect.add_argument("--recursive", action="store_true", help="search the subfolders of folders, too")
    detect.add_argument("--every", type=int, metavar="N",
                        help="take every Nth frame of a video (default: each). Frame 12 of clip.mp4, counted from 0, "
                             "is named clip.mp4#12")
    _add_options(detect)
    detect.add_argument("--threads", type=int, metavar="N",
                        help="number of threads (default: the CPUs that this process may use, or OMP_NUM_THREADS if "
                             "that is less)")
    detect.add_argument("--out", metavar="PATH", type=_drawing,
                        help="draw the detections: a file for one image, a video (.mp4, .mov, .mkv) for one video, or "
                             "a folder, which must exist or end in a slash if there is one image only. The frames of "
                             "clip.mp4 are clip/000000.png, ...")
    detect.add_argument("--crops", metavar="DIR", type=_drawing,
                        help="write the part of the image in each box, as DIR/NAME-0-LABEL.png, ...")
    detect.add_argument("--json", action="store_true",
                        help="print JSON instead of a table: an object for one image, a list for several")
    detect.add_argument("--jsonl", metavar="FILE", type=_file,
                        help="append one line of JSON per image, as soon as it is done; - for standard output, also "
                             "with the next options")
    detect.add_argument("--coco", metavar="FILE", type=_file, help="write all detections as a COCO data set")
    detect.add_argument("--csv", metavar="FILE", type=_file, help="write all detections as CSV")
    detect.add_argument("--resume", action="store_true",
                        help="with --jsonl: skip images that the file already has, also those with an error. The "
                             "model, the prompt and the options must be the same. Paths are compared as text: continue "
                             "in the same working directory")
    detect.add_argument("--overwrite", action="store_true",
                        help="replace existing files of other programs, and those of --jsonl and --csv. Without it, "
                             "only pictures, videos and COCO files that minigdino wrote are replaced. Inputs are "
                             "never replaced")
    detect.add_argument("--categories", metavar="FILE", type=_path,
                        help="with --coco: JSON file with the id of each label, a different int for each")
    detect.add_argument("--image-ids", metavar="FILE", type=_path,
                        help="with --coco: COCO data set with the id of each image, such as the ground truth")
    detect.set_defaults(command=detect_run.run, error=detect.error, verb="detect")

    run = commands.add_parser(
        "run", help="detect objects in very many images, by several processes or machines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="minigdino run SOURCE [SOURCE ...] TEXT --out DIR [options]\n"
              "       minigdino run SOURCE [SOURCE ...] --phrase P [--phrase P ...] --out DIR [options]\n"
              "       minigdino run SOURCE [SOURCE ...] --phrases FILE --out DIR [options]",
        epilog='examples:\n  minigdino run images.parquet "a cat. a remote control." --out found/ --workers 4\n'
               '  minigdino run photos/ "a dog." --out found/ --shard 2/16')
    run.add_argument("source", nargs="+", metavar="SOURCE",
                     help="a manifest (a .jsonl, .csv or .parquet file with id and uri of each image), a shard in "
                          "WebDataset's layout (.tar), a folder, a glob pattern in quotes, an image, or a URL of one "
                          "of them. Without --phrase and --phrases, the last argument is TEXT, the prompt: phrases "
                          'that end in dots, such as "a cat. a dog."')
    _add_prompt(run)
    run.add_argument("--out", metavar="DIR", type=_path, required=True,
                     help="folder for the results, found.jsonl. The same command again continues the file: it skips "
                          "images that are done, and tries those with an error again")
    run.add_argument("--recursive", action="store_true", help="search the subfolders of folders, too")
    run.add_argument("--shard", metavar="I/N",
                     help="detect in one of N parts of the images, such as 1/4, and write found-1-of-4.jsonl. The "
                          "name of an image determines its part")
    run.add_argument("--workers", type=int, metavar="N",
                     help="number of processes, which share the mapped weights (default: 1). One that is killed is "
                          "replaced")
    run.add_argument("--threads", type=int, metavar="T",
                     help="threads of each process (default: the CPUs divided by the number of processes)")
    run.add_argument("--ray", nargs="?", const="", metavar="ADDRESS",
                     help="use the machines of a Ray cluster: --workers are then its actors, with --threads CPUs each "
                          "(default: as many as there is room for, with 1 CPU). Without ADDRESS: $RAY_ADDRESS, else "
                          "this machine. Write it at the end")
    run.add_argument("--allow-errors", action="store_true",
                     help="exit with status 0 although images have an error, for a scheduler that would start it again")
    _add_options(run)
    run.set_defaults(command=_run, error=run.error, verb="run")

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
    verify.add_argument("--coco", metavar="DIR", type=_path,
                        help="compare the AP on the first images of COCO val2017 with the published AP instead. DIR "
                             "has annotations/instances_val2017.json and val2017/")
    verify.add_argument("--limit", type=int, metavar="N",
                        help="with --coco: number of images (default: 200). With more images, the confidence interval "
                             "is smaller")
    verify.set_defaults(command=_verify, error=verify.error)

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
    explain.add_argument("--targets", metavar="FILE", type=_path,
                         help="annotated boxes of the image, to show their matching and losses: COCO annotations, or a "
                              'JSON list of {"box": [left, top, right, bottom], "label": "a cat"}')
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

    train = commands.add_parser(
        "train", help="fine-tune a model on annotated images",
        epilog="example: minigdino train train.json --val val.json --model shapes --out run/")
    train.add_argument("data", metavar="DATA", type=_path, help="annotated images: COCO JSON, or ODVG JSON Lines")
    train.add_argument("--out", metavar="DIR", type=_path, required=True,
                       help="folder of the run, new or empty. When the run is done, it is a model for --model and for "
                            "transformers")
    train.add_argument("--model", metavar="M", help='where to start: directory, model id or "shapes" (default: '
                                                    "$MINIGDINO_MODEL, else grounding-dino-tiny)")
    train.add_argument("--val", metavar="DATA", type=_path,
                       help="annotated images on which AP50 is measured, ten times in a run")
    train.add_argument("--images", metavar="FOLDER", type=_path,
                       help="folder of the images (default: that of DATA, and that of --val)")
    train.add_argument("--steps", type=int, default=1000, metavar="N", help="number of steps (default: 1000)")
    train.add_argument("--rate", type=float, default=1e-4, metavar="X",
                       help="highest learning rate (default: 0.0001). Both backbones have a tenth of it")
    train.add_argument("--batch", type=int, default=1, metavar="N", help="images of a step (default: 1)")
    train.add_argument("--train", choices=("heads", "decoder", "detector", "all"), default="detector",
                       help="what is trained: the heads; the decoder with its heads; the detector, which is all but "
                            "the image and the text backbone (default); or all")
    train.add_argument("--augment", choices=("none", "flip", "crop"), default="flip",
                       help="random changes of images. With flip (default), the features of a frozen image backbone "
                            "are kept on disk. crop also scales and crops, so the backbone runs in every step")
    train.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"),
                       help="shortest and longest edge of the resized images, in pixels (default: the checkpoint's). "
                            "With it, crop does not scale")
    train.add_argument("--phrases", type=int, default=20, metavar="N",
                       help="largest number of phrases in a prompt (default: 20). Those that an image does not contain "
                            "teach the model not to find them")
    train.add_argument("--keep", type=float, default=0.0, metavar="X",
                       help="share of the starting weights in the model that is written, 0 to 1 (default: 0). It keeps "
                            "old abilities. With --resume, a run that is done is written with another share")
    train.add_argument("--remember", metavar="FILE", type=_path, default=(),
                       help="text file with a phrase on each line, for which the model should detect the same as "
                            "before. Word embeddings of the labels' other tokens are trained, too. A step takes almost "
                            "twice the time")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random numbers (default: 0)")
    train.add_argument("--resume", action="store_true",
                       help="continue the run in DIR, which was interrupted. Only --val and --keep may change")
    train.add_argument("--save-every", type=int, default=1, metavar="N",
                       help="steps between two states on disk (default: 1). A killed run loses the steps after the "
                            "last one")
    train.add_argument("--recompute", action="store_true",
                       help="compute inner steps again in the backward pass, which takes less memory and more time")
    _add_precision(train)
    train.add_argument("--threads", type=int, metavar="N",
                       help="number of threads (default: the CPUs that this process may use, or OMP_NUM_THREADS if "
                            "that is less)")
    train.set_defaults(command=_train)

    evaluate = commands.add_parser(
        "evaluate", help="compute the figures of the published tables on an annotated set",
        epilog="example: minigdino evaluate coco instances_val2017.json --images val2017 --model grounding-dino-tiny "
               "--out run/")
    evaluate.add_argument("protocol", choices=("coco", "lvis", "refcoco", "flickr"),
                          help="the data set whose protocol is followed")
    evaluate.add_argument("annotations", metavar="ANNOTATIONS", type=_path,
                          help="annotation file: COCO or LVIS JSON; for refcoco and flickr, that of MDETR")
    evaluate.add_argument("--images", metavar="FOLDER", type=_path, help="folder of the images")
    evaluate.add_argument("--model", metavar="M", help='directory, .safetensors file, model id or "shapes" (default: '
                                                       "$MINIGDINO_MODEL, else grounding-dino-tiny)")
    evaluate.add_argument("--out", metavar="DIR", type=_path,
                          help="folder for the raw detections (detections.jsonl), the table (table.json) and the "
                               "report")
    evaluate.add_argument("--limit", type=int, metavar="N", help="evaluate the first N images only")
    evaluate.add_argument("--shard", metavar="I/N",
                          help="detect in one of N parts of the images, such as 1/4. --merge makes the table of all")
    evaluate.add_argument("--merge", nargs="+", metavar="FILE", type=_path,
                          help="make the table of the raw detections in these files, without a model")
    evaluate.add_argument("--resume", action="store_true",
                          help="continue the run in DIR, which was interrupted, and try images with an error again. "
                               "The model, the annotations and the options must be the same")
    evaluate.add_argument("--overwrite", action="store_true", help="replace existing files in DIR")
    evaluate.add_argument("--report", action="store_true",
                          help="write report.html, too: precision and recall of each category, thresholds, confused "
                               "labels, and pictures of the worst misses. For coco and lvis")
    evaluate.add_argument("--score", choices=("mean", "max"),
                          help="for coco and lvis: score of a name, the mean (default, as published) or the maximum "
                               "over its tokens")
    evaluate.add_argument("--no-clip", action="store_true",
                          help="for coco and lvis: leave parts of boxes that are outside the image, as detect does. By "
                               "default they are clipped, except for coco with a model of the family Grounding DINO")
    evaluate.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"),
                          help="shortest and longest edge of the resized images, in pixels (default: the checkpoint's)")
    evaluate.add_argument("--device", default="cpu", metavar="D", help='"cpu" (default), "cuda" or "cuda:N"')
    _add_precision(evaluate)
    evaluate.add_argument("--threads", type=int, metavar="N",
                          help="number of threads (default: the CPUs that this process may use, or OMP_NUM_THREADS if "
                               "that is less)")
    evaluate.set_defaults(command=_evaluate, error=evaluate.error)

    merge = commands.add_parser(
        "merge", help="check the files of a run, and write them as one",
        usage="minigdino merge PART [PART ...] [options]",
        epilog="example: minigdino merge run/ --parquet found.parquet")
    merge.add_argument("part", nargs="+", metavar="PART", type=_path,
                       help="a folder of `minigdino run`, or files: JSON Lines of `run` or `detect`, or Parquet. Their "
                            "model, prompt and options must be the same, and each image of the run must be in one of "
                            "them")
    merge.add_argument("--jsonl", metavar="FILE", type=_file,
                       help="write a line of JSON per image, by ascending id, after a header; - for standard output, "
                            "also with --coco and --csv")
    merge.add_argument("--parquet", metavar="FILE", type=_file,
                       help="write a row per image, by ascending id, as Parquet")
    merge.add_argument("--coco", metavar="FILE", type=_file,
                       help="write all detections as a COCO data set. Its ids of images are those of the run")
    merge.add_argument("--csv", metavar="FILE", type=_file, help="write all detections as CSV")
    merge.add_argument("--sources", nargs="+", metavar="SOURCE",
                       help="the images of the run, if they are elsewhere now: manifests, folders, patterns or files "
                            "(default: the sources with which the run was begun)")
    merge.add_argument("--recursive", action="store_true", help="with --sources: search subfolders, too")
    merge.add_argument("--allow-missing", action="store_true",
                       help="merge what is there: do not check that all shards and all images are")
    merge.add_argument("--categories", metavar="FILE", type=_path,
                       help="with --coco: JSON file with the id of each label, a different int for each")
    merge.add_argument("--image-ids", metavar="FILE", type=_path,
                       help="with --coco: COCO data set with the id of each image, such as the ground truth")
    merge.add_argument("--overwrite", action="store_true",
                       help="replace existing files. Without it, only COCO files that minigdino wrote are replaced. "
                            "Files of the run are never replaced")
    merge.set_defaults(command=_merge, error=merge.error)

    serve = commands.add_parser("serve", help="run a web server for detection, with a page to try it in",
                                epilog="example: minigdino serve --model shapes --port 8000")
    serve.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, short name, or "shapes" '
                                                    "(default: $MINIGDINO_MODEL, else grounding-dino-tiny if it is "
                                                    "cached, else another cached model, else shapes)")
    serve.add_argument("--workers", type=int, metavar="N",
                       help="number of worker processes, which share the mapped weights (default: one per 2 CPUs)")
    serve.add_argument("--threads", type=int, metavar="T",
                       help="threads of each worker (default: the CPUs divided by the number of workers)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine "
                                                           "only; 0.0.0.0 is every address)")
    serve.add_argument("--port", type=int, default=8000, help="port (default: 8000); 0 for any free one")
    serve.add_argument("--max-pixels", type=int, default=50_000_000, metavar="N",
                       help="largest number of pixels of an image (default: 50000000)")
    serve.add_argument("--max-bytes", type=int, default=20_000_000, metavar="N",
                       help="largest number of bytes of a request (default: 20000000)")
    serve.add_argument("--queue", type=int, default=32, metavar="Q",
                       help="largest number of requests that wait for a worker (default: 32). Others get the status "
                            "503, with the seconds after which to try again")
    serve.add_argument("--timeout", type=float, default=60, metavar="S",
                       help="seconds in which a request must be answered (default: 60); else it gets the status 504")
    _add_precision(serve)
    serve.add_argument("--max-memory", type=int, metavar="MB",
                       help="replace a worker after a request if its own memory, without mapped weights, exceeds this")
    serve.add_argument("--allow-urls", action="store_true",
                       help="accept URLs in place of images, of public addresses only")
    serve.add_argument("--api-key", metavar="KEY",
                       help="key that requests must have (default: $MINIGDINO_API_KEY, which other users of this "
                            "machine cannot see; without either, none is needed)")
    serve.add_argument("--cors", action="append", metavar="ORIGIN",
                       help="origin of web pages that may use the server from a browser, such as https://example.org; "
                            "repeatable")
    serve.set_defaults(command=_serve)

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
    if rest and not hasattr(arguments, "verb"):
        quotes = ". Put a TEXT of several words in quotes" if hasattr(arguments, "text") else ""
        top.error(f"unrecognized arguments: {' '.join(rest)}{quotes}")
    if rest:
        arguments.source += rest
    return arguments


def _add_prompt(command):
    """Add the prompt, as `detect_arguments.sources_and_text` reads it."""
    command.add_argument("--phrase", action="append", metavar="P",
                         help="one phrase of the prompt, instead of TEXT; repeatable")
    command.add_argument("--phrases", metavar="FILE", type=_path,
                         help="text file with a phrase on each line, instead of TEXT; any number of them")


def _add_options(command):
    """Add the model, the options that `detect_arguments.options` reads, and where they run."""
    command.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, short name (see '
                                                      '`minigdino models`), or "shapes" (default: $MINIGDINO_MODEL, '
                                                      "else grounding-dino-tiny)")
    command.add_argument("--threshold", type=float, default=0.25, metavar="X",
                         help="score that a detection must exceed (default: 0.25)")
    command.add_argument("--phrase-threshold", action="append", type=_phrase_threshold, metavar="P=X",
                         help='score that a detection of one phrase must exceed, such as "a cat=0.4"; repeatable')
    command.add_argument("--text-threshold", type=float, default=0.25, metavar="X",
                         help='probability that a token must exceed to become part of "phrase" (default: 0.25)')
    command.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"),
                         help="shortest and longest edge of the resized image, in pixels (default: the checkpoint's)")
    command.add_argument("--score", choices=SCORES, default="max",
                         help='"max" (default): the score is the highest probability of any token. "mean": the highest '
                              "mean probability of the tokens of a phrase")
    command.add_argument("--max-area", type=float, metavar="X",
                         help="largest fraction of the image that a box may cover")
    command.add_argument("--nms", type=float, metavar="X",
                         help="non-maximum suppression: remove a detection that overlaps a better one with the same "
                              "label by an IoU of more than X")
    command.add_argument("--class-agnostic", action="store_true",
                         help="with --nms or --tile: also if the better one has another label")
    command.add_argument("--max-detections", type=int, metavar="N", help="keep the N best detections of an image")
    command.add_argument("--tile", type=int, metavar="N",
                         help="detect in overlapping tiles of N x N pixels, too, to find small objects in a large "
                              "image. Sets --nms to 0.5 by default")
    command.add_argument("--chunk", type=int, metavar="N",
                         help="with --phrase or --phrases: largest number of phrases of a prompt (default: as many as "
                              "fit). More phrases are split over several forward passes")
    command.add_argument("--device", default="cpu", help='"cpu" (default), "cuda" or "cuda:N"')
    _add_precision(command)


def _add_precision(command):
    command.add_argument("--precision", choices=PRECISIONS,
                         help="precision of the matrix products (default: $MINIGDINO_PRECISION, else highest). Lower "
                              "ones are faster on CPUs with AMX, and medium on AMD CPUs with AVX512-BF16")


def _run(arguments):
    from .runs.run_command import run

    return run(arguments)


def _download(arguments):
    show(str(hub.download(arguments.id, arguments.revision)))
    return 0


def _verify(arguments):
    from .evaluation.verify import verify

    if arguments.coco:
        return _verify_ap(arguments)
    if arguments.limit is not None:
        arguments.error("--limit needs --coco DIR, the folder of COCO")
    report = verify(arguments.id or hub.DEFAULT, arguments.image, arguments.model)
    show(printable(str(report), keep=NEWLINE))
    return report.status


def _verify_ap(arguments):
    from .evaluation.published_ap import LIMIT, verify_ap
    from .progress import Progress

    if arguments.image:
        arguments.error("--image is for verify without --coco, whose images are those of the data set")
    limit = LIMIT if arguments.limit is None else arguments.limit
    progress = Progress(sys.stderr, limit)
    try:
        report = verify_ap(arguments.coco, arguments.id or hub.DEFAULT, arguments.model, limit=limit,
                           on_image=progress.step)
    finally:
        progress.close()
    show(printable(str(report), keep=NEWLINE))
    return report.status


def _trace(arguments):
    from .inspection.tree import tree

    model = load(arguments.model)
    with use("reference" if arguments.reference else mode()), trace() as steps:
        model.detect(arguments.image, arguments.text)
    show(tree(steps, arguments.depth, not arguments.no_steps))
    return 0


def _explain(arguments):
    from .inspection.explain import is_page, page, read

    missing.check_order(arguments.image, arguments.text)
    outputs.check_paths([("the image", arguments.image), ("--targets", arguments.targets),
                         *outputs.model_files(arguments.model)], [("--out", arguments.out)])
    if not arguments.overwrite:
        writing.check_replaceable(arguments.out, is_page)
    writing.check_writable(arguments.out)
    if arguments.out.suffix.lower() in endings():
        raise ArgumentError(f"{arguments.out}: expected the name of an HTML page for --out; got that of an image. "
                            "Choose another ending, such as .html")
    guide = None if arguments.guide is None else arguments.guide.rstrip("/") + "/"
    targets = None if arguments.targets is None else read(arguments.targets, arguments.image)
    html = page(load(arguments.model), arguments.image, arguments.text, guide, targets)
    write(arguments.out, html.encode("utf-8", "backslashreplace"))
    return 0


def _train(arguments):
    from .learning.command import run

    if arguments.threads is not None:
        set_threads(arguments.threads)
    run(arguments, lambda line: show(printable(line)))
    return 0


def _evaluate(arguments):
    from .evaluation.evaluate import run

    return run(arguments)


def _merge(arguments):
    from .runs.merge import run

    return run(arguments)


def _serve(arguments):
    from .serving.server import run

    run(arguments)
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
    show(str(bench(arguments.model, tuple(arguments.size), arguments.tokens, arguments.passes, arguments.precision)))
    return 0


def _models(arguments):
    cached = {SHAPES.id, *hub.cached()}
    models = [{"name": m.name, "id": m.id, "bytes": m.bytes, "parameters": m.parameters, "coco_ap": m.coco,
               "coco_in_training": m.coco_in_training, "lvis_ap": m.lvis, "licence": m.licence,
               "licence_source": m.licence_source, "cached": m.id in cached} for m in (SHAPES, *PUBLISHED)]
    if arguments.json:
        show(json.dumps(models, indent=2))
        return 0
    rows = [("name", "MB", "parameters", "COCO", "LVIS", "licence", "cached")]
    for m in models:
        rows.append((m["name"], f"{m['bytes'] / 1e6:.0f}", f"{m['parameters'] / 1e6:.0f} M",
                     f"{m['coco_ap'] or ''}{'*' if m['coco_in_training'] else ' '}", f"{m['lvis_ap'] or ''}",
                     m["licence"] + "**" * (m["licence_source"] == "repository"), "yes" if m["cached"] else "no"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *figures, licence, is_cached in rows:
        numbers = "  ".join(map(str.rjust, figures, widths[1:5]))
        show(f"{name:{widths[0]}}  {numbers}  {licence:{widths[5]}}  {is_cached}")
    show("\nCOCO, LVIS: box AP on COCO val and LVIS minival, as reported by the authors.\n"
           "*: COCO was part of the training data. All other figures are zero-shot.\n"
           "**: the licence of the authors' repository, which links to the weights. The model card may say more.")
    for model in filter(lambda model: hub.hidden(model.name), PUBLISHED):
        show(f"{model.name} exists in the working directory, which hides that name here. Give the id: {model.id}")
    return 0


def _info(_):
    for name, value in info().items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {'yes' if v else 'NO'}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        show(f"{name:10} {printable(str(value))}")
    return 0
