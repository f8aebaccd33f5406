"""The images of a run: an id and a URI each, from manifests, tar files, folders, patterns and names."""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import files
from ..checkpoints.json_file import status
from ..errors import ArgumentError, Error, brief
from ..inputs import is_video
from ..results import Detections
from . import manifest, remote, tar

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MAX_RANGE = 10**6  # numbers
MAX_URI = 8192  # characters. What a worker is given must fit into the buffers of the system: then no process waits


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a run.

    Attributes:
        id: a different number for each image, within int64.
        uri: what `opening.open_uri` opens.
    """

    id: int
    uri: str


def stable_id(uri: str) -> int:
    """Return an id for an image without one: a hash of its URI, from 0 to 2**63 - 1.

    It does not depend on other images, so it stays the same where some are added.
    """
    digest = hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def record(item: Item, result: Detections | Error) -> dict:
    """Return the JSON object of one image, as `files.record` does, with "id" after "image".

    Args:
        item: the image.
        result: its detections, or the error.
    """
    return {"image": item.uri, "id": item.id, **files.record(item.uri, result)}


def read_items(sources: Sequence[str], *, recursive: bool = False) -> Iterator[Item]:
    """List the images of some sources, in their order. A manifest is read row by row, however long it is.

    Args:
        sources: each one of

            - a manifest, as in `manifest.read`: a file with one of its endings;
            - a tar file, with the ending .tar, as in `tar.members`;
            - a folder or a pattern, of this machine as in `files.find_images`, or of a store as in `remote.find`;
            - an image: any other path or URL, whether it exists or not.

            In all of them, {000..127} stands for the numbers from 000 to 127, unless a file has this name.
        recursive: whether the subfolders of a folder are searched too.

    Returns:
        An iterator of images with different ids. The ids of a manifest are those in it, others are from `stable_id`.

    Raises:
        ImageError: if a folder or a pattern has no image or cannot be read.
        ArgumentError: if a source is a video or standard input. The iterator also raises it for a manifest or a tar
            file that cannot be read or has an invalid row, for a URI of over 8192 characters, and at its end if an id
            occurs twice.
    """
    names = [name for source in sources for part in _in_range(source) for name in _found(part, recursive)]
    for name in names:
        if name == files.STDIN or is_video(name):
            got = "standard input" if name == files.STDIN else f"the video {brief(name)}"
            raise ArgumentError(f"a run needs images with names, from files; got {got}. Use `minigdino detect` for it")
    return _checked(list(dict.fromkeys(names)))


def _in_range(source) -> Iterator[str]:
    """Yield the names that a source such as "{000..127}.tar" stands for."""
    found = RANGE.search(source)
    if not found or (remote.is_local(source) and status(source)):
        yield source
        return
    first, last = map(int, found.groups())
    if not 0 <= last - first < MAX_RANGE:
        raise ArgumentError(f"{source}: expected an ascending range of at most {MAX_RANGE} numbers, such as "
                            f"{{000..127}}; got {found[0]}. Correct it")
    width = len(found[1]) if found[1].startswith("0") else 0
    for number in range(first, last + 1):
        yield from _in_range(f"{source[: found.start()]}{number:0{width}}{source[found.end() :]}")


def _found(source, recursive):
    """The files that a source stands for."""
    if remote.is_store(source):
        return remote.find(source, recursive)
    path = remote.local_path(source) if remote.is_local(source) else source
    return files.find_images([path], recursive=recursive)


def _items(name) -> Iterator[Item]:
    """The images of one file."""
    if manifest.is_manifest(name):
        return (Item(number, uri) for number, uri in manifest.read(name))
    return (Item(stable_id(uri), uri) for uri in (tar.members(name) if tar.is_tar(name) else [name]))


def _checked(names) -> Iterator[Item]:
    """Yield the images of files, and check at the end that their ids differ."""
    ids, starts = array("q"), array("q")  # id of each image; number of images before each file
    for name in names:
        starts.append(len(ids))
        for item in _items(name):
            ids.append(item.id)
            if len(item.uri) > MAX_URI:
                raise ArgumentError(f"{_place(names, starts, len(ids) - 1)}: expected a path or a URL of at most "
                                    f"{MAX_URI} characters; got {len(item.uri)}: {brief(item.uri)}. Use a shorter one")
            yield item
    numbers = np.frombuffer(ids, np.int64) if ids else np.empty(0, np.int64)
    ordered = np.sort(numbers)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        places = (_place(names, starts, i) for i in np.flatnonzero(numbers == twice[0])[:2])
        raise ArgumentError(f"expected a different id for each image; {' and '.join(places)} have the id {twice[0]}. "
                            "Change one of the two, or remove it")


def _place(names, starts, i):
    """Name an image in an error message: its file, and its number in a manifest or tar file."""
    at = bisect_right(starts, i) - 1
    many = manifest.is_manifest(names[at]) or tar.is_tar(names[at])
    return remote.shown_name(names[at]) + (f" (image {i - starts[at] + 1})" if many else "")
