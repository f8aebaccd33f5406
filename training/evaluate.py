"""Evaluate a checkpoint: python -m training.evaluate minigdino/models/shapes [--json figures.json]"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from minigdino import cli
from training import sets
from training.predict import Predict, with_minigdino
from training.scenes import SETS, scenes

FALSE_BOX = 0.4  # a box for an absent phrase is a false box above this score


def average_precision(folder: Path, name: str, count: int) -> dict[str, float]:
    """Measure AP, AP50 and AP75 with `minigdino evaluate coco`, on the first `count` scenes of a set.

    Scores are the highest probabilities, and boxes are not clipped, both as in `detect`. The published protocol has
    mean probabilities and clipped boxes.

    Raises:
        RuntimeError: if the command fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        drawn, out = Path(temporary, "drawn"), Path(temporary, "out")
        sets.prompts(drawn, count, name)
        words = ["evaluate", "coco", drawn / sets.ANNOTATIONS, "--images", drawn / sets.IMAGES, "--model", folder,
                 "--score", "max", "--no-clip", "--out", out]
        if cli.main([*map(str, words)]):
            raise RuntimeError("minigdino evaluate has failed, see above")
        table = json.loads((out / "table.json").read_text())["table"]
    return {figure: table[figure] for figure in ("AP", "AP50", "AP75")}


def false_boxes(predict: Predict, count: int) -> float:
    """Count the boxes per image with a score above FALSE_BOX, when every phrase is absent."""
    return float(
        np.mean([(predict(s.image, p.phrases)[1].max(axis=1) > FALSE_BOX).sum() for s, p in scenes("absent", count)])
    )


def figures(folder: Path, count: int) -> dict:
    """Measure all figures of the model card."""
    result = {name: average_precision(folder, name, count) for name in SETS}
    return {"scenes": count, **result, "false_boxes": false_boxes(with_minigdino(folder), count)}


def main() -> None:
    """Print the figures, and write them as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = figures(options.folder, options.scenes)
    for name in SETS:
        print(f"{name:8}", "  ".join(f"{key} {value:.3f}" for key, value in result[name].items()))
    print(f"false boxes per image, all phrases absent, threshold {FALSE_BOX}: {result['false_boxes']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
