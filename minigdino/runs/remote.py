"""Files on this machine, and by the optional package fsspec (extra `run`) files at URLs such as s3://bucket/list.csv.

fsspec keeps a thread, which a forked process does not have. So processes that read such files must be spawned.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..checkpoints.json_file import open_regular
from ..errors import Error, ImageError, brief
from ..extras import require
from ..image import endings
from ..urls import PRIVATE, is_public, is_url, shown

FSSPEC = "fsspec>=2024.5"
AIOHTTP = "aiohttp>=3.12"  # older ones accept no function that creates sockets
LOCAL = ("", "file", "local")
HTTP = ("http", "https")
BACKENDS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
            "abfss": "adlfs"}
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
PASSWORD = re.compile(r"[^/]+//[^/?#]*:[^/?#]*@")


def scheme(uri: str) -> str:
    """Return the scheme of a URI in lower case, such as "s3"; an empty text for a path."""
    return found[1].lower() if (found := SCHEME.match(uri)) else ""


def is_local(uri: str) -> bool:
    """Return whether a URI is a path, or starts with file://."""
    return scheme(uri) in LOCAL


def is_store(uri: str) -> bool:
    """Return whether a URI is that of a store with folders, such as s3://, and not of a web server or this machine."""
    return scheme(uri) not in (*LOCAL, *HTTP)


def local_path(uri: str) -> str:
    """Return the path of a local file.

    Args:
        uri: a URI for which `is_local` is true. Escapes such as %20 are decoded after file:// only.

    Raises:
        ImageError: if it names another machine.
    """
    if not scheme(uri):
        return uri
    host, slash, path = uri.partition("://")[2].partition("/")
    if host not in ("", "localhost"):
        raise ImageError(f"{uri}: expected a file of this machine, such as file:///data/a.jpg; got one of the machine "
                         f"{brief(host)}. Write three slashes before an absolute path")
    return unquote(slash + path, errors="surrogateescape")


def shown_name(uri: str) -> str:
    """Return a path as it is, and a URL for an error message: without user name and password."""
    return shown(uri) if is_url(uri) else uri


def has_ending(uri: str, known: Collection[str]) -> bool:
    """Return whether the name of a file has one of some endings, such as ".tar", in lower or upper case.

    Args:
        uri: a path or a URL, whose query does not count.
        known: the endings, in lower case.
    """
    return (re.split("[?#]", uri)[0] if scheme(uri) in HTTP else uri).lower().endswith(tuple(known))


@contextlib.contextmanager
def reading(uri: str, kind: type[Error]) -> Iterator[None]:
    """Turn every exception of a file into an error whose message starts with the URI.

    Libraries for remote files raise exceptions of many types. MemoryError passes through.

    Args:
        uri: the file. User name and password are left out of the message.
        kind: type of the error.
    """
    local, name = is_local(uri), shown_name(uri)
    try:
        yield
    except MemoryError:
        raise
    except Error as error:
        raise kind(message if (message := str(error)).startswith(f"{name}: ") else f"{name}: {message}") from None
    except FileNotFoundError as error:
        if scheme(uri) in HTTP and error.__cause__:  # of any kind; fsspec replaces all of them
            raise _unreadable(kind, name, error.__cause__, local) from None
        hint = "Check the path" if local else "Check the URL, and that the credentials of this machine are for it"
        raise kind(f"{name}: no such file. {hint}") from None
    except Exception as error:
        raise _unreadable(kind, name, error, local) from None


def _unreadable(kind, name, error, local):
    hint = "the file and its permissions" if local else "the URL, the connection and the credentials"
    return kind(f"{name}: cannot be read ({type(error).__name__}: {brief(error)}). Check {hint}")


def open_file(uri: str) -> Any:
    """Open a file for reading. To be called in `reading`.

    Args:
        uri: a path or a URL.

    Returns:
        The open binary file. That of a web server without ranges cannot seek.

    Raises:
        Exception: of any type.
    """
    if is_local(uri):
        return open_regular(local_path(uri))
    files, path = _filesystem(uri)
    return files.open(path, "rb")


def read_range(uri: str, start: int, end: int) -> bytes:
    """Read a part of a file, of a remote one by one request. To be called in `reading`.

    Args:
        uri: a path or a URL.
        start: position of the first byte.
        end: position after the last byte.

    Returns:
        The bytes; fewer at the end of the file.

    Raises:
        Exception: of any type.
    """
    if not is_local(uri):
        files, path = _filesystem(uri)
        if scheme(uri) not in HTTP:
            return files.cat_file(path, start=start, end=end)
        file = files.open(path, "rb", cache_type="none", size=end)  # refuses a server that ignores the range
    else:
        file = open_regular(local_path(uri))
    with file:
        file.seek(start)
        return file.read(end - start)


def find(uri: str, recursive: bool) -> list[str]:
    """List the files of a store that a URI stands for.

    Args:
        uri: a URI for which `is_store` is true, with a pattern such as s3://bucket/*.tar, with a slash at its end for
            the images in a folder, or of one file, which is listed as given.
        recursive: whether the subfolders of a folder are searched too.

    Returns:
        The URIs, sorted. Hidden files of a folder are left out.

    Raises:
        ImageError: if there is none, or the store cannot be read.
    """
    is_folder = uri.endswith("/")
    if not is_folder and "*" not in uri:
        return [uri]
    with reading(uri, ImageError):
        files, path = _filesystem(uri)
        if not is_folder:
            entries = files.glob(path, detail=True).values()
        elif recursive:
            entries = files.find(path, detail=True).values()
        else:
            entries = files.ls(path, detail=True)
        found = [entry["name"] for entry in entries if entry["type"] == "file"]
        if is_folder:
            known = endings()
            found = [name for name in found if PurePosixPath(name).suffix.lower() in known
                     and not PurePosixPath(name).name.startswith(".")]
        if not found:
            expected = "a folder with images" if is_folder else "a pattern that matches a file"
            raise ImageError(f"expected {expected}; found none. Check the bucket and the folder")
        return sorted(map(files.unstrip_protocol, found))


def _filesystem(uri):
    """The file system of fsspec for a URI, and the path in it."""
    name = scheme(uri)
    if PASSWORD.match(uri):
        raise ImageError("expected a URL without a password; got one with it. Set the credentials as the package for "
                         f"{name}:// documents it")
    if "::" in uri:  # fsspec would open one file within another, through any protocol
        raise ImageError('expected one URL; got several, separated by "::". Copy the file to a place of its own')
    fsspec = require("fsspec", f"{name}://", FSSPEC)
    options = {}
    if name in HTTP:
        require("aiohttp", f"a tar file or a manifest at {name}://", AIOHTTP)
        options = {"get_client": _client}
    elif name in BACKENDS:
        require(BACKENDS[name], f"{name}://")
    return fsspec.url_to_fs(uri, **options)


async def _client(**options):
    """A client of aiohttp, which connects to the addresses that `urls.download` may use."""
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_socket), **options)


def _socket(info):
    """A socket for an address that a host name was resolved to, also that of a redirect."""
    family, kind, protocol, _, address = info
    if os.environ.get(PRIVATE) != "1" and not is_public(address[0]):
        raise OSError(errno.EACCES, "expected a URL with a public address; its host has a private, local or reserved "
                                    f"one. If you trust the URL, set {PRIVATE}=1")
    return socket.socket(family, kind, protocol)
