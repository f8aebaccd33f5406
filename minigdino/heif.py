"""HEIC images, as phones write them, by the optional package pillow-heif. Its reader is not registered in Pillow."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image

from .errors import ImageError
from .extras import require

ENDINGS = (".heic", ".heif")
BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
GENERAL_BRANDS = (b"mif1", b"msf1")  # of HEIC and AVIF, whose own brands follow in a list
AVIF_BRANDS = (b"avif", b"avis")
MAX_BYTES = 2**28  # limit for a file, which is read at once; more than an image of 179 million pixels needs


def is_heif(file: BinaryIO) -> bool:
    """Return whether a file begins like a HEIC image.

    Args:
        file: the file, of any content. Its position changes.
    """
    file.seek(0)
    start = file.read(12)  # length of the list, "ftyp", first brand
    if start[4:8] != b"ftyp" or start[8:] not in BRANDS + GENERAL_BRANDS:
        return False
    others = file.read(max(min(int.from_bytes(start[:4], "big"), 1000) - 12, 0))  # a version, and further brands
    return start[8:] in BRANDS or not any(others[i : i + 4] in AVIF_BRANDS for i in range(4, len(others), 4))


def open_heif(file: BinaryIO) -> Image.Image:
    """Decode a HEIC image. The rotation that the file asks for is applied, and not part of the result.

    Args:
        file: the file. Its position changes.

    Returns:
        The image, in mode RGB, RGBA or L.

    Raises:
        ImageError: if pillow-heif cannot be imported, or the file has more than `MAX_BYTES`.
        DecompressionBombError: if the image has more than twice Pillow's maximum number of pixels.
    """
    pillow_heif = require("pillow_heif", "a HEIC image", "pillow-heif", ImageError, ", or convert the image to JPEG")
    if (size := file.seek(0, os.SEEK_END)) > MAX_BYTES:
        raise ImageError(f"expected a HEIC image of at most {MAX_BYTES} bytes; got {size}. Convert it to JPEG")
    file.seek(0)
    opened = pillow_heif.open_heif(file)  # reads the header; pixels are decoded below
    (width, height), limit = opened.size, Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise Image.DecompressionBombError(f"Image size ({width * height} pixels) exceeds limit of {2 * limit} pixels, "
                                           "could be decompression bomb DOS attack.")
    return opened.to_pillow()
