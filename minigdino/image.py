"""Image preprocessing: open an image as RGB, resize it as the original processor does, and normalise it."""

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
MAX_EDGE = 100_000  # pixels; limit for edges in settings and in the `size` argument
MAX_PIXELS = 2**26  # limit for a resized image: 63 times the published size. A larger one would not fit in memory


@dataclass(frozen=True)
class ImageSettings:
    """Preprocessing settings of a checkpoint, under the names in `preprocessor_config.json`.

    The defaults are those of all published checkpoints.

    Attributes:
        size: pairs (name, pixels) that define the resized image. The names are shortest_edge and optionally
            longest_edge, or height and width, or max_height and max_width.
        resample: resampling filter, as Pillow numbers them.
        rescale_factor: factor for the 8-bit pixel values.
        image_mean: mean of each RGB channel, after rescaling.
        image_std: standard deviation of each RGB channel, after rescaling.
        do_resize: whether images are resized. An explicit size in a call always applies.
        do_rescale: whether `rescale_factor` applies.
        do_normalize: whether `image_mean` and `image_std` apply.
    """

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
        """Read the settings of a checkpoint.

        Args:
            directory: the checkpoint. `preprocessor_config.json` is read if present, else "image_processor" in
                `processor_config.json`.

        Returns:
            The settings in the file, or the defaults if the directory has neither file.

        Raises:
            CheckpointError: if the file is not JSON, or a setting is invalid.
        """
        path = next((p for name in SETTINGS_FILES if (p := Path(directory) / name).exists()), None)
        if path is None:
            return cls()
        values = read_json(path)
        if isinstance(values, dict):
            values = values.get("image_processor", values)
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: expected a JSON object of image settings; got {brief(values)}. Download "
                                  "the file again")
        known = {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}
        for name, value in known.items():
            is_valid, expected = VALID[name]
            if not is_valid(value):
                raise CheckpointError(f"{path}: invalid image settings: {name} must be {expected}; "
                                      f"got {brief(value)}. Correct the file, or download it again")
        if "size" in known:
            known["size"] = tuple(sorted((k, int(v)) for k, v in known["size"].items() if v is not None))
        settings = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
        try:
            settings.target(64, 48)
        except ArgumentError as error:
            raise CheckpointError(f"{path}: invalid image settings: {error}. Correct the file, or download it "
                                  "again") from None
        return settings

    def target(self, height: int, width: int, size: Sequence[int] | None = None) -> tuple[int, int]:
        """Compute the size of a resized image.

        Args:
            height: rows of the original image.
            width: columns of the original image.
            size: (shortest, longest) edge in pixels; None for the size in these settings.

        Returns:
            (height, width) in pixels.

        Raises:
            ArgumentError: if an edge is out of range, or these settings name no supported kind of size.
        """
        wanted = dict(self.size)
        if size is not None:
            wanted = {"shortest_edge": size[0], "longest_edge": size[1]}
        elif not self.do_resize:
            return height, width
        if not all(0 < edge <= MAX_EDGE for edge in wanted.values()):
            raise ArgumentError(f"each edge of `size` must be 1 to {MAX_EDGE} pixels; got {brief(wanted)}")
        if wanted.keys() >= {"shortest_edge"}:
            return resized(height, width, wanted["shortest_edge"], wanted.get("longest_edge"))
        if wanted.keys() == {"height", "width"}:
            return wanted["height"], wanted["width"]
        if wanted.keys() == {"max_height", "max_width"}:
            scale = min(wanted["max_height"] / height, wanted["max_width"] / width)
            return int(height * scale), int(width * scale)
        raise ArgumentError("`size` must name shortest_edge and longest_edge, height and width, or max_height and "
                            f"max_width; got {brief(sorted(wanted))}")

    def to_dict(self) -> dict:
        """Return the contents of a `preprocessor_config.json`, which transformers can read too."""
        return {**self.__dict__, "size": dict(self.size), "image_processor_type": "GroundingDinoImageProcessor"}


def _is_number(value, low=1e-9, high=1e9):
    return type(value) in (int, float) and low <= value <= high


def _is_triple(value, low):
    return isinstance(value, list) and len(value) == 3 and all(_is_number(v, low) for v in value)


FLAG = (lambda v: isinstance(v, bool), "true or false")

# For each setting in a file: whether a value is valid, and the valid values in words. The bounds keep every
# preprocessed pixel finite in float32.
VALID = {
    "size": (lambda v: isinstance(v, dict) and all(e is None or _is_number(e, 1, MAX_EDGE) for e in v.values()),
             f"an object of edges, each 1 to {MAX_EDGE} pixels"),
    "resample": (lambda v: type(v) is int and 0 <= v <= 5, "the number of a Pillow filter, 0 to 5"),
    "rescale_factor": (_is_number, "a positive number"),
    "image_mean": (lambda v: _is_triple(v, -1e9), "a list of three numbers"),
    "image_std": (lambda v: _is_triple(v, 1e-9), "a list of three positive numbers"),
    "do_resize": FLAG, "do_rescale": FLAG, "do_normalize": FLAG,
}


def resized(height: int, width: int, shortest: int, longest: int | None = None) -> tuple[int, int]:
    """Compute the size of a resized image by the rule of the original processor, including its rounding.

    The shorter edge becomes `shortest`. If the longer edge would then exceed `longest`, both edges are reduced so that
    the longer one fits. The aspect ratio is preserved up to rounding.

    Args:
        height: rows of the original image.
        width: columns of the original image.
        shortest: target of the shorter edge, in pixels.
        longest: limit of the longer edge, in pixels; None for no limit.

    Returns:
        (height, width) in pixels.
    """
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
    """Convert any supported input to a PIL image in RGB.

    Args:
        image: one of

            - a path: the image is rotated by its EXIF orientation;
            - an `io.BytesIO` with the contents of an image file, rotated in the same way;
            - a PIL image of any mode, converted by `to_rgb`; its EXIF orientation is ignored;
            - a uint8 array [H, W, 3] in RGB order.

    Returns:
        The image, in mode RGB.

    Raises:
        ImageError: if the file is missing or cannot be decoded, or the input is of another kind.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(_open, image, f"{image}: ")
    if isinstance(image, io.BytesIO):
        return _read(_open, image, "")
    if isinstance(image, Image.Image):  # Pillow opens files lazily, so decoding may fail here
        return _read(to_rgb, image, "")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ImageError(f"an image array must be uint8 [H, W, 3] in RGB order; got {image.dtype} "
                             f"{list(image.shape)}.\n---> hint: {_array_hint(image)}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise ImageError(f"an image must be a path, a PIL image or a uint8 array [H, W, 3]; got {type(image).__name__}")


def _open(path):
    with Image.open(path) as opened:
        return to_rgb(_rotated(opened))


def _read(read, image, where):
    """Call `read`, and turn any exception into an ImageError that starts with `where`."""
    try:
        return read(image)
    except FileNotFoundError:
        raise ImageError(f"{where}no such file") from None
    except ImageError as error:
        raise ImageError(f"{where}{error}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{where}{brief(error)} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS") from None
    except Exception as error:  # Pillow's decoders raise exceptions of any type on corrupted files
        raise ImageError(f"{where}not a readable image ({brief(error)}); expected a complete PNG, JPEG or other file "
                         "that Pillow can decode") from None


ROTATIONS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
             8: Image.Transpose.ROTATE_90}  # EXIF orientation -> operation that undoes it


def _rotated(image):
    """The image, rotated by its EXIF orientation. A corrupted EXIF block is ignored."""
    try:
        rotation = ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # any type, as in _read
        rotation = None
    return image if rotation is None else image.transpose(rotation)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to RGB.

    Alpha is dropped, not blended. Palettes are expanded. 16-bit greyscale is scaled by 1/257, to 8 bits.

    Args:
        image: a PIL image.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: if the image is empty, has float pixels, or has integer pixels outside 0 to 65535.
    """
    mode = image.mode
    if 0 in image.size:
        raise ImageError(f"an image must have pixels; got a size of {image.size[0]} x {image.size[1]}")
    if mode == "F":
        raise ImageError("an image must have integer pixels; got float pixels (mode F), whose range is not defined. "
                         "Convert it to 8 bits first")
    if mode.startswith("I"):
        grey = np.asarray(image, np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError("an image with integer pixels must have values in 0..65535 (16-bit greyscale); got "
                             f"{grey.min()}..{grey.max()}. Scale it first")
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    for step in {"LA": ["L"], "La": ["LA", "L"], "RGBa": ["RGBA"]}.get(mode, []):
        image = image.convert(step)
    return image.convert("RGB")


def preprocess(image: Image.Image, settings: ImageSettings, size: Sequence[int] | None = None) -> np.ndarray:
    """Resize and normalise an image. Pillow resamples the 8-bit values, with antialiasing.

    Args:
        image: RGB image.
        settings: preprocessing settings of the checkpoint.
        size: (shortest, longest) edge in pixels; None for the size in the settings.

    Returns:
        pixels [3, H, W] float32.

    Raises:
        ImageError: if the resized image would have too many pixels, or none.
        ArgumentError: if `size` is out of range.
    """
    height, width = settings.target(image.height, image.width, size)
    if height * width > MAX_PIXELS:
        raise ImageError(f"a resized image must have at most {MAX_PIXELS} pixels; {image.width} x {image.height} would "
                         f"be resized to {width} x {height}. Use a smaller `size`")
    if (height, width) != (image.height, image.width):
        if min(height, width) < 1:
            raise ImageError(f"a resized image must have at least one row and one column; {image.width} x "
                             f"{image.height} would be resized to {width} x {height}. Crop the image first")
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
