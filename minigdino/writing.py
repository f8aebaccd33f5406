"""Write files: whole or not at all, and with a mark by which a later run recognises its own."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from .checkpoints.json_file import is_file, is_folder, open_regular, status
from .errors import ArgumentError, brief, from_signal_handler


def replace_file(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, and create its folder. An existing file keeps its content unless all data can be written.

    Args:
        path: the file. The target of a link is replaced, not the link. A device or a pipe is written to.
        data: the new content, or blocks of it.

    Raises:
        ArgumentError: if the file cannot be written, for example because the disk is full.
    """
    _put(path, [data] if isinstance(data, bytes) else data)


def check_writable(path: str | Path) -> None:
    """Check that `replace_file` can write a file, and create its folder. An existing file keeps its content.

    Args:
        path: as in `replace_file`. A device or a pipe is not opened.

    Raises:
        ArgumentError: if the path is a folder, or if the file or its folder is protected from writing.
    """
    _put(path, None)


def check_replaceable(path: str | Path, is_ours: Callable[[str | Path], bool]) -> None:
    """Check that `replace_file` would not replace a file of the user. A device or a pipe is not replaced.

    Args:
        path: the file.
        is_ours: whether minigdino wrote the existing file, such as `is_drawn`.

    Raises:
        ArgumentError: if another program wrote the file.
    """
    if is_file(path) and not is_stream(path) and not is_ours(path):
        raise ArgumentError(f"{path} exists, and is not marked as written by minigdino. Choose another name, or give "
                            "--overwrite to replace it")


def _put(path, blocks):
    """Write a file; with None as the blocks, do all steps that come before the writing."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if blocks is None and is_folder(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if is_stream(path):
            if blocks is not None:  # opening a pipe waits for its reader
                with open(path, "ab") as file:  # standard output may be a file that has content
                    file.writelines(blocks)
        else:
            _replace(os.path.realpath(path), blocks)
    except ArgumentError:  # of the blocks, such as a full folder of temporary files
        raise
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: cannot write there ({reason(error)}). Choose another path") from None


STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # names of open files, which must not be replaced by other files


def is_stream(path: str | Path) -> bool:
    """Return whether a path is written to, not replaced: a device, a pipe, or the name of an open file."""
    return bool(status(path) and not is_file(path)) or os.path.abspath(path).startswith(STREAMS)


def _replace(path, blocks):
    exists = os.path.exists(path)
    if exists:
        open(path, "r+b").close()  # a file that is protected from writing stays as it is
    part = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.part")
    try:
        mode = 0o600 if exists else 0o666  # other users must not read a private file
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if blocks is None:
                return
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
        if exists:
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def encoded(picture: Image.Image, path: str | Path) -> bytes:
    """Encode a picture, with the mark of minigdino. Pillow chooses the format by the name.

    Args:
        picture: the picture.
        path: the file to which it will be written.

    Returns:
        The bytes of the file.

    Raises:
        ArgumentError: if Pillow does not write the format, or not for this size.
    """
    file = io.BytesIO()
    file.name = os.path.basename(path)
    try:
        picture.save(file, **drawn_marks())
    except MemoryError:
        raise
    except Exception as error:  # encoders raise many types for a size or a mode that their format does not have
        reason = f"Pillow does not write {error}" if isinstance(error, KeyError) else brief(error)
        if not os.path.splitext(path)[1]:
            reason = "the name has no ending"
        raise ArgumentError(f"{path}: cannot write there ({reason}). Choose an ending, such as .png") from None
    return file.getvalue()


def drawn_marks() -> dict[str, Any]:
    """Return options of `PIL.Image.Image.save` that mark a picture, which a later run may then replace.

    The mark is "Software: minigdino", in the text of a PNG and in the EXIF of a JPEG, WebP, TIFF or AVIF. In a GIF, it
    is the comment "minigdino". Other formats ignore these options.
    """
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Software", MARK)
    exif[ExifTags.Base.Software] = MARK
    return {"pnginfo": text, "exif": exif, "comment": MARK}


MARK = "minigdino"
MARKED = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF")


def is_drawn(path: str | Path) -> bool:
    """Return whether a file is a picture with the mark of `drawn_marks`.

    Args:
        path: a file of any kind.

    Returns:
        False for every other file, and for one that cannot be read.
    """
    Image.init()
    known = [name for name in MARKED if name in Image.OPEN]  # a build of Pillow can lack some
    try:
        with open_regular(path) as file, Image.open(file, formats=known) as picture:
            if picture.format == "PNG":  # whose EXIF may be behind the pixels
                return picture.info.get("Software") == MARK
            if picture.format == "GIF":
                return picture.info.get("comment") == MARK.encode()
            return picture.getexif().get(ExifTags.Base.Software) == MARK
    except Exception as error:  # Pillow raises many types for damaged files
        if from_signal_handler(error):
            raise
        return False


def ends(path: str | Path, first: int, last: int = 0) -> tuple[bytes, bytes]:
    """Read the start and the end of a file, where programs leave their marks.

    Args:
        path: a file of any kind.
        first: number of bytes at the start.
        last: number of bytes at the end.

    Returns:
        Both, as far as the file is long enough; nothing of a file that cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(first)
            file.seek(-min(last, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return start, file.read()
    except (OSError, ValueError) as error:
        if from_signal_handler(error):
            raise
        return b"", b""


def reason(error: Exception) -> str:
    """Return why an operation on a file failed, in the words of the system if it has any."""
    return getattr(error, "strerror", None) or brief(error)
