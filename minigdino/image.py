"""Images in: anything with pixels becomes RGB, is resized as the original processor does, and normalised."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from .checkpoints.json_file import read_json
from .errors import ArgumentError, CheckpointError, ImageError, brief

SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")
LONGEST = 100_000  # pixels along an edge that settings or a caller may ask for
LARGEST = 2**26  # pixels of a resized image, 63 times the published size: beyond, a mistake, and no memory would do


@dataclass(frozen=True)
class ImageSettings:
    """What `preprocessor_config.json` says. Defaults: every published checkpoint's."""

    size: tuple[tuple[str, int], ...] = (("shortest_edge", 800), ("longest_edge", 1333))
    resample: int = Image.Resampling.BILINEAR
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True

    @classmethod
    def from_directory(cls, directory: str | Path) -> ImageSettings:
        """Read `preprocessor_config.json`, or the part of `processor_config.json` that stands for it, else defaults.

        Raises CheckpointError if a setting makes no sense.
        """
        path = next((p for name in SETTINGS_FILES if (p := Path(directory) / name).exists()), None)
        if path is None:
            return cls()
        values = read_json(path)
        values = values.get("image_processor", values) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: expected a JSON object of image settings")
        known = {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}
        for name, value in known.items():
            good, wanted = SANE[name]
            if not good(value):
                raise CheckpointError(f"{path}: the image settings make no sense: {name} must be {wanted}; "
                                      f"got {brief(value)}")
        if "size" in known:
            known["size"] = tuple(sorted((k, int(v)) for k, v in known["size"].items() if v is not None))
        settings = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
        try:
            settings.target(64, 48)
        except ArgumentError as error:
            raise CheckpointError(f"{path}: the image settings make no sense: {error}") from None
        return settings

    def target(self, height: int, width: int, size: Sequence[int] | None = None) -> tuple[int, int]:
        """(height, width) an image is resized to; `size` is the caller's (shortest, longest) edge, if any."""
        wanted = dict(self.size)
        if size is not None:
            wanted = {"shortest_edge": size[0], "longest_edge": size[1]}
        elif not self.do_resize:
            return height, width
        if not all(0 < edge <= LONGEST for edge in wanted.values()):
            raise ArgumentError(f"image size must be 1 to {LONGEST} pixels; got {brief(wanted)}")
        if wanted.keys() >= {"shortest_edge"}:
            return resized(height, width, wanted["shortest_edge"], wanted.get("longest_edge"))
        if wanted.keys() == {"height", "width"}:
            return wanted["height"], wanted["width"]
        if wanted.keys() == {"max_height", "max_width"}:
            scale = min(wanted["max_height"] / height, wanted["max_width"] / width)
            return int(height * scale), int(width * scale)
        raise ArgumentError("image size must name shortest_edge and longest_edge, height and width, or max_height and "
                            f"max_width; got {brief(sorted(wanted))}")

    def to_dict(self) -> dict:
        """What `preprocessor_config.json` holds."""
        return {**self.__dict__, "size": dict(self.size), "image_processor_type": "GroundingDinoImageProcessor"}


def _number(value, least=1e-9, most=1e9):
    return type(value) in (int, float) and least <= value <= most


def _three(value, least):
    return isinstance(value, list) and len(value) == 3 and all(_number(v, least) for v in value)


SWITCH = (lambda v: isinstance(v, bool), "true or false")

# What a file may say of each setting, and that in words. The bounds keep every pixel finite in float32.
SANE = {
    "size": (lambda v: isinstance(v, dict) and all(e is None or _number(e, 1, LONGEST) for e in v.values()),
             f"an object of edges, 1 to {LONGEST} pixels"),
    "resample": (lambda v: type(v) is int and 0 <= v <= 5, "one of Pillow's filters, 0 to 5"),
    "rescale_factor": (_number, "a positive number"),
    "image_mean": (lambda v: _three(v, -1e9), "three numbers"),
    "image_std": (lambda v: _three(v, 1e-9), "three positive numbers"),
    "do_resize": SWITCH, "do_rescale": SWITCH, "do_normalize": SWITCH,
}


def resized(height: int, width: int, shortest: int, longest: int | None = None) -> tuple[int, int]:
    """The original processor's rule, roundings included: the shorter edge becomes `shortest`, or less if the longer
    one would pass `longest`. Edges in pixels -> (height, width)"""
    small, large = float(min(height, width)), float(max(height, width))
    raw, edge = None, shortest
    if longest is not None and large / small * shortest > longest:
        raw = longest * small / large
        edge = int(round(raw))
    if (height <= width and height == edge) or (width <= height and width == edge):
        return height, width
    if width < height:
        return int((raw or edge) * height / width), edge
    return edge, int((raw or edge) * width / height)


def open_image(image) -> Image.Image:
    """A path (turned as its EXIF says), a PIL image of any mode, or a uint8 array [H, W, 3] -> a PIL image in RGB.

    Raises ImageError, naming what came, for anything else or a file that is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(_open, image, f"{image}: ")
    if isinstance(image, io.BytesIO):  # a file's bytes, as from standard input
        return _read(_open, image, "")
    if isinstance(image, Image.Image):  # opened, but perhaps not read yet
        return _read(to_rgb, image, "")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ImageError(f"an image array must be uint8 [H, W, 3] in RGB order; got {image.dtype} "
                             f"{list(image.shape)}.\n---> hint: {_array_hint(image)}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise ImageError(f"an image is a path, a PIL image or a uint8 array [H, W, 3]; got {type(image).__name__}")


def _open(path):
    with Image.open(path) as opened:
        return to_rgb(_turned(opened))


def _read(read, image, where):
    try:
        return read(image)
    except FileNotFoundError:
        raise ImageError(f"{where}no such file") from None
    except ImageError as error:
        raise ImageError(f"{where}{error}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{where}{brief(error)} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS") from None
    except Exception as error:  # Pillow's readers let out whatever goes wrong inside them
        raise ImageError(f"{where}not a readable image ({brief(error)}); expected a whole PNG, JPEG or other file that "
                         "Pillow reads") from None


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # by the value of EXIF's orientation


def _turned(image):
    """An image as it was held, says its EXIF block; a damaged block says nothing, and loses no image."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # as in _read
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB: alpha is dropped, palettes are expanded, 16-bit grey is scaled by 1/257."""
    mode = image.mode
    if 0 in image.size:
        raise ImageError(f"the image has no pixels; its size is {image.size[0]} x {image.size[1]}")
    if mode == "F":
        raise ImageError("a float image has no agreed range; convert it to 8 bits first")
    if mode.startswith("I"):
        grey = np.asarray(image, np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError("an integer image is read as 16-bit grey, 0..65535; this one holds "
                             f"{grey.min()}..{grey.max()}")
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    for step in {"LA": ["L"], "La": ["LA", "L"], "RGBa": ["RGBA"]}.get(mode, []):
        image = image.convert(step)
    return image.convert("RGB")


def preprocess(image: Image.Image, settings: ImageSettings, size: Sequence[int] | None = None) -> np.ndarray:
    """RGB image -> pixels [3, H, W] float32, resized and normalised. Resampling is Pillow's, 8-bit, antialiased."""
    height, width = settings.target(image.height, image.width, size)
    if height * width > LARGEST:
        raise ImageError(f"an image of {image.width} x {image.height} pixels would be resized to {width} x {height}, "
                         f"over {LARGEST} pixels; use a smaller `size`")
    if (height, width) != (image.height, image.width):
        if min(height, width) < 1:
            raise ImageError(f"an image of {image.width} x {image.height} pixels is too thin: it would be resized to "
                             f"{width} x {height}")
        image = image.resize((width, height), resample=settings.resample)
    pixels = np.asarray(image, np.float32)  # [H, W, 3]
    if settings.do_rescale:
        pixels = pixels * np.float32(settings.rescale_factor)
    if settings.do_normalize:
        pixels = (pixels - np.float32(settings.image_mean)) / np.float32(settings.image_std)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _array_hint(image):
    if image.ndim == 3 and image.shape[0] == 3:
        return "move the channels last: image.transpose(1, 2, 0)"
    if image.ndim == 2:
        return "repeat the grey values: np.repeat(image[:, :, None], 3, axis=2)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "drop alpha: image[:, :, :3]"
    if image.dtype.kind == "f":
        return "scale to 0..255 and convert: (image * 255).round().astype('uint8'), if it holds 0..1"
    return "give a non-empty uint8 array, or a PIL image"
