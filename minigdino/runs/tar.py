"""Shards in WebDataset's layout: tar files of many images, which are read where they are, without extraction.

A member is named by its shard: photos-000.tar#a.jpg. Each process keeps the places of the members of the last shards.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from functools import lru_cache
from pathlib import PurePosixPath

from ..checkpoints.json_file import status
from ..errors import ArgumentError, ImageError, brief
from ..image import MAX_BYTES, endings
from .remote import has_ending, is_local, local_path, open_file, read_range, reading

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # all but the first are refused
MEMBER = re.compile(r"(.*?\.tar(?:\?[^#]*)?)#(.+)", re.IGNORECASE | re.DOTALL)
MAX_HEADERS = 2**20  # bytes; limit for the headers of one member
MAX_MEMBERS = 10**6  # limit for the images of a shard, whose names are in memory
SHARDS = 8  # whose places are kept

Place = tuple[int, int] | None  # position and size of a member; None for one that is no plain file


def is_shard(uri: str) -> bool:
    """Return whether a URI is that of a shard, by its ending."""
    return has_ending(uri, ENDINGS)


def split(uri: str) -> tuple[str, str] | None:
    """Split the URI of a member into that of its shard and its name. Return None for other URIs."""
    return (found[1], found[2]) if (found := MEMBER.fullmatch(uri)) else None


def members(shard: str) -> list[str]:
    """List the images of a shard, in its order. A remote shard is read as a whole.

    Args:
        shard: a path or a URL.

    Returns:
        URIs of the members with the ending of an image, except hidden ones such as "._a.jpg".

    Raises:
        ArgumentError: if the shard cannot be read, is damaged, contains no images or more than `MAX_MEMBERS`, or has
            two members of one name.
    """
    with reading(shard, ArgumentError):
        if not (places := _places(shard)):
            raise ArgumentError("expected a shard with images, such as .jpg members; found none. Check the file")
        return [f"{shard}#{name}" for name in places]


def read_member(shard: str, name: str) -> bytes:
    """Read a member of a shard. To be called in `remote.reading`.

    Args:
        shard: a path or a URL.
        name: name of the member.

    Returns:
        Its content.

    Raises:
        ImageError: if the shard has no such image, or it is a link, a sparse or a very large file.
        Exception: of any type, if the shard cannot be read.
    """
    places = _places(shard)
    if name not in places:
        raise ImageError("expected the name of an image in the shard; it has none of this name. List the shard again")
    if (place := places[name]) is None:
        raise ImageError("expected a plain file in the shard; got a link, a device or a sparse file. Write the shard "
                         "without them")
    start, size = place
    if size > MAX_BYTES:
        raise ImageError(f"expected an image of at most {MAX_BYTES} bytes; the shard states {size}. Check the shard")
    content = read_range(shard, start, start + size)
    if len(content) != size:
        raise ImageError(f"expected {size} bytes; the shard ends after {len(content)}. Copy the shard again")
    return content


def _places(shard):
    """{name: place} of the images of a shard. A local shard that has changed is read again."""
    found = status(local_path(shard)) if is_local(shard) else None
    with _lock:  # so that several threads do not read the same shard
        return _read_places(shard, found and (found.st_mtime_ns, found.st_size, found.st_ino))


@lru_cache(SHARDS)
def _read_places(shard, _stamp) -> dict[str, Place]:
    known, places = endings(), {}
    with open_file(shard) as file:
        headers = _Headers(file)
        try:
            with tarfile.open(fileobj=headers, mode="r:") as opened:
                while member := opened.next():
                    opened.members.clear()  # which would grow
                    headers.left = MAX_HEADERS
                    path = PurePosixPath(member.name)
                    if member.isdir() or path.suffix.lower() not in known or path.name.startswith("."):
                        continue
                    if member.name in places:
                        raise ArgumentError(f"expected different names in the shard; got {brief(member.name)} twice. "
                                            "Rename one of the two")
                    if len(places) == MAX_MEMBERS:
                        raise ArgumentError(f"expected at most {MAX_MEMBERS} images in a shard; got more. Split it")
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
    """The file of a shard, as `tarfile` reads it, with a limit for the headers of a member.

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
        if self.left < 0:
            raise tarfile.ReadError(f"a member has headers of more than {MAX_HEADERS} bytes")
        return self._file.read(size)


_lock = threading.Lock()


def _renew_lock():
    """Create the lock; in a forked child, too, where the thread that holds it does not exist."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
