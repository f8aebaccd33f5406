"""Tar files of many images, as WebDataset writes them. Members are read in place, without extraction.

The URI of a member has the name of its tar file: photos-000.tar#a.jpg. Each process keeps the places of the members of
the tar files that it read last.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from ..checkpoints.json_file import status
from ..errors import ArgumentError, ImageError, brief
from ..image import MAX_BYTES, endings
from .remote import has_ending, is_local, local_path, open_file, read_range, reading

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # all but the first are refused
MEMBER = re.compile(r"(.*?\.tar(?:\?[^#]*)?)#(.+)", re.IGNORECASE | re.DOTALL)
MAX_HEADERS = 2**20  # bytes; limit for the headers of one member
MAX_MEMBERS = 10**6  # limit for the images of a tar file: their names are in memory
FILES = 8  # tar files whose places are kept

Place = tuple[int, int] | None  # position and size of a member; None for one that is no plain file


def is_tar(uri: str) -> bool:
    """Return whether a URI is that of a tar file, by its ending."""
    return has_ending(uri, ENDINGS)


def split(uri: str) -> tuple[str, str] | None:
    """Split the URI of a member into tar file and name. Return None for other URIs."""
    return (found[1], found[2]) if (found := MEMBER.fullmatch(uri)) else None


def members(uri: str) -> list[str]:
    """List the images of a tar file, in its order. A remote one is read as a whole.

    Args:
        uri: a path or a URL.

    Returns:
        URIs of the members with the ending of an image, except hidden ones such as "._a.jpg".

    Raises:
        ArgumentError: if the file cannot be read, is compressed or damaged, contains no images or more than
            `MAX_MEMBERS`, or has two members of one name.
    """
    with reading(uri, ArgumentError):
        if not (places := _places(uri)):
            raise ArgumentError("expected a tar file with images, such as .jpg files; found none. Check the file")
        return [f"{uri}#{name}" for name in places]


def read_member(uri: str, name: str) -> bytes:
    """Read a member of a tar file. To be called in `remote.reading`.

    Args:
        uri: a path or a URL.
        name: name of the member.

    Returns:
        Its content.

    Raises:
        ImageError: if there is no such image in the file, or it is a link, sparse or very large.
        Exception: of any type, if the file cannot be read.
    """
    places = _places(uri)
    if name not in places:
        raise ImageError("no such image in the tar file. Check the name: it must be as the tar file has it")
    if (place := places[name]) is None:
        raise ImageError("expected a plain file in the tar file; got a link, a device or a sparse file. Write it to "
                         "the tar file as a plain one")
    start, size = place
    if size > MAX_BYTES:
        raise ImageError(f"expected an image of at most {MAX_BYTES} bytes; got one of {size}. Check the tar file")
    content = read_range(uri, start, start + size)
    if len(content) != size:
        raise ImageError(f"expected {size} bytes; the tar file ends after {len(content)}. Copy it again")
    return content


def _places(uri):
    """{name: place} of the images of a tar file. A local file that has changed is read again."""
    found = status(local_path(uri)) if is_local(uri) else None
    with _lock:  # so that several threads do not read the same file
        return _read_places(uri, found and (found.st_mtime_ns, found.st_size, found.st_ino))


@lru_cache(FILES)
def _read_places(uri, _stamp) -> dict[str, Place]:
    known, places = endings(), {}
    with open_file(uri) as file:
        headers: Any = _Headers(file)
        try:
            with tarfile.open(fileobj=headers, mode="r:") as found:
                opened: Any = found  # its list `members` is missing in the types of Python
                while member := opened.next():
                    opened.members.clear()  # which would grow
                    headers.left = MAX_HEADERS
                    if opened.offset <= member.offset:  # which some versions of tarfile follow without end
                        raise tarfile.ReadError(f"a member has a negative size at byte {member.offset}")
                    path = PurePosixPath(member.name)
                    if member.isdir() or path.suffix.lower() not in known or path.name.startswith("."):
                        continue
                    if member.name in places:
                        raise ArgumentError("expected different names in the tar file; got "
                                            f"{brief(member.name)} twice. Rename one of the two")
                    if len(places) == MAX_MEMBERS:
                        raise ArgumentError(f"expected at most {MAX_MEMBERS} images in a tar file; got more. Split it")
                    is_plain = member.isreg() and not member.issparse()
                    places[member.name] = (member.offset_data, member.size) if is_plain else None
                file.seek(opened.offset)
                if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                    raise tarfile.ReadError(f"no valid header at byte {opened.offset}")
        except tarfile.TarError as error:
            raise ArgumentError(f"expected a complete tar file without compression; got another one or a damaged one "
                                f"({brief(error)}). Copy it again, or decompress it") from None
    return places


class _Headers:
    """A file as `tarfile` reads it, with a limit for the headers of a member.

    tarfile reads long names and maps of sparse files into memory, whatever their stated size.

    Attributes:
        left: bytes that may be read.
    """

    def __init__(self, file):
        self._file, self.left = file, MAX_HEADERS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size):
        """Read at most `size` bytes."""
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"a member has headers of more than {MAX_HEADERS} bytes")
        return self._file.read(size)


_lock = threading.Lock()


def _renew_lock():
    """Create the lock; in a forked child, too, where the thread that holds it does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
