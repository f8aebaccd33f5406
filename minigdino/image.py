"""Image preprocessing: open an image as RGB, resize it as the original processor does, and normalise it."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from . import heif, missing, urls
from .checkpoints.json_file import is_folder, open_regular, read_json, status
from .errors import ArgumentError, CheckpointError, ImageError, brief, from_signal_handler

# Formats that minigdino reads. Pillow identifies a file by its content, and starts a program for some other formats:
# Ghostscript for EPS, and whatever an application has registered for WMF or GRIB. An IPTC file can contain any format.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "ICNS", "TGA",
           "PCX", "SGI", "DDS")
SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")
MAX_EDGE = 100_000  # pixels; limit for edges in settings and in the `size` argument
# Limits for the pixels of a resized image. A forward pass needs about 250 bytes of memory per pixel. Without
# an explicit `size`, the limit is 16 times the published size, or about 4 GB: a settings file can come from anyone.
MAX_PIXELS = 2**26
MAX_PIXELS_OF_SETTINGS = 2**24
MAX_BYTES = 2**30  # limit for a file object; more than the pixels of the largest image that Pillow accepts
MAX_PATH = 4096  # bytes; shorter contents that are no image may be a path, given as bytes
MAX_PARTS = 100  # limit for the scans, and for the EXIF blocks, of a JPEG. Cameras write 1, progressive files 10 scans
BLOCK = 2**20  # pixels, or bytes of a file, that are processed at a time


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
        path = next((p for name in SETTINGS_FILES if status(p := Path(directory) / name)), None)
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
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        settings = cls(**fields)
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


def endings() -> set[str]:
    """Return the file name endings of the supported formats, lower-case and with their dot, such as ".jpg"."""
    known = _formats()
    return {ending for ending, name in Image.registered_extensions().items() if name in known} | {*heif.ENDINGS}


def _formats():
    """FORMATS for `Image.open`, which fails for names that it does not know.

    These are MPO, which it opens as JPEG, and formats that this build of Pillow lacks.
    """
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(image) -> Image.Image:
    """Convert any supported input to an upright PIL image in RGB.

    Args:
        image: one of

            - a path;
            - a str with a URL, as in `urls.download`;
            - the contents of an image file, as `bytes`, a `bytearray` or an `io.BytesIO`;
            - a binary file object, as in `read_file`;
            - a PIL image of any mode, converted by `to_rgb`;
            - a uint8 array [H, W, 3] in RGB order.

    Returns:
        The image, in mode RGB. The EXIF orientation of the input is applied, and not part of the result.

    Raises:
        ImageError: if the file is missing, is not a regular file, is of an unsupported format or cannot be decoded, or
            the input is of another kind.
    """
    image = read_file(image)
    if isinstance(image, (str, os.PathLike)):
        return _read(partial(_open_path, convert=_upright), image, f"{str(image) or repr('')}: ")
    if isinstance(image, io.BytesIO):
        image = _called(image, "getvalue")  # shares the bytes, and has no position
    if isinstance(image, (bytes, bytearray)):
        where = f"{image.url}: " if isinstance(image, urls.Download) else ""
        return _read(_open_bytes, image, where)
    if isinstance(image, Image.Image):  # Pillow opens files lazily, so decoding may fail here
        with _lock_of(image):
            return _read(_open_given, image, "")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ImageError(f"an image array must be uint8 [H, W, 3] in RGB order; got {image.dtype} "
                             f"{list(image.shape)}.\n---> hint: {_array_hint(image)}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise ImageError("an image must be a path, a PIL image, a uint8 array [H, W, 3], bytes or a binary file object; "
                     f"got {_named(image)}")


def read_file(image):
    """Read a binary file object or a URL. Any other input is returned unchanged.

    Args:
        image: a file object, a URL, or another input of `open_image`.

    Returns:
        The bytes from the position of the file object to its end, or those of the URL. The file object is not closed.
        An `io.BytesIO` is returned unchanged, because it keeps its contents.

    Raises:
        ImageError: if the file object is a text file, has no bytes left, has more than `MAX_BYTES`, or cannot be read,
            or if the URL cannot be downloaded. An exception of its method read() is the `__cause__`.
    """
    if urls.is_url(image):
        return urls.download(image)
    if isinstance(image, (str, os.PathLike, io.BytesIO)) or not hasattr(image, "read"):
        return image
    return _read(_bytes_of, image, "")


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the size of an image file. Its pixels are decoded only if the header does not contain the size.

    Args:
        path: the file, as in `open_image`, but no URL.

    Returns:
        (width, height) of the image that `open_image` returns.

    Raises:
        ImageError: as `open_image` does, but not for pixels that cannot be decoded.
    """
    return _read(partial(_open_path, convert=_upright_size), path, f"{str(path) or repr('')}: ")


def is_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is an image that can be read, by its header.

    Args:
        path: the file, of any content.
    """
    try:
        read_size(path)
    except ImageError:
        return False
    return True


def _bytes_of(file):
    if hasattr(file, "encoding"):
        raise ImageError('a file object must be binary; got a text file. Open it with mode "rb"')
    parts, size = [], 0
    while part := _called(file, "read", BLOCK):
        if not isinstance(part, bytes):
            raise ImageError("the method read() of a file object must return bytes; got "
                             f"{type(part).__name__}. Read the file first, and give its bytes")
        parts.append(part)
        if (size := size + len(part)) > MAX_BYTES:
            raise ImageError(f"a file object must have at most {MAX_BYTES} bytes; got more. Give one with a single "
                             "image")
    if not parts:
        raise ImageError("a file object must have an image at its position; got its end. If it was read or written "
                         "before, call seek(0) first")
    return b"".join(parts)


def _called(file, method, *arguments):
    """Call a method of a file object. It can raise any exception, such as one of a library for remote files."""
    try:
        return getattr(file, method)(*arguments)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"a file object must be open for reading; its method {method}() failed "
                         f'({type(error).__name__}: {brief(error)}). Open it again, with mode "rb"') from error


# Pillow cannot decode one image in several threads, so each image has a lock. Few images share one.
_locks: list[threading.RLock] = []


def _lock_of(image):
    return _locks[id(image) // 16 % len(_locks)]


def _renew_locks():
    """Create the locks; in a forked child, too, where the threads that hold them do not exist."""
    _locks[:] = [threading.RLock() for _ in range(64)]


_renew_locks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _open_path(path, convert):
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):  # the second: a folder of the path is a file
        raise ImageError(missing.why_missing(os.fsdecode(path), endings())) from None
    except OSError as error:
        if error.errno is None:  # raised by `open_regular` for a pipe or a device
            raise ImageError(f"{error}. Read it first, and give its bytes") from None
        if is_folder(path):
            raise ImageError(missing.why_folder(os.fsdecode(path))) from None
        raise
    with file:
        return _open_file(file, convert)


def _open_bytes(data):
    try:
        return _open_file(io.BytesIO(data), _upright)
    except ImageError:
        if len(data) < MAX_PATH and os.path.splitext(text := data.decode(errors="replace"))[1].lower() in endings():
            raise ImageError(f"expected the content of an image file; got {brief(bytes(data))}, which is a path. Give "
                             f"it as a str: {brief(text)}") from None
        raise


def _open_file(file, convert):
    """Open an image file, and return what `convert` makes of the PIL image, whose pixels are not decoded yet."""
    if not file.read(1):
        raise ImageError("expected an image; got an empty file or no bytes. Copy or download the image again")
    if heif.is_heif(file):
        return convert(heif.open_heif(file))
    _check_jpeg(file, 0)
    _check_plain(file)
    _check_length(file)
    file.seek(0)
    try:
        opened = Image.open(file, formats=_formats())
    except UnidentifiedImageError:
        raise ImageError("not a readable image; expected the content of one of the formats "
                         f"{', '.join(_formats())}. Convert it to PNG with another program") from None
    with opened:
        return convert(opened)


def _open_given(image):
    """Convert an image of the caller, whose pixels Pillow may not have decoded yet."""
    if isinstance(image, ImageFile.StubImageFile) or (isinstance(image, ImageFile.ImageFile) and image.tile):
        if image.format not in FORMATS:
            raise ImageError(f"expected an image of the formats {', '.join(_formats())}; got {image.format}, whose "
                             "pixels are not decoded yet. If you trust the file, call image.load() first")
        if image.fp is None:
            raise ImageError("a PIL image must be open; the file of this one was closed before its pixels were read. "
                             "Open it again")
        if image.format in ("JPEG", "MPO"):
            _check_jpeg(image.fp, image.tile[0][2])  # an MPO file contains several images
        if image.format == "PPM":
            _check_plain(image.fp)
    return _upright(image)


START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xd9"
EXIF_BLOCK = re.compile(rb"\xff\xe1..Exif\0", re.DOTALL)  # the first 9 bytes
COMMENT = re.compile(rb"#")
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of a segment; 0xFF00 and 0xFFD0 to 0xFFD7 occur in compressed data


def _check_jpeg(file, start):
    """Refuse a JPEG that takes minutes to decode although it is small. Other formats are not checked.

    The decoder processes all pixels once per scan, and a scan can have as few as 10 bytes. Pillow copies all EXIF data
    once per EXIF block.
    """
    file.seek(start)
    if file.read(3) != b"\xff\xd8\xff":
        return
    # Pillow also finds EXIF blocks after an end of image, and inside some segments. So all blocks in the file count.
    if _count(file, start, EXIF_BLOCK, 9) > MAX_PARTS:
        raise _too_many("JPEG", "EXIF blocks")
    file.seek(start)
    scans = 0
    for segment in _segments(file):
        scans += segment[:1] == START_OF_SCAN
        if scans > MAX_PARTS:
            raise _too_many("JPEG", "scans")
        if segment[:1] == END_OF_IMAGE:
            return


def _check_plain(file):
    """Refuse a plain PPM, PGM or PBM with many comments: for each, Pillow copies the rest of its block of the file."""
    file.seek(0)
    if file.read(2) in (b"P1", b"P2", b"P3") and _count(file, 0, COMMENT, 1) > MAX_PARTS:
        raise _too_many("plain PPM", "comments")


def _check_length(file):
    """Refuse a WebP or AVIF with more bytes than such an image needs: Pillow reads it as a whole, holes included."""
    file.seek(0)
    start = file.read(12)
    kind = "WebP" if start[:4] + start[8:] == b"RIFFWEBP" else "AVIF" if start[4:8] == b"ftyp" else None
    if kind and (size := file.seek(0, os.SEEK_END)) > heif.MAX_BYTES:
        raise ImageError(f"expected a {kind} of at most {heif.MAX_BYTES} bytes; got {size}. Convert it to PNG with "
                         "another program")


def _too_many(kind, parts):
    return ImageError(f"expected a {kind} with at most {MAX_PARTS} {parts}; got more, which take very long to decode. "
                      "Convert it to PNG with another program")


def _count(file, start, pattern, length):
    """Count the matches of a pattern of `length` bytes from `start` on. Stop above MAX_PARTS."""
    file.seek(start)
    n, data = 0, b""
    while n <= MAX_PARTS and (more := file.read(BLOCK)):
        data = data[max(len(data) - length + 1, 0) :] + more  # a match can start in the block before
        n += sum(1 for _ in pattern.finditer(data))
    return n


def _segments(file):
    """Yield 8 bytes of each segment of a JPEG: the second byte of its marker, its length, and the start of its content.

    Compressed data between segments is skipped.
    """
    data, at = b"", 0
    while more := file.read(BLOCK):
        data, at = data[at:] + more, max(at - len(data), 0)
        while (marker := MARKER.search(data, at)) and (at := marker.start()) + 9 <= len(data):
            yield data[at + 1 : at + 9]
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not marker:
            at = max(at, len(data) - 1)  # the last byte can be the first one of a marker


def _read(read, image, where):
    """Call `read`, and turn any exception into an ImageError that starts with `where`."""
    try:
        return read(image)
    except ImageError as error:
        raise ImageError(f"{where}{error}") from error.__cause__
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a warning made an error by -W
        raise ImageError(f"{where}{brief(error)} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS") from None
    except MemoryError:
        raise ImageError(f"{where}decoding needs more memory than there is. The file may be damaged; otherwise use a "
                         "machine with more memory") from None
    except Exception as error:  # Pillow's decoders raise exceptions of many types on corrupted files
        if type(error).__module__.partition(".")[0] not in ("PIL", *sys.stdlib_module_names):
            raise  # another thread raised it in this one, such as the timeout of a job queue
        raise ImageError(f"{where}not a readable image ({brief(error)}); expected a complete PNG, JPEG or other file "
                         "that Pillow can decode") from None


ROTATIONS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
             8: Image.Transpose.ROTATE_90}  # EXIF orientation -> operation that undoes it


WITH_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # entries of `Image.info`


def _upright(image):
    """Convert an image to RGB, and rotate it by its EXIF orientation. A corrupted EXIF block is ignored.

    The result has no orientation, so that it is not rotated again.
    """
    rgb = to_rgb(image)  # reads the pixels; for a TIFF, Pillow then also rotates, and removes the orientation
    rotation = _rotation(image)
    for name in WITH_ORIENTATION:
        rgb.info.pop(name, None)
    return rgb if rotation is None else rgb.transpose(rotation)


def _rotation(image):
    """The operation that undoes the EXIF orientation of an image; None for an upright one."""
    try:
        return ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # any type, as in _read
        if from_signal_handler(error):
            raise
        return None


SIDEWAYS = {ROTATIONS[orientation] for orientation in (5, 6, 7, 8)}  # operations that exchange width and height
TEXT_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # of a PNG; they can contain an orientation


def _upright_size(image):
    """Width and height of the image that `_upright` returns. Its pixels stay undecoded, except those of some PNGs."""
    upright = image.format == "TIFF" or (image.format == "PNG" and not _has_text(image.fp))
    return image.size[::-1] if not upright and _rotation(image) in SIDEWAYS else image.size


def _has_text(file):
    """Whether a PNG may have an orientation. Pillow decodes the pixels to find one, as it can be at the end."""
    position = file.tell()  # Pillow continues here
    file.seek(8)
    found = False
    while not found and len(start := file.read(8)) == 8:  # length and type of a chunk
        found = start[4:] in TEXT_CHUNKS
        file.seek(int.from_bytes(start[:4], "big") + 4, os.SEEK_CUR)
    file.seek(position)
    return found


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
    if 0 in image.size:
        raise ImageError(f"an image must have pixels; got a size of {image.size[0]} x {image.size[1]}")
    image.load()  # can change the mode, so it comes first
    mode = image.mode
    if mode == "F":
        raise ImageError("an image must have integer pixels; got float pixels (mode F), whose range is not defined. "
                         "Convert it to 8 bits first")
    if mode.startswith("I"):
        return _from_sixteen_bits(image)
    if mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None  # as with inPlace=True only
        return converted
    for step in {"LA": ["L"], "La": ["LA", "L"], "RGBa": ["RGBA"]}.get(mode, []):
        image = image.convert(step)
    return image.convert("RGB")


def _from_sixteen_bits(image):
    """Scale integer pixels by 1/257, one block at a time, because the values of a whole image fill gigabytes."""
    low, high = image.getextrema() if image.mode == "I" else (0, 65535)
    if low < 0 or high > 65535:
        raise ImageError("an image with integer pixels must have values in 0..65535 (16-bit greyscale); got "
                         f"{low}..{high}. Scale it first")
    scaled = np.round(np.arange(65536) / 257).astype(np.uint8)
    width, height = image.size
    columns, rows = min(width, BLOCK), max(BLOCK // width, 1)
    rgb = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            box = left, top, min(left + columns, width), min(top + rows, height)
            rgb.paste(Image.fromarray(scaled[np.asarray(image.crop(box))]), box)
    return rgb


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
    limit, hint = ((MAX_PIXELS_OF_SETTINGS, "Give a `size`, or correct the settings of the checkpoint")
                   if size is None else (MAX_PIXELS, "Use a smaller `size`"))
    if height * width > limit:
        raise ImageError(f"a resized image must have at most {limit} pixels; {image.width} x {image.height} would be "
                         f"resized to {width} x {height}. {hint}")
    if (height, width) != (image.height, image.width):
        if min(height, width) < 1:
            raise ImageError(f"a resized image must have at least one row and one column; {image.width} x "
                             f"{image.height} would be resized to {width} x {height}. Crop the image first")
        image = image.resize((width, height), resample=settings.resample)
    pixels = np.moveaxis(np.asarray(image), -1, 0).astype(np.float32, order="C")  # [3, H, W]
    if settings.do_rescale:  # in place, because the pixels of a large image fill gigabytes
        pixels *= np.float32(settings.rescale_factor)
    if settings.do_normalize:
        pixels -= np.array(settings.image_mean, np.float32)[:, None, None]
        pixels /= np.array(settings.image_std, np.float32)[:, None, None]
    return pixels


TO_NUMPY = {"torch": "image.detach().cpu().numpy()", "tensorflow": "image.numpy()", "cupy": "image.get()",
            "jax": "numpy.asarray(image)", "jaxlib": "numpy.asarray(image)"}  # package of a tensor -> its conversion


def _named(image):
    """Name an input that is not supported, with a hint. Packages of tensors are not imported."""
    if image is None:
        return "None.\n---> hint: cv2.imread returns None for a file that it cannot read; check the path"
    name = type(image).__name__
    packages = (str(kind.__module__).partition(".")[0] for kind in type(image).__mro__)
    if package := next(filter(TO_NUMPY.get, packages), None):
        return (f"a {package} {name}.\n---> hint: give {TO_NUMPY[package]}, with the channels last and as uint8 in "
                "0..255")
    if isinstance(image, memoryview):
        return f"{name}.\n---> hint: give its bytes: bytes(image)"
    if isinstance(image, (list, tuple)):
        return f"a {name}.\n---> hint: give one image. For several, give detect a flat list, [a, b]"
    if hasattr(type(image), "__iter__"):
        return f"{name}.\n---> hint: for several images, give a list: list(images)"
    return name


def _array_hint(image):
    if image.dtype.kind in "OSUT":
        return "give paths as a list: image.tolist()"
    if image.ndim == 4:
        return "give several images as a list: list(image)"
    if image.ndim == 3 and image.shape[0] == 3:
        return "move the channels last: image.transpose(1, 2, 0)"
    if image.ndim == 2:
        return "repeat the grey values: np.repeat(image[:, :, None], 3, axis=2)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "drop alpha: image[:, :, :3]"
    if image.dtype.kind == "f":
        return "scale to 0..255 and convert: (image * 255).round().astype('uint8'), if it holds 0..1"
    return "give a non-empty uint8 array, or a PIL image"
