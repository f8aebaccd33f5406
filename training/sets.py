"""Annotated pictures in the formats of COCO, LVIS and MDETR: python -m training.sets coco FOLDER [--pictures 200]

A folder has the pictures in `images/`, and the annotations in a file for `minigdino evaluate`:

- `prompts`, for `evaluate coco`: the scenes of the model card. Each picture has a prompt of its own.
- `coco`: all objects are annotated. The categories are the eight shapes.
- `lvis`: the categories are the 80 pairs of colour and shape. Rare ones do not occur in the training of the embedded
  checkpoint. A picture is annotated for some categories only, and sometimes not for all objects of a category.
- `refcoco`: a phrase for each object that it alone matches.
- `flickr`: a caption for each picture, with the objects of each of its phrases.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from training.outlines import SHAPES
from training.prompts import ANYTHING, Meaning, phrase
from training.scenes import SETS, scenes
from training.world import COLOURS, HELD_OUT, SEEN, Scene, Thing, draw_scene

SEED = 31
ANNOTATIONS, IMAGES = "annotations.json", "images"
FREQUENCIES = {"f": 12, "c": 6, "r": 4}  # of a category -> how often it is drawn
EDGES = 128, 257  # pixels per side: small, medium and large objects, as COCO defines them
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
FREQUENCY = {pair: "r" if pair in HELD_OUT else "fc"[SEEN.index(pair) % 2] for pair in PAIRS}
LONG_TAIL = tuple(pair for pair in PAIRS for _ in range(FREQUENCIES[FREQUENCY[pair]]))
ABSENT = 10  # categories of an LVIS picture that are known to be absent
LEFT_OUT = 0.2  # part of the LVIS pictures in which an object is not annotated


class Annotations:
    """Pictures and annotations of a set, with numbers from 1. The pictures are written at once.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path):
        self.folder, self.images, self.boxes = folder, [], []
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)

    def picture(self, scene: Scene, file: str = "", **fields) -> int:
        """Add a picture, and return its id. Without the name of a file, it is written to one."""
        number = len(self.images) + 1
        if not file:
            file = f"{number:06}.png"
            Image.fromarray(scene.image).save(self.folder / IMAGES / file)
        height, width = scene.image.shape[:2]
        self.images.append({"id": number, "file_name": file, "width": width, "height": height, **fields})
        return number

    def box(self, picture: int, thing: Thing, category: int, **fields) -> None:
        """Add an annotation."""
        left, top, right, bottom = thing.box
        self.boxes.append({"id": len(self.boxes) + 1, "image_id": picture, "category_id": category,
                           "bbox": [left, top, right - left, bottom - top],
                           "area": (right - left) * (bottom - top), "iscrowd": 0, **fields})

    def write(self, categories: list[dict]) -> None:
        """Write the annotation file."""
        content = {"images": self.images, "annotations": self.boxes, "categories": categories}
        (self.folder / ANNOTATIONS).write_text(json.dumps(content) + "\n")


def drawn(pictures: int, **drawing) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Scenes with at least one object, each with a random generator for its annotations."""
    number = 0
    while pictures:
        rng = np.random.default_rng([SEED, number])
        number += 1
        size = int(rng.integers(*EDGES)), int(rng.integers(*EDGES))
        if (scene := draw_scene(rng, size=size, **drawing)).things:
            pictures -= 1
            yield scene, rng


def name(meaning: Meaning) -> str:
    """The name of a category: "red star", "star" or "red shape"."""
    return " ".join(filter(None, (meaning.colour, meaning.shape or ANYTHING[0])))


def prompts(folder: Path, pictures: int, kind: str = "seen") -> None:
    """Draw scenes of the model card. A category is the meaning of a phrase; a prompt has its own wording of it.

    An object is annotated for every category of the prompt that it matches.
    """
    found, ids = Annotations(folder), {}
    for scene, prompt in scenes(kind, pictures):
        categories = [ids.setdefault(name(meaning), len(ids) + 1) for meaning in prompt.meanings]
        picture = found.picture(scene, prompt=categories, phrases=prompt.phrases)
        for category, meaning in zip(categories, prompt.meanings):
            for thing in filter(meaning.fits, scene.things):
                found.box(picture, thing, category)
    found.write([{"id": number, "name": text} for text, number in ids.items()])


def coco(folder: Path, pictures: int) -> None:
    """Draw a set in which every object is annotated with its shape."""
    found, ids = Annotations(folder), {shape: number for number, shape in enumerate(SHAPES, start=1)}
    for scene, _ in drawn(pictures):
        picture = found.picture(scene)
        for thing in scene.things:
            found.box(picture, thing, ids[thing.shape])
    found.write([{"id": number, "name": shape} for shape, number in ids.items()])


def lvis(folder: Path, pictures: int) -> None:
    """Draw a set with many categories, of which each picture is annotated for some."""
    found, ids = Annotations(folder), {pair: number for number, pair in enumerate(PAIRS, start=1)}
    for scene, rng in drawn(pictures, pairs=LONG_TAIL):
        present = {ids[thing.colour, thing.shape] for thing in scene.things}
        absent = rng.choice([i for i in ids.values() if i not in present], ABSENT, replace=False).tolist()
        hidden = scene.things[0] if len(scene.things) > 1 and rng.random() < LEFT_OUT else None
        partial = [ids[hidden.colour, hidden.shape]] if hidden else []
        picture = found.picture(scene, neg_category_ids=sorted(absent), not_exhaustive_category_ids=partial)
        entry = found.images[-1]
        entry["coco_url"] = f"{IMAGES}/{entry.pop('file_name')}"  # as LVIS, which has no other name
        for thing in scene.things:
            if thing is not hidden:
                found.box(picture, thing, ids[thing.colour, thing.shape])
    found.write([{"id": ids[pair], "name": "_".join(pair), "frequency": FREQUENCY[pair]} for pair in PAIRS])


def refcoco(folder: Path, pictures: int) -> None:
    """Draw a set in which a phrase refers to one object of a picture. A picture has an entry for each phrase."""
    found = Annotations(folder)
    for scene, rng in drawn(pictures):
        file = ""
        for thing in scene.things:
            meanings = (Meaning(thing.colour, thing.shape), Meaning(None, thing.shape), Meaning(thing.colour, None))
            unique = [meaning for meaning in meanings if sum(map(meaning.fits, scene.things)) == 1]
            if unique:
                caption = phrase(unique[rng.integers(len(unique))], rng)
                picture = found.picture(scene, file, caption=caption, dataset_name="refcoco")
                file = found.images[-1]["file_name"]
                found.box(picture, thing, 1, tokens_positive=[[0, len(caption)]])
    found.write([{"id": 1, "name": "object"}])


def flickr(folder: Path, pictures: int) -> None:
    """Draw a set in which a caption names all shapes of a picture, such as "a star and the ring"."""
    found = Annotations(folder)
    for scene, rng in drawn(pictures):
        caption, spans = "", {}
        for shape in dict.fromkeys(thing.shape for thing in scene.things):
            caption += " and " if caption else ""
            words = phrase(Meaning(None, shape), rng)
            spans[shape] = [len(caption), len(caption) + len(words)]
            caption += words
        picture = found.picture(scene, caption=caption, dataset_name="flickr",
                                tokens_positive_eval=[[span] for span in spans.values()])
        for thing in scene.things:
            found.box(picture, thing, 1, tokens_positive=[spans[thing.shape]])
    found.write([{"id": 1, "name": "object"}])


FORMATS: dict[str, Callable[[Path, int], None]] = {
    "prompts": prompts, "coco": coco, "lvis": lvis, "refcoco": refcoco, "flickr": flickr}


def main() -> None:
    """Draw a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--scenes", choices=SETS, help="scenes of the model card, with the format prompts")
    options = parser.parse_args()
    if options.scenes and options.format != "prompts":
        parser.error("--scenes needs the format prompts")
    FORMATS[options.format](options.folder, options.pictures, **({"kind": options.scenes} if options.scenes else {}))


if __name__ == "__main__":
    main()
