"""Images in: anything with pixels becomes RGB, is resized as the original processor does, and normalised."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .config import read_json
from .errors import ArgumentError, CheckpointError, ImageError

SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")


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
        try:
            if "size" in known:
                known["size"] = tuple(sorted((str(k), int(v)) for k, v in dict(known["size"]).items()))
            for name in ("image_mean", "image_std"):
                if name in known:
                    known[name] = tuple(map(float, known[name]))
            settings = cls(**known)
            settings.target(64, 48)
            assert len(settings.image_mean) == len(settings.image_std) == 3 and 0 not in settings.image_std
            Image.Resampling(settings.resample), float(settings.rescale_factor)
        except (AssertionError, ArgumentError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the image settings make no sense ({error or 'mean and std'})") from None
        return settings

    def target(self, height: int, width: int, size: Sequence[int] | None = None) -> tuple[int, int]:
        """(height, width) an image is resized to; `size` is the caller's (shortest, longest) edge, if any."""
        wanted = dict(self.size)
        if size is not None:
            wanted = {"shortest_edge": size[0], "longest_edge": size[1]}
        elif not self.do_resize:
            return height, width
        if min(wanted.values(), default=0) <= 0:
            raise ArgumentError(f"image size must be positive; got {wanted}")
        if wanted.keys() >= {"shortest_edge"}:
            return resized(height, width, wanted["shortest_edge"], wanted.get("longest_edge"))
        if wanted.keys() == {"height", "width"}:
            return wanted["height"], wanted["width"]
        if wanted.keys() == {"max_height", "max_width"}:
            scale = min(wanted["max_height"] / height, wanted["max_width"] / width)
            return int(height * scale), int(width * scale)
        raise ArgumentError("image size must name shortest_edge and longest_edge, height and width, or max_height and "
                            f"max_width; got {sorted(wanted)}")

    def to_dict(self) -> dict:
        """What `preprocessor_config.json` holds."""
        return {**self.__dict__, "size": dict(self.size), "image_processor_type": "GroundingDinoImageProcessor"}


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
        try:
            with Image.open(image) as opened:
                return to_rgb(ImageOps.exif_transpose(opened))
        except FileNotFoundError:
            raise ImageError(f"{image}: no such file") from None
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"{image}: not a readable image ({error})") from None
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ImageError(f"an image array must be uint8 [H, W, 3] in RGB order; got {image.dtype} "
                             f"{list(image.shape)}.\n---> hint: {_array_hint(image)}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise ImageError(f"an image is a path, a PIL image or a uint8 array [H, W, 3]; got {type(image).__name__}")


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
