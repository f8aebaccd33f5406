"""The command line: arguments in, calls of the surface, text out. No logic of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import Error, __version__, info, load


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, or 1 after an error that was printed."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.verb(arguments)
    except Error as error:
        print(f"minigdino: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="minigdino", description="Find what a text names in an image. No PyTorch.")
    top.add_argument("--version", action="version", version=f"minigdino {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    detect = verbs.add_parser("detect", help="find what a text names in an image",
                              epilog='example: minigdino detect cat.jpg "a cat. a remote control." --out found.png')
    detect.add_argument("image", metavar="IMAGE", help="path of an image")
    detect.add_argument("text", metavar="TEXT", help='what to look for, phrases ended by dots: "a cat. a dog."')
    detect.add_argument("--model", metavar="DIR", help="model directory (default: $MINIGDINO_MODEL)")
    detect.add_argument("--threshold", type=float, default=0.25, metavar="X", help="least score of a box (0.25)")
    detect.add_argument("--text-threshold", type=float, default=0.25, metavar="X",
                        help="least score of a token in the phrase (0.25)")
    detect.add_argument("--size", type=int, nargs=2, metavar=("SHORT", "LONG"), help="edges to resize to, in pixels")
    detect.add_argument("--out", metavar="PATH", type=Path, help="write the picture with its boxes drawn")
    detect.add_argument("--json", action="store_true", help="print JSON instead of a table")
    detect.set_defaults(verb=_detect)

    about = verbs.add_parser("info", help="versions, processor, BLAS, threads, live kernels",
                             epilog="example: minigdino info")
    about.set_defaults(verb=_info)
    return top


def _detect(arguments):
    model = load(arguments.model)
    found = model.detect(arguments.image, arguments.text, threshold=arguments.threshold,
                         text_threshold=arguments.text_threshold, size=arguments.size)
    if arguments.json:
        print(found.to_json(indent=2))
    elif not len(found):
        print(f"nothing scores above {arguments.threshold}")
    else:
        width = max(len(label) for label in found.labels)
        for d in found:
            print(f"{d.label:{width}}  {d.score:.3f}  [{', '.join(f'{v:.1f}' for v in d.box)}]")
    if arguments.out:
        try:
            found.plot(arguments.image).save(arguments.out)
        except (OSError, ValueError) as error:
            print(f"minigdino: {arguments.out}: cannot write a picture there ({error})", file=sys.stderr)
            return 1
        print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


def _info(_):
    for name, value in info().items():
        shown = ", ".join(f"{k} {'yes' if v else 'NO'}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:10} {shown}")
    return 0
