"""Images from URLs, by HTTP and HTTPS: with limits on size, time and redirects, and from public addresses only.

A URL can come from anyone, and must not reach services that only this machine, or its network, can reach. So each host
name is resolved once, the addresses are checked, and the connection goes to a checked address. Proxies that are set in
the environment are not used, because a proxy would resolve the name again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import os
import re
import string
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from .errors import ImageError, brief, from_signal_handler
from .version import __version__

if TYPE_CHECKING:
    import http.client  # otherwise imported when a URL is opened: it takes a third of the time of `import minigdino`

MAX_BYTES = 10**8
MAX_SECONDS = 30  # for the whole transfer, with all redirects
MAX_REDIRECTS = 5
BLOCK = 2**16  # bytes
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
PRIVATE = "MINIGDINO_PRIVATE_URLS"
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses in networks that have IPv6 only
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
RESERVED = tuple(map(ipaddress.ip_network, (
    "192.0.0.0/24",  # protocol assignments; older Pythons count a part of it as global
    "192.88.99.0/24",  # formerly relays to IPv6
    "168.63.129.16/32",  # services that Azure offers to a virtual machine
    "3fff::/20")))  # documentation; older Pythons count it as global
MAX_NAME = 50  # characters of a file name, which can have 4 bytes each
MAX_FOLDERS = 8


class UrlError(ImageError):
    """A URL is invalid, or cannot be downloaded.

    Args:
        cause: what was expected, and what came. It is the same for each host without a public address, also for an
            unknown one, so that clients of a server do not learn the names of its network.
        next_step: what a user of this machine can do.
    """

    def __init__(self, cause: str, next_step: str = ""):
        super().__init__(cause, next_step)
        self.cause, self.next_step = cause, next_step

    def __str__(self):
        return ". ".join(filter(None, self.args))

    def at(self, where: str) -> UrlError:
        """Return the same error with the URL in front."""
        return type(self)(f"{where}: {self.cause}", self.next_step)


class TooLarge(UrlError):
    """The content has more bytes than allowed."""


class Download(bytes):
    """The content of a URL.

    Attributes:
        url: the URL, as error messages show it.
    """

    url = ""


def is_url(source: object) -> bool:
    """Return whether an input is a str that starts with a scheme, such as "https://". A `Path` is never a URL.

    Those that cannot be downloaded count too, so that the message names the reason.
    """
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://|data:image/", source, re.I) is not None


def shown(url: str) -> str:
    """Return a URL for an error message: printable, at most 300 characters, and without user name and password."""
    text = re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", url)
    try:
        _ = urlsplit(url).port
    except ValueError as error:  # a password with a slash looks like an invalid port, and a path
        if from_signal_handler(error):
            raise
        text = re.sub(r"//.*@", "//", text, count=1, flags=re.DOTALL)
    return brief(Exception(text))


def local_name(url: str) -> str:
    """Return a relative path for results of a URL: its host and its path, as names that file systems accept.

    Args:
        url: a URL that `check` accepts.

    Returns:
        The path, without "..". The name contains a hash of the URL if there is a query, or if a part was too long.
    """
    parts = urlsplit(url)
    above, _, last = parts.path.rpartition("/")
    folders = list(filter(None, map(_safe_name, (parts.netloc.lower(), *above.split("/")))))
    stem, ending = os.path.splitext(_safe_name(last) or "index")
    longest = max(map(len, (stem, *folders)))
    if parts.query or longest > MAX_NAME or len(folders) > MAX_FOLDERS:
        stem = f"{stem[:MAX_NAME]}-{hashlib.sha256(url.encode(errors='replace')).hexdigest()[:8]}"
    return "/".join([*(folder[:MAX_NAME] for folder in folders[:MAX_FOLDERS]), stem + ending[:8]])


def _safe_name(part):
    return "".join("_" if c in '<>:"\\|?*' or not c.isprintable() else c for c in part).strip(". ")


def check(url: str) -> None:
    """Check the form of a URL. No connection is opened.

    Args:
        url: the URL.

    Raises:
        UrlError: if it is invalid, has another scheme than http and https, or has a user name or a password.
    """
    try:
        _parsed(url)
    except UrlError as error:
        raise error.at(shown(url)) from None


def download(url: str, *, max_bytes: int | None = None, seconds: float | None = None) -> Download:
    """Download a file. Redirects are followed, and a compressed answer is decompressed.

    Args:
        url: an http or https URL.
        max_bytes: largest number of bytes; None for `MAX_BYTES`.
        seconds: time for the whole transfer, with all redirects; None for `MAX_SECONDS`.

    Returns:
        The content, of any type but a web page.

    Raises:
        UrlError: if the URL is invalid, if it or a redirect leads to an address that is not public (unless
            $MINIGDINO_PRIVATE_URLS is 1), if the server does not answer with status 200 and a content, or if
            `max_bytes`, `seconds` or `MAX_REDIRECTS` is exceeded. The time of a name server is limited by the system
            only. `TooLarge` for `max_bytes`.
    """
    from http.client import HTTPException

    max_bytes = MAX_BYTES if max_bytes is None else max_bytes
    seconds = MAX_SECONDS if seconds is None else seconds
    where, deadline, target = shown(url), time.monotonic() + seconds, url
    of_caller = sys.exc_info()[1]
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(target, deadline, max_bytes)
            if isinstance(answer, bytes):
                found = Download(answer)
                found.url = where
                return found
            target = answer
            where = f"{shown(url)}, redirected to {shown(target)}"
        raise UrlError(f"expected at most {MAX_REDIRECTS} redirects; got more", "Give the URL of the image itself")
    except UrlError as error:
        raise error.at(where) from None
    except TimeoutError:
        raise UrlError(f"{where}: expected a complete answer within {seconds:.3g} s; got none", OTHERWISE) from None
    except (OSError, ValueError, HTTPException, zlib.error) as error:
        _raise_interruption(error, of_caller)
        raise UrlError(f"{where}: cannot be downloaded ({brief(error)})", "Check the URL and the connection") from None


OTHERWISE = "Download the file with another program, and give its path"
OTHER_SCHEMES = {"file": "Give the path without file://", "data": "Decode its base64 text, and give the bytes"}


def _raise_interruption(error, of_caller):
    """Raise the exception of a signal handler, if `http.client` has replaced it, as it does with a ValueError."""
    while (error := error.__context__) and error is not of_caller:
        if from_signal_handler(error):
            raise error


def _parsed(url) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError
    except ValueError:  # its message can contain a part of a password
        raise UrlError("not a valid URL; expected one such as https://example.org/cat.jpg") from None
    if parts.scheme not in PORTS:
        raise UrlError(f"expected a URL that starts with http:// or https://; got {parts.scheme}:",
                       OTHER_SCHEMES.get(parts.scheme, OTHERWISE))
    if "@" in parts.netloc:
        raise UrlError("expected a URL without user name and password; got one with them", OTHERWISE)
    if not parts.hostname:
        raise UrlError("expected a URL with a host, such as https://example.org/cat.jpg; got none")
    return parts


def _get(url, deadline, max_bytes) -> bytes | str:
    """Request a URL. Returns its content, or the URL to which the server redirects."""
    import http.client

    parts = _parsed(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    with _connected(host, port, deadline, parts.scheme == "https") as sock:
        connection = http.client.HTTPConnection(host, port)
        connection.default_port = PORTS[parts.scheme]  # which the header "Host" omits
        connection.sock = _Timed(sock, deadline)  # it opens none of its own
        target = quote(parts.path or "/", SAFE) + (f"?{quote(parts.query, SAFE)}" if parts.query else "")
        connection.request("GET", target, headers={"User-Agent": f"minigdino/{__version__}", "Accept": "image/*"})
        with contextlib.closing(connection.getresponse()) as response:
            location = response.headers["Location"]
            if response.status in REDIRECTS and location:
                return urljoin(url, quote(location.strip().encode("latin-1"), SAFE))  # its bytes, usually UTF-8
            if response.status != http.client.OK:
                phrase = http.client.responses.get(response.status, "unknown")
                raise UrlError(f"expected an image; the server answered {response.status} ({phrase})", "Check the URL")
            return _content(response, max_bytes)


SAFE = string.punctuation  # a URL may contain escapes, so "%" stays


@contextlib.contextmanager
def _connected(host, port, deadline, secure):
    """An open socket to a host, with TLS if it is secure."""
    with _socket(host, port, deadline) as plain:
        if not secure:
            yield plain
            return
        import ssl

        plain.settimeout(_left(deadline))
        with ssl.create_default_context().wrap_socket(plain, server_hostname=host) as encrypted:
            yield encrypted


NO_ADDRESS = "expected a URL with a public address; its host has none"


def _socket(host, port, deadline):
    """Connect to the first address of a host that answers. The addresses that are checked are those connected to."""
    import socket

    try:
        addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except socket.gaierror as error:
        raise UrlError(NO_ADDRESS, f"Its name cannot be resolved ({brief(error)}): check the URL and the connection"
                       ) from None
    if os.environ.get(PRIVATE) != "1":
        addresses = list(filter(is_public, addresses))
    if not addresses:
        raise UrlError(NO_ADDRESS, f"It has a private, local or reserved one: set {PRIVATE}=1, if you trust the URL")
    for i, address in enumerate(addresses[:-1]):
        try:
            return socket.create_connection((address, port), _left(deadline) / (len(addresses) - i))
        except OSError as error:
            if from_signal_handler(error):
                raise
    return socket.create_connection((addresses[-1], port), _left(deadline))


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public Internet.

    Args:
        address: an IPv4 or IPv6 address. Of an IPv6 address that stands for an IPv4 address, the latter counts.

    Returns:
        False for private, loopback, link-local, multicast, reserved and unspecified addresses.
    """
    ip: Any = ipaddress.ip_address(address)
    if ip.version == 6:
        inner = ip.ipv4_mapped or ip.sixtofour
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else inner or ip
    if any(ip in network for network in RESERVED) or (ip.version == 6 and ip not in GLOBAL_V6):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


class _Timed:
    """A socket, as `http.client` uses one, whose operations end at a deadline.

    The timeout of a socket is one for each operation, so a server that sends a byte now and then would never exceed it.
    """

    def __init__(self, sock, deadline):
        self._sock, self._deadline = sock, deadline

    def sendall(self, data):
        """Send all bytes."""
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, _mode):
        """Return a buffered file of the incoming bytes."""
        return _Buffered(_Reader(self._sock, self._deadline))

    def close(self):
        """Leave the socket open: `http.client` closes it while the content is still to be read."""


class _Buffered(io.BufferedReader):
    """A file that refuses to read without a limit, as `http.client` does for a chunk whose stated length is -1."""

    def read(self, size=-1, /):
        """Read at most `size` bytes."""
        if size is None or size < 0:
            raise ValueError("a chunk has a negative length")
        return super().read(size)


class _Reader(io.RawIOBase):
    """The incoming bytes of a socket until a deadline."""

    def __init__(self, sock, deadline):
        self._sock, self._deadline = sock, deadline

    def readable(self):
        """Return True, as `io.BufferedReader` needs."""
        return True

    def readinto(self, buffer):
        """Receive bytes into a buffer, and return their number."""
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


def _left(deadline):
    """The seconds until a deadline."""
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _content(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Read the content of an answer, limited also after decompression."""
    expected, blocks, size = response.length, [], 0  # the length is None if the server does not state it
    while size <= max_bytes and (block := response.read(BLOCK)):
        blocks.append(block)
        size += len(block)
    if size > max_bytes:
        raise _too_large(max_bytes)
    if expected is not None and size < expected:
        raise UrlError(f"expected {expected} bytes; the connection ended after {size}", "Try again")
    content = _decompressed(b"".join(blocks), response.headers.get("Content-Encoding", "identity").strip().lower(),
                            max_bytes)
    if not content:
        raise UrlError("expected an image; the answer is empty", "Check the URL")
    if content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        raise UrlError("expected an image; got a web page", "Give the URL of the image itself")
    return content


def _decompressed(data, encoding, max_bytes):
    """Undo the compression of an answer. None was requested, but some servers compress nevertheless."""
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UrlError(f"expected an answer without compression, or with gzip; got {brief(encoding)}", OTHERWISE)
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS + 32)  # of either format
    data = decoder.decompress(data, max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    if not decoder.eof:
        raise UrlError("expected complete gzip data; its end is missing", "Try again")
    return data


def _too_large(max_bytes):
    return TooLarge(f"expected at most {max_bytes} bytes; got more", OTHERWISE)
