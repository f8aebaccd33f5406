"""HEIC images, as phones write them, by the optional package pillow-heif. Its reader is not registered in Pillow."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from .errors import ImageError
from .extras import require

ENDINGS = (".heic", ".heif")
BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # not those of AVIF


def is_heif(file: BinaryIO) -> bool:
    """Return whether a file begins like a HEIC image.

    Args:
        file: the file, of any content. Its position changes.
    """
    file.seek(0)
    start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in BRANDS


def open_heif(file: BinaryIO) -> Image.Image:
    """Decode a HEIC image. The rotation that the file asks for is applied, and not part of the result.

    Args:
        file: the file. Its position changes.

    Returns:
        The image, in mode RGB, RGBA or L.

    Raises:
        ImageError: if pillow-heif cannot be imported.
        DecompressionBombError: if the image has more than twice Pillow's maximum number of pixels.
    """
    pillow_heif = require("pillow_heif", "a HEIC image", "pillow-heif", ImageError, ", or convert the image to JPEG")
    file.seek(0)
    opened = pillow_heif.open_heif(file)  # reads the header; pixels are decoded below
    (width, height), limit = opened.size, Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise Image.DecompressionBombError(f"Image size ({width * height} pixels) exceeds limit of {2 * limit} pixels, "
                                           "could be decompression bomb DOS attack.")
    return opened.to_pillow()
