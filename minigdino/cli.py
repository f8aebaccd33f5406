"""The command line: arguments in, calls of the surface, text out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import ArgumentError, Error, __version__, files, info, load, set_threads, trace, use
from .checkpoints import hub
from .runtime.kernels import mode

INTERRUPTED = 130  # what shells expect after Ctrl-C


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0; 1 after an error that was printed; 2 for wrong arguments."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.verb(arguments)
    except Error as error:
        print(f"minigdino: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nminigdino: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="minigdino", description="Find what a text names in an image. No PyTorch.")
    top.add_argument("--version", action="version", version=f"minigdino {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    detect = verbs.add_parser(
        "detect", help="find what a text names in images", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="minigdino detect SOURCE [SOURCE ...] TEXT [options]\n"
              "       minigdino detect SOURCE [SOURCE ...] --phrase A [--phrase B ...] [options]",
        epilog='examples:\n  minigdino detect cat.jpg "a cat. a remote control." --out found.png\n'
               "  minigdino detect photos/ --phrase 'st. bernard' --jsonl found.jsonl --resume")
    detect.add_argument("source", nargs="+", metavar="SOURCE",
                        help="an image, a folder, a glob in quotes, or - for an image on standard input; then "
                             'TEXT, what to look for, phrases ended by dots: "a cat. a dog."')
    detect.add_argument("--phrase", action="append", metavar="P",
                        help="one phrase to look for, instead of TEXT; repeatable")
    detect.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, or "shapes" '
                                                     "(default: $MINIGDINO_MODEL, else grounding-dino-tiny)")
    detect.add_argument("--threshold", type=float, default=0.25, metavar="X", help="boxes must score above it (0.25)")
    detect.add_argument("--text-threshold", type=float, default=0.25, metavar="X",
                        help="tokens above it make up the phrase (0.25)")
    detect.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"), help="edges to resize to, in pixels")
    detect.add_argument("--device", default="cpu", help='where to compute: "cpu" (the default), "cuda" or "cuda:N"')
    detect.add_argument("--threads", type=int, metavar="N", help="threads to compute with (all processors)")
    detect.add_argument("--out", metavar="PATH", type=Path,
                        help="write the picture with its boxes drawn: a file for one image, a folder for several")
    detect.add_argument("--json", action="store_true", help="print JSON instead of a table: an object, for several "
                                                            "images a list")
    detect.add_argument("--jsonl", metavar="FILE", help="append one JSON line an image, as it is done")
    detect.add_argument("--resume", action="store_true", help="with --jsonl: skip images the file already has")
    detect.add_argument("--coco", metavar="FILE", help="write a COCO file of all boxes")
    detect.add_argument("--categories", metavar="FILE", help="with --coco: ids of the labels, as JSON")
    detect.set_defaults(verb=_detect, error=detect.error)

    download = verbs.add_parser("download", help="fetch a published checkpoint into the local hub cache",
                                epilog="example: minigdino download iSEE-Laboratory/llmdet_tiny")
    download.add_argument("id", metavar="ID", help="owner/name on the hub")
    download.add_argument("--revision", metavar="R", help="branch, tag or commit (main)")
    download.set_defaults(verb=_download)

    verify = verbs.add_parser("verify", help="compare a published checkpoint with its published numbers",
                              epilog="example: minigdino verify IDEA-Research/grounding-dino-tiny")
    verify.add_argument("id", metavar="ID", nargs="?", help="whose numbers (grounding-dino-tiny)")
    verify.add_argument("--model", metavar="M", help="run this directory instead of the checkpoint from the hub")
    verify.add_argument("--image", metavar="PATH", help="the COCO image 000000039769, instead of fetching it")
    verify.set_defaults(verb=_verify)

    trace = verbs.add_parser("trace", help="print a pass as a tree: steps, shapes, milliseconds, places in the papers",
                             epilog='example: minigdino trace cat.jpg "a cat." --model shapes --depth 3')
    trace.add_argument("image", metavar="IMAGE", help="a picture")
    trace.add_argument("text", metavar="TEXT", help='what to look for: "a cat. a dog."')
    trace.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, or "shapes"')
    trace.add_argument("--depth", type=int, default=4, metavar="N", help="calls within calls to show (4)")
    trace.add_argument("--no-steps", action="store_true", help="functions only, not the arrays they name")
    trace.add_argument("--reference", action="store_true", help="run the NumPy formulas, to see inside compiled twins")
    trace.set_defaults(verb=_trace)

    explain = verbs.add_parser("explain", help="write a pass as one HTML page with pictures of every stage",
                               epilog='example: minigdino explain cat.jpg "a cat." --out page.html')
    explain.add_argument("image", metavar="IMAGE", help="a picture")
    explain.add_argument("text", metavar="TEXT", help='what to look for: "a cat. a dog."')
    explain.add_argument("--out", metavar="PAGE", type=Path, required=True, help="the HTML file to write")
    explain.add_argument("--model", metavar="M", help='directory, .safetensors file, model id, or "shapes"')
    explain.add_argument("--guide", metavar="URL",
                         help="the guide that `make docs` builds, as the page sees it: captions then lead there")
    explain.set_defaults(verb=_explain)

    bench = verbs.add_parser("bench", help="where the seconds of a pass go, stage by stage",
                             epilog="example: minigdino bench --size 480 640 --passes 3")
    bench.add_argument("--model", metavar="M", help='directory, model id or "shapes" (the tiny geometry, random)')
    bench.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(800, 1066),
                       help="pixels of the image (800 1066)")
    bench.add_argument("--tokens", type=int, default=9, metavar="T", help="length of the prompt (9)")
    bench.add_argument("--passes", type=int, default=5, metavar="N", help="measured passes, after one that is not (5)")
    bench.add_argument("--threads", type=int, metavar="N", help="threads to compute with (all processors)")
    bench.set_defaults(verb=_bench)

    about = verbs.add_parser("info", help="versions, processor, BLAS, threads, live kernels, models found",
                             epilog="example: minigdino info")
    about.set_defaults(verb=_info)
    return top


def _detect(arguments):
    *sources, text = arguments.source if not arguments.phrase else [*arguments.source, arguments.phrase]
    if not sources:
        arguments.error('give an image and a text: minigdino detect cat.jpg "a cat."')
    if arguments.threads is not None:
        set_threads(arguments.threads)
    # whatever can be wrong for all images is said once, before the first
    images = files.find_images(sources)
    many = images != sources or len(sources) > 1  # else: one image, named as such
    model = load(arguments.model, device=arguments.device)
    categories = _categories(arguments.categories, model.tokenize(text).phrases)
    pictures = _pictures(arguments.out, images, many) if arguments.out else {}
    lines = files.JsonLines(arguments.jsonl, arguments.resume) if arguments.jsonl else None
    images = [image for image in images if not lines or image not in lines.done]
    found = []

    def seen(image, result):
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

    failed = files.detect_each(model, images, text, seen=seen, threshold=arguments.threshold,
                               text_threshold=arguments.text_threshold, size=arguments.size,
                               progress=sys.stderr if many and sys.stderr.isatty() else None)
    if arguments.json:
        records = [files.record(*pair) for pair in found]
        print(json.dumps(records if many else records[0], indent=2))
    if arguments.coco:
        good = [pair for pair in found if not isinstance(pair[1], Error)]
        text = json.dumps(files.coco(good, categories)) + "\n"
        _write(Path(arguments.coco), lambda path: path.write_text(text, encoding="utf-8"))
    return 1 if failed else 0


def _categories(path, phrases):
    """Label -> id: from the file, which must know every phrase, else from 1 in the prompt's order."""
    if not path:
        return {phrase: i for i, phrase in enumerate(dict.fromkeys(phrases), start=1)}
    known = files.read_categories(path)
    if strange := [phrase for phrase in phrases if phrase not in known]:
        raise ArgumentError(f"{path} has no id for {strange[0]!r}; it knows {', '.join(map(repr, known))}")
    return known


def _pictures(out, images, many):
    """Where each image's picture goes: the file itself, or below the folder as the images lie below theirs."""
    if not many and not out.is_dir():
        return {images[0]: out}
    if out.is_file() or (out.suffix and not out.exists()):
        raise ArgumentError(f"{out}: several images need a folder to write to")
    paths = {image: Path("stdin" if image == files.STDIN else image).absolute() for image in images}
    top = os.path.commonpath([path.parent for path in paths.values()])
    places = {image: out / path.relative_to(top).with_suffix(".png") for image, path in paths.items()}
    taken = {}
    for image, place in places.items():
        if (other := taken.setdefault(place, image)) != image:
            raise ArgumentError(f"{other} and {image} would both be drawn to {place}; draw them in two runs")
    return places


def _write(path, write):
    """Write a file, or say why not: a missing folder is made, a full disk is named."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: cannot write there ({error})") from None
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
    with use("reference" if arguments.reference else mode()), trace() as seen:
        model.detect(arguments.image, arguments.text)
    print(tree(seen, arguments.depth, not arguments.no_steps))
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
        raise ArgumentError(f"--size is pixels, height before width; got {' '.join(map(str, arguments.size))}")
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
