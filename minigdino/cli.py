"""The command line: parses arguments, calls the library, and prints text."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import ArgumentError, Error, __version__, files, info, load, set_threads, trace, use
from .checkpoints import hub
from .runtime.kernels import mode

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
    arguments = parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except Error as error:
        print(f"minigdino: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nminigdino: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the program that reads the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    top = argparse.ArgumentParser(prog="minigdino", description="Detect objects in images from a text prompt. No "
                                                                "PyTorch.")
    top.add_argument("--version", action="version", version=f"minigdino {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    detect = commands.add_parser(
        "detect", help="detect objects in images", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="minigdino detect SOURCE [SOURCE ...] TEXT [options]\n"
              "       minigdino detect SOURCE [SOURCE ...] --phrase P [--phrase P ...] [options]",
        epilog='examples:\n  minigdino detect cat.jpg "a cat. a remote control." --out found.png\n'
               "  minigdino detect photos/ --phrase 'st. bernard' --jsonl found.jsonl --resume")
    detect.add_argument("source", nargs="+", metavar="SOURCE",
                        help="an image, a folder, a glob pattern in quotes, or - for an image on standard input. "
                             "Without --phrase, the last argument is TEXT, the prompt: phrases that end in dots, such "
                             'as "a cat. a dog."')
    detect.add_argument("--phrase", action="append", metavar="P",
                        help="one phrase of the prompt, instead of TEXT; repeatable")
    detect.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, or "shapes" '
                                                     "(default: $MINIGDINO_MODEL, else grounding-dino-tiny)")
    detect.add_argument("--threshold", type=float, default=0.25, metavar="X",
                        help="score that a detection must exceed (default: 0.25)")
    detect.add_argument("--text-threshold", type=float, default=0.25, metavar="X",
                        help='probability that a token must exceed to become part of "phrase" (default: 0.25)')
    detect.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"),
                        help="shortest and longest edge of the resized image, in pixels (default: the checkpoint's)")
    detect.add_argument("--device", default="cpu", help='"cpu" (default), "cuda" or "cuda:N"')
    detect.add_argument("--threads", type=int, metavar="N", help="number of threads (default: all available CPUs)")
    detect.add_argument("--out", metavar="PATH", type=Path,
                        help="draw the detections: a file for one image, a folder for several")
    detect.add_argument("--json", action="store_true",
                        help="print JSON instead of a table: an object for one image, a list for several")
    detect.add_argument("--jsonl", metavar="FILE", help="append one line of JSON per image, as soon as it is done")
    detect.add_argument("--resume", action="store_true", help="with --jsonl: skip images that the file already has")
    detect.add_argument("--coco", metavar="FILE", help="write all detections as a COCO data set")
    detect.add_argument("--categories", metavar="FILE", help="with --coco: JSON file with the id of each label")
    detect.set_defaults(command=_detect, error=detect.error)

    download = commands.add_parser("download", help="download a published checkpoint into the local hub cache",
                                   epilog="example: minigdino download iSEE-Laboratory/llmdet_tiny")
    download.add_argument("id", metavar="ID", help="owner/name on the hub")
    download.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    download.set_defaults(command=_download)

    verify = commands.add_parser("verify", help="compare a published checkpoint with its published results",
                                 epilog="example: minigdino verify IDEA-Research/grounding-dino-tiny")
    verify.add_argument("id", metavar="ID", nargs="?",
                        help="the checkpoint whose published results are expected (default: grounding-dino-tiny)")
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
    explain.add_argument("--out", metavar="PAGE", type=Path, required=True, help="the HTML file to write")
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
    bench.add_argument("--threads", type=int, metavar="N", help="number of threads (default: all available CPUs)")
    bench.set_defaults(command=_bench)

    about = commands.add_parser("info", help="print versions, CPU, BLAS, threads, compiled kernels, and models found",
                                epilog="example: minigdino info")
    about.set_defaults(command=_info)
    return top


def _detect(arguments):
    *sources, text = arguments.source if not arguments.phrase else [*arguments.source, arguments.phrase]
    if not sources:
        arguments.error('give an image and a text: minigdino detect cat.jpg "a cat."')
    if arguments.threads is not None:
        set_threads(arguments.threads)
    # before the first forward pass, check all arguments that concern every image
    images = files.find_images(sources)
    many = images != sources or len(sources) > 1  # True for a folder or a pattern, even with one image
    model = load(arguments.model, device=arguments.device)
    categories = _categories(arguments.categories, model.tokenize(text).phrases)
    pictures = _pictures(arguments.out, images, many) if arguments.out else {}
    lines = files.JsonLines(arguments.jsonl, arguments.resume) if arguments.jsonl else None
    images = [image for image in images if not lines or image not in lines.done]
    found = []

    def on_result(image, result):
        found.append((image, result))
        if isinstance(result, Error):
            print(f"minigdino: {result}", file=sys.stderr)
        if lines:
            lines.write(files.record(image, result))
        if not arguments.json and not isinstance(result, Error) and not (lines and many):
            _print_table(image if many else None, result, arguments.threshold)
        if pictures and not isinstance(result, Error):
            picture = result.plot()
            _write(pictures[image], lambda path: picture.save(path))

    failed = files.detect_each(model, images, text, on_result=on_result, threshold=arguments.threshold,
                               text_threshold=arguments.text_threshold, size=arguments.size,
                               progress=sys.stderr if many and sys.stderr.isatty() else None)
    if arguments.json:
        records = [files.record(*pair) for pair in found]
        print(json.dumps(records if many or not records else records[0], indent=2))  # none left after --resume: []
    if arguments.coco:
        detected = [pair for pair in found if not isinstance(pair[1], Error)]
        text = json.dumps(files.coco(detected, categories)) + "\n"
        _write(Path(arguments.coco), lambda path: path.write_text(text, encoding="utf-8"))
    return 1 if failed else 0


def _categories(path, phrases):
    """{label: id} from a file that must contain every phrase; without a file, ids from 1 in the prompt's order."""
    if not path:
        return {phrase: i for i, phrase in enumerate(dict.fromkeys(phrases), start=1)}
    categories = files.read_categories(path)
    if missing := [phrase for phrase in phrases if phrase not in categories]:
        raise ArgumentError(f"{path} must have an id for each phrase; it has no id for {missing[0]!r}, only for "
                            f"{', '.join(map(repr, categories))}. Add it")
    return categories


def _pictures(out, images, many):
    """{image: output file}. `out` is the file for one image, or a folder that reproduces the folders of the images."""
    if not many and not out.is_dir():
        return {images[0]: out}
    if out.is_file() or (out.suffix and not out.exists()):
        raise ArgumentError(f"{out}: several images need a folder to write to. Give --out the name of a folder")
    paths = {image: Path("stdin" if image == files.STDIN else image).absolute() for image in images}
    top = os.path.commonpath([path.parent for path in paths.values()])
    outputs = {image: out / path.relative_to(top).with_suffix(".png") for image, path in paths.items()}
    taken = {}
    for image, output in outputs.items():
        if (other := taken.setdefault(output, image)) != image:
            raise ArgumentError(f"{other} and {image} would both be drawn to {output}. Draw them in two runs")
    return outputs


def _write(path, write):
    """Call `write(path)`, after creating the folder. An error becomes an ArgumentError with its reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: cannot write there ({error}). Choose another path") from None
    print(f"wrote {path}", file=sys.stderr)


def _print_table(image, found, threshold):
    if image:
        print(f"{image}:")
    if not len(found):
        print(f"nothing scores above {threshold}")
    width = max(map(len, found.labels), default=0)
    for d in found:
        print(f"{d.label:{width}}  {d.score:.3f}  [{', '.join(f'{v:.1f}' for v in d.box)}]", flush=True)


def _download(arguments):
    print(hub.download(arguments.id, arguments.revision))
    return 0


def _verify(arguments):
    from .evaluation.verify import verify

    report = verify(arguments.id or hub.DEFAULT, arguments.image, arguments.model)
    print(report)
    return report.status


def _trace(arguments):
    from .inspection.tree import tree

    model = load(arguments.model)
    with use("reference" if arguments.reference else mode()), trace() as steps:
        model.detect(arguments.image, arguments.text)
    print(tree(steps, arguments.depth, not arguments.no_steps))
    return 0


def _explain(arguments):
    from .inspection.explain import page

    guide = None if arguments.guide is None else arguments.guide.rstrip("/") + "/"
    html = page(load(arguments.model), arguments.image, arguments.text, guide)
    _write(arguments.out, lambda path: path.write_text(html, encoding="utf-8"))
    return 0


def _bench(arguments):
    from .runtime.bench import bench

    if arguments.passes < 1:
        raise ArgumentError(f"--passes must be 1 or more; got {arguments.passes}")
    if min(arguments.size) < 1:
        raise ArgumentError("--size must be HEIGHT and WIDTH in pixels, each 1 or more; got "
                            f"{' '.join(map(str, arguments.size))}")
    if arguments.threads is not None:
        set_threads(arguments.threads)
    print(bench(arguments.model, tuple(arguments.size), arguments.tokens, arguments.passes))
    return 0


def _info(_):
    for name, value in info().items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {'yes' if v else 'NO'}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"{name:10} {value}")
    return 0
