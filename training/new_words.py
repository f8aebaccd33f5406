"""Data of docs/howto/fine-tune.md: pictures with a new shape, the crescent, and a new colour, turquoise.

python -m training.new_words draw FOLDER [--pictures 50]     writes train.json, val.json and their pictures
python -m training.new_words measure MODEL [--pictures 100]  prints AP50 on new and on old words
                                           [--validation]    in other pictures, to choose settings by
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

import minigdino
from minigdino.learning.average_precision import AveragePrecision
from training import scenes
from training.outlines import NEW_SHAPES, SHAPES
from training.predict import with_minigdino
from training.world import COLOURS, NEW_COLOURS, SEEN, Scene, draw_scene

NEW = tuple((colour, shape) for colour in (*COLOURS, *NEW_COLOURS) for shape in (*SHAPES, *NEW_SHAPES)
            if colour in NEW_COLOURS or shape in NEW_SHAPES)
TRAIN, VALIDATION, TEST = range(3)
SEED = 7
OLD_SEEDS = {VALIDATION: scenes.SEED + 1, TEST: scenes.SEED}  # of scenes with old words


def scene(kind: int, number: int) -> Scene:
    """Draw a picture in which half of the objects are new: the same one for the same kind and number.

    Args:
        kind: TRAIN, VALIDATION or TEST.
        number: number of the picture.
    """
    rng = np.random.default_rng([SEED, kind, number])
    pairs = NEW * (len(SEEN) // len(NEW)) + SEEN
    while not (found := draw_scene(rng, pairs)).things:
        pass
    return found


def draw(folder: Path, kind: int, pictures: int, name: str) -> None:
    """Write pictures, and their annotations in COCO format. The category of an object is its colour and its shape."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations, categories = [], [], {}
    for number in range(pictures):
        found, file = scene(kind, number), f"{name}/{number}.png"
        Image.fromarray(found.image).save(folder / file)
        images.append({"id": number, "file_name": file})
        for thing in found.things:
            left, top, right, bottom = thing.box
            category = categories.setdefault(f"{thing.colour} {thing.shape}", len(categories))
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category,
                                "bbox": [left, top, right - left, bottom - top]})
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": number, "name": text} for text, number in categories.items()]}
    (folder / f"{name}.json").write_text(json.dumps(content) + "\n")


def measure(model: minigdino.Model, pictures: int, kind: int = TEST) -> dict[str, float]:
    """AP50 on new words, such as "red crescent", and on old words in scenes as those of the model card.

    A prompt names the new objects of a picture, and two new ones that it does not contain.

    Args:
        model: the model, loaded from a folder.
        pictures: number of pictures, and of scenes.
        kind: VALIDATION, or TEST for the scenes of the model card.
    """
    result, words = AveragePrecision(), [f"{colour} {shape}" for colour, shape in NEW]
    for number in range(pictures):
        found = scene(kind, number)
        present = list(dict.fromkeys(name for t in found.things if (name := f"{t.colour} {t.shape}") in words))
        absent = [word for word in words if word not in present]
        rng = np.random.default_rng([SEED, number])
        phrases = [*present, *rng.choice(absent, 2, replace=False).tolist()]
        detections = model.detect(found.image, phrases, threshold=0.0)
        for i, phrase in enumerate(phrases):
            truth = np.array([t.box for t in found.things if f"{t.colour} {t.shape}" == phrase]).reshape(-1, 4)
            chosen = detections.label_ids == i
            result.add(phrase, detections.boxes[chosen], detections.scores[chosen], truth)
    return {"new": result.mean(), "old": old(model.source, pictures, OLD_SEEDS[kind])}


def old(folder: str | Path, pictures: int, seed: int = scenes.SEED) -> float:
    """AP50 in the scenes of the model card, as `training.evaluate` measures it, or in those of another seed."""
    result, predict = AveragePrecision(), with_minigdino(folder)
    for found, prompt in scenes.scenes("seen", pictures, seed):
        boxes, scores = predict(found.image, prompt.phrases)
        for meaning, score in zip(prompt.meanings, scores.T, strict=True):
            truth = np.array([thing.box for thing in found.things if meaning.fits(thing)]).reshape(-1, 4)
            result.add(str(meaning), boxes, score, truth)
    return result.mean()


def main() -> None:
    """Draw data, or measure a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("draw", "measure"))
    parser.add_argument("path")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--validation", action="store_true")
    options = parser.parse_args()
    if options.command == "draw":
        draw(Path(options.path), TRAIN, options.pictures or 50, "train")
        draw(Path(options.path), VALIDATION, options.pictures or 50, "val")
    else:
        kind = VALIDATION if options.validation else TEST
        for name, value in measure(minigdino.load(options.path), options.pictures or 100, kind).items():
            print(f"AP50 {name} {value:.3f}")


if __name__ == "__main__":
    main()
