"""Write the model card from the measured figures: python -m training.card figures.json minigdino/models/shapes"""

import argparse
import json
import math
from pathlib import Path

from training.calibrate import ALLOWED, SCENES
from training.evaluate import FALSE_BOX
from training.outlines import SHAPES
from training.scenes import SETS
from training.train import ABSENT_STEPS, BATCH, NAME_BATCH, NAME_STEPS, STEPS
from training.world import COLOURS, HELD_OUT, TILT

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-object-detection
---

# shapes: a small MM Grounding DINO that detects drawn shapes from a text prompt

This checkpoint is part of the minigdino package. It was trained from random weights on drawn scenes. Demonstrations and
tests use it to get meaningful detections without a download.

Its architecture is that of the published MM Grounding DINO models, with small dimensions: 3.2 million parameters and 20
queries. Images are resized to a shortest edge of 128 pixels.

```python
minigdino.detect(image, "a red star. circle. blue thing.", model="shapes")
```

## Classes

| property | values |
|---|---|
| shape | {shapes} |
| colour | {colours} |
| size | a tenth to half of the shortest edge of the image |
| rotation | up to {tilt} degrees |
| overlap | mild |
| background | flat, gradient, textured, photograph-like |

| phrase | meaning |
|---|---|
| "a red star" | objects of this colour and this shape |
| "star" | all objects of this shape |
| "red shape", "red thing" | all objects of this colour |

Articles are optional. Prompts in training have one to five phrases in any order.

## Data

`training/world.py` draws the scenes; no scene repeats. They contain no photographs, no people and no third-party data.
Prompts name some objects of the scene, omit others, and name absent ones.

Eight pairs of colour and shape were neither drawn nor named in training. The zero-shot test is to detect these held-out
pairs by name: {held_out}.

## Recipe

The code is in `training/` of the repository. Training starts from random weights and uses AdamW on two CPU cores.

| stage | what is trained | batches |
|---|---|---|
| 1 | the image backbone, to classify colour and shape at the centre of each object | {name_steps:,} of {name_batch} |
| 2 | transformers' `MMGroundingDinoForObjectDetection` as a whole | {steps:,} of {batch} |
| 3 | the same, with half of the prompts naming only absent objects | {absent_steps:,} of {batch} |

- The published models start from a backbone trained on ImageNet. Here stage 1 replaces that training.
- Stages 2 and 3 use Hungarian matching and the losses of the paper, on the encoder's proposals and on every decoder
  layer.
- After training, the bias of the class head is lowered until at most {allowed} boxes per image score above {threshold}.
  This is measured on {others:,} other scenes whose prompts name only absent objects.

```text
python -m training.train                                                              a little over an hour
python -m training.export minigdino/models/shapes
python -m training.evaluate minigdino/models/shapes --json training/runs/figures.json
python -m training.card training/runs/figures.json minigdino/models/shapes           this page
```

## Figures

| | |
|---|---|
| scenes | {scenes} per row, none of them used in training |
| queries | all 20 |
| score of a phrase | the highest probability among its own tokens |
| AP | as in COCO; a category is the meaning of a phrase |
| measured by | `minigdino evaluate coco --score max --no-clip`, on the sets of `python -m training.sets prompts` |

| scenes | AP | AP50 | AP75 |
|---|---|---|---|
{rows}

False boxes per image when every phrase is absent, at threshold {threshold}: **{false_boxes:.3f}**. Some of these
phrases name the colour or the shape of an object in the image.

## Limits

- The smallest objects, and objects named by their shape only, are the most likely to score below {threshold}.
- The default threshold of 0.25 gives more detections, and more false ones, such as the right colour with another shape.
- Larger images are resized to 128 pixels, so their boxes are less accurate in pixels.
- Other words, and photographs of real objects, give no detections or meaningless ones.
- Not covered by the training: objects smaller than a tenth of the shortest edge, heavy overlap, more than 20 objects,
  and colours between two names.

## Licence

Apache-2.0, as the repository.
"""

ROWS = {
    "seen": "pairs seen in training",
    "unseen": "held-out pairs, named in the prompt",
    "larger": "seen pairs, images of 192 to 512 pixels per side",
    "jpeg": "seen pairs, JPEG quality 50",
    "other": "seen pairs, second drawing style: bent edges, outlines, other proportions",
}


def listed(words: list[str]) -> str:
    """Join words to an English list."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def card(figures: dict) -> str:
    """Write the model card.

    Args:
        figures: result of `training.evaluate.figures`.
    """
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
