"""Compare the AP of a checkpoint on the first images of COCO val2017 with its published AP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import hub
from ..checkpoints.json_file import status
from ..checkpoints.published import PUBLISHED, Published, full_name, suggestion
from ..detector import Model, load
from ..errors import ArgumentError, brief
from .interval import NORMAL, SAMPLES, Matches
from .run import check_images, opened
from .tasks import COCO

ANNOTATIONS, IMAGES = "annotations/instances_val2017.json", "val2017"
LIMIT = 200  # images


@dataclass(frozen=True)
class Comparison:
    """Result of `verify_ap`. `str()` formats it.

    Attributes:
        model: the checkpoint, and where it was loaded from.
        images: number of images.
        ap: AP on these images, in percent.
        error: its standard error, in percent, by bootstrap over images.
        published: published AP on all images, in percent.
    """

    model: str
    images: int
    ap: float
    error: float
    published: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the AP on all images."""
        return self.ap - NORMAL * self.error, self.ap + NORMAL * self.error

    @property
    def ok(self) -> bool:
        """True if the published AP lies in the interval."""
        low, high = self.interval
        return low <= self.published <= high

    @property
    def status(self) -> int:
        """Exit status: 0 if the APs agree, else 1."""
        return 0 if self.ok else 1

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "within the interval" if self.ok else f"outside the interval.{HINT}"
        return (f"{self.model}\n\nAP on the first {self.images} images of COCO val2017: {self.ap:.1f}\n"
                f"95 % confidence interval: {low:.1f} to {high:.1f} (bootstrap over images, {SAMPLES} samples)\n"
                f"published AP on all images: {self.published:.1f}, {verdict}")


HINT = ("\n---> hint: of 20 correct checkpoints, one is outside. Use more images (--limit), and compare a single image "
        "by `minigdino verify` without --coco")


def verify_ap(folder: str | Path, model_id: str = hub.DEFAULT, model: str | Path | Model | None = None, *,
              limit: int = LIMIT, on_image: Callable[[], object] = lambda: None,
              known: tuple[Published, ...] = PUBLISHED) -> Comparison:
    """Measure the AP of a checkpoint on COCO val2017, and compare it with the published one.

    The protocol is the published one (`protocols.COCO`). The first images of the annotation file are used. The standard
    error of AP is estimated by bootstrap over images.

    Args:
        folder: folder of COCO, with `annotations/instances_val2017.json` and the images in `val2017`.
        model_id: model whose published AP to use; its id or short name.
        model: model to run, a Model or an argument of `load`; None for the model `model_id` from the hub.
        limit: number of images, at least 2.
        on_image: called after each image.
        known: published models.

    Returns:
        The comparison.

    Raises:
        ArgumentError: if the model has no published AP on COCO, or the folder lacks the annotations or the images.
        CheckpointError: if the model cannot be loaded.
        ImageError: if an image cannot be read, or has another size than in the annotations.
    """
    if type(limit) is not int or limit < 2:
        raise ArgumentError(f"--limit must be 2 or more images; got {brief(limit)}")
    name = full_name(str(model_id))
    published = next((one.coco for one in known if one.id == name), None)
    if published is None:
        models = ", ".join(one.id for one in known if one.coco is not None)
        raise ArgumentError(f"verify --coco needs a model with a published AP on COCO; got {name!r}."
                            f"{suggestion(name)} Choose one of {models}")
    if not status(path := Path(folder, ANNOTATIONS)):
        raise ArgumentError(f"{path}: no such file. Give --coco the folder of COCO, with {ANNOTATIONS} and the images "
                            f"in {IMAGES}")
    truth = COCO.read(path)
    truth = truth.only([picture.id for picture in truth.pictures[:limit]])
    check_images(truth.pictures, Path(folder, IMAGES))
    if not isinstance(model, Model):
        model = load(hub.find(name) if model is None else model)
    predict, found = COCO.predictor(model, truth, None), []
    for picture in truth.pictures:
        found.append((picture.id, predict(picture, opened(picture, Path(folder, IMAGES)))))
        on_image()
    matches = Matches(truth, found)
    return Comparison(f"{name} from {model.source}", len(found), 100 * matches.average_precision(),
                      100 * matches.standard_error(), published)
