"""Write the model card from measured figures: python -m training.card figures.json minigdino/models/shapes"""

import argparse
import json
import math
from pathlib import Path

from training.calibrate import ALLOWED, SCENES
from training.evaluate import FALSE_BOX, SETS
from training.outlines import SHAPES
from training.train import ABSENT_STEPS, BATCH, NAME_BATCH, NAME_STEPS, STEPS
from training.world import COLOURS, HELD_OUT, TILT

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-object-detection
---

# shapes: a small MM Grounding DINO that finds drawn shapes by name

The checkpoint inside minigdino: the architecture of the published MM Grounding DINO models, small in every direction
(3.2 million parameters, 20 queries, pictures resized to a short edge of 128 pixels), trained from nothing on drawn
scenes. It shows words finding things without a download, and gives tests a model whose detections mean something.

```python
minigdino.detect(image, "a red star. circle. blue thing.", model="shapes")
```

## What it knows

- {shapes}
- in {colours}
- sizes from a tenth to half of the picture's short edge, turned by up to {tilt} degrees, mild overlap, on flat,
  gradient, textured and photograph-like backgrounds.

A phrase is a colour and a shape ("a red star"), a shape ("star": every star) or a colour ("red shape", "red thing":
every red object), with or without an article, in any order; one to five of them in training.

## Data

Scenes drawn by `training/world.py`, never twice the same: no photographs, no people, no third-party data. Prompts name
some of what is in the scene, leave some out, and name things that are not there. These pairs were never drawn nor named
in training; finding them by name is the zero-shot test: {held_out}.

## Recipe

`training/` in the repository, from random weights, on two CPU cores. First the image backbone alone learns to name the
colour and the shape at the centre of each thing, {name_steps:,} batches of {name_batch}; the published models begin
from a backbone trained on ImageNet. Then transformers' `MMGroundingDinoForObjectDetection` as a whole, {steps:,}
batches of {batch}: Hungarian matching and the paper's losses on the encoder's proposals and on every decoder layer.
At last {absent_steps:,} more, in which half of all prompts name only what is not there. All with AdamW. Then the class
head's bias is lowered until, on {others:,} other scenes, {allowed} boxes a picture score above {threshold} where
nothing fits.

```text
python -m training.train                                                              a little over an hour
python -m training.export minigdino/models/shapes
python -m training.evaluate minigdino/models/shapes --json training/runs/figures.json
python -m training.card training/runs/figures.json minigdino/models/shapes           this page
```

## Figures

On {scenes} fresh scenes each, all 20 queries counted; a phrase's score is the highest probability among its own tokens;
AP as in COCO, a category being what a phrase means.

| scenes | AP | AP50 | AP75 |
|---|---|---|---|
{rows}

False boxes per picture when every phrase is absent (some half true: the right colour on the wrong shape), at threshold
{threshold}: **{false_boxes:.3f}**.

## Limits

The smallest things, and those asked for by shape alone, are the ones that most often score below {threshold}. The
default threshold of 0.25 finds more, and more that is wrong: the right colour on another shape. Larger pictures are
resized to 128 pixels all the same, so boxes on them are looser in pixels.

It knows nothing but these shapes and colours. Other words find nothing or nonsense; photographs of things hold no
shapes for it. Things smaller than a tenth of the short edge, heavy overlap, more than 20 things, and colours between
two names are outside what it was taught.

## Licence

Apache-2.0, as the repository.
"""

ROWS = {
    "seen": "pairs seen in training",
    "unseen": "pairs never seen, by name",
    "larger": "seen pairs, pictures of 192 to 512 pixels a side",
    "jpeg": "seen pairs, JPEG quality 50",
    "other": "seen pairs, another drawing: bent edges, pencil lines, other proportions",
}


def listed(words: list[str]) -> str:
    """As an English list."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def card(figures: dict) -> str:
    """The page."""
    row = "| {} | {AP:.3f} | {AP50:.3f} | {AP75:.3f} |"
    return CARD.format(
        shapes=listed(list(SHAPES)),
        colours=listed(list(COLOURS)),
        held_out=listed([" ".join(pair) for pair in HELD_OUT]),
        name_steps=NAME_STEPS,
        name_batch=NAME_BATCH,
        steps=STEPS,
        absent_steps=ABSENT_STEPS,
        batch=BATCH,
        threshold=FALSE_BOX,
        tilt=round(math.degrees(TILT)),
        others=SCENES,
        allowed=ALLOWED,
        scenes=figures["scenes"],
        rows="\n".join(row.format(ROWS[name], **figures[name]) for name in SETS),
        false_boxes=figures["false_boxes"],
    )


def main() -> None:
    """Write README.md beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    (options.folder / "README.md").write_text(card(json.loads(options.figures.read_text())))


if __name__ == "__main__":
    main()
