"""Data of docs/howto/fine-tune.md: pictures with a new shape, the crescent, and a new colour, turquoise.

python -m training.new_words draw FOLDER [--pictures 50]     writes train.json, val.json, their pictures, and old.txt:
                                                             phrases of the old words
python -m training.new_words measure MODEL [--pictures 400]  prints AP50 on new and on old words, before and after
                                           [--validation]    in other pictures, to choose settings by
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

import minigdino
from minigdino.learning.average_precision import average_precision, hits
from training import scenes, sets
from training.outlines import NEW_SHAPES, SHAPES
from training.predict import with_minigdino
from training.prompts import Meaning
from training.world import COLOURS, NEW_COLOURS, SEEN, Scene, draw_scene

NEW = tuple((colour, shape) for colour in (*COLOURS, *NEW_COLOURS) for shape in (*SHAPES, *NEW_SHAPES)
            if colour in NEW_COLOURS or shape in NEW_SHAPES)
OLD = tuple(sets.name(meaning) for meaning in (  # "red star", "star" and "red shape"
    *(Meaning(colour, shape) for colour, shape in SEEN), *(Meaning(None, shape) for shape in SHAPES),
    *(Meaning(colour, None) for colour in COLOURS)))
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


Picture = list[tuple[str, np.ndarray, np.ndarray, int]]  # of each phrase: scores, which of them hit, and true boxes


def measure(model: minigdino.Model, pictures: int, kind: int = TEST) -> dict[str, list[Picture]]:
    """Detect new words, such as "red crescent", and old words in scenes as those of the model card.

    Args:
        model: the model, loaded from a folder.
        pictures: number of pictures, and of scenes.
        kind: VALIDATION, or TEST for the scenes of the model card.
    """
    return {"new": new(model, pictures, kind), "old": old(model.source, pictures, OLD_SEEDS[kind])}


def new(model: minigdino.Model, pictures: int, kind: int) -> list[Picture]:
    """Detect the new objects of a picture, and two new ones that it does not contain."""
    result, words = [], [f"{colour} {shape}" for colour, shape in NEW]
    for number in range(pictures):
        found = scene(kind, number)
        present = list(dict.fromkeys(name for t in found.things if (name := f"{t.colour} {t.shape}") in words))
        absent = [word for word in words if word not in present]
        rng = np.random.default_rng([SEED, number])
        phrases = [*present, *rng.choice(absent, 2, replace=False).tolist()]
        detections = model.detect(found.image, phrases, threshold=0.0)
        result.append([])
        for i, phrase in enumerate(phrases):
            truth = [t.box for t in found.things if f"{t.colour} {t.shape}" == phrase]
            chosen = detections.label_ids == i
            result[-1].append(matched(phrase, detections.boxes[chosen], detections.scores[chosen], truth))
    return result


def old(folder: str | Path, pictures: int, seed: int = scenes.SEED) -> list[Picture]:
    """Detect in the scenes of the model card, as `training.evaluate` does, or in those of another seed."""
    predict = with_minigdino(folder)
    result = []
    for found, prompt in scenes.scenes("seen", pictures, seed):
        boxes, scores = predict(found.image, prompt.phrases)
        result.append([matched(str(meaning), boxes, score, [t.box for t in found.things if meaning.fits(t)])
                       for meaning, score in zip(prompt.meanings, scores.T, strict=True)])
    return result


def matched(phrase, boxes, scores, truth):
    """An entry of a `Picture`."""
    order = np.argsort(-scores, kind="stable")
    return phrase, scores[order], hits(boxes[order], np.reshape(truth, (-1, 4))), len(truth)


def ap50(pictures: list[Picture]) -> float:
    """The mean AP50 of all phrases with true boxes."""
    parts = defaultdict(list)
    for picture in pictures:
        for phrase, *part in picture:
            parts[phrase].append(part)
    values = []
    for found in parts.values():
        scores, hit, totals = zip(*found, strict=True)
        if sum(totals):
            values.append(average_precision(np.concatenate(scores), np.concatenate(hit), sum(totals)))
    return float(np.mean(values))


def change(before: list[Picture], after: list[Picture], samples: int = 200) -> dict[str, tuple[float, float]]:
    """AP50 before, after, and their difference, each with its standard error, by bootstrap over the pictures."""
    rng, n = np.random.default_rng(0), len(before)

    def values(chosen):
        pair = [ap50([pictures[i] for i in chosen]) for pictures in (before, after)]
        return *pair, pair[1] - pair[0]

    errors = np.std([values(rng.integers(0, n, n)) for _ in range(samples)], axis=0)
    return dict(zip(("before", "after", "difference"), zip(values(range(n)), errors.tolist())))


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
        Path(options.path, "old.txt").write_text("".join(f"{phrase}\n" for phrase in OLD))
    else:
        kind = VALIDATION if options.validation else TEST
        before, after = (measure(minigdino.load(source), options.pictures or 400, kind)
                         for source in ("shapes", options.path))
        for words in before:
            print(f"AP50, {words} words:", *(f" {name} {value:.3f} ± {error:.3f}" for name, (value, error)
                                             in change(before[words], after[words]).items()))


if __name__ == "__main__":
    main()
