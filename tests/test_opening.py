"""One function opens an image wherever it is: on this machine, at a URL, in a store, or in a tar file there."""

import contextlib
import io
import multiprocessing
import signal
import sys
import tarfile

import numpy as np
import pytest
import tiny
from PIL import Image
from test_urls import Server

from minigdino import ArgumentError, ImageError
from minigdino.image import open_image
from minigdino.runs import manifest, opening, remote, tar
from minigdino.runs.opening import open_uri

PHOTO = tiny.photo(6, 8)


def png():
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    return file.getvalue()


def shard(n=3):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for i in range(n):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(png())
            opened.addfile(member, io.BytesIO(png()))
    return file.getvalue()


CONTENTS = {"a b.png": png(), "s-0.tar": shard(), "list.csv": b"id,uri\n7,a.png\n",
            "list.jsonl": b'{"id": 7, "uri": "a.png"}'}
SECRETS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def fsspec():
    return pytest.importorskip("fsspec", reason="needs the extra run")


@pytest.fixture
def memory(fsspec):
    """The folder of a store of fsspec in memory."""
    files = fsspec.filesystem("memory")
    for name, content in CONTENTS.items():
        files.pipe_file(f"/box/{name}", content)
    tar._read_places.cache_clear()
    yield "memory://box"
    files.rm("/box", recursive=True)


@pytest.fixture(scope="module")
def site():
    with Server() as running:
        yield running


def with_ranges(content):
    def page(handler):
        wanted = handler.headers.get("Range", "")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = min(int(last) + 1 if last else len(content), len(content))
        if wanted:
            handler.answer(206, content[int(first) : end],
                           Content_Range=f"bytes {first}-{end - 1}/{len(content)}", Accept_Ranges="bytes")
        else:
            handler.answer(200, content, Accept_Ranges="bytes")

    return page


@pytest.fixture
def web(site, monkeypatch):
    """A web server with ranges, whose private address may be used."""
    monkeypatch.setenv("MINIGDINO_PRIVATE_URLS", "1")
    site.pages = {f"/box/{name.replace(' ', '%20')}": with_ranges(content) for name, content in CONTENTS.items()}
    tar._read_places.cache_clear()
    return f"{site.url}/box"


@pytest.fixture
def local(tmp_path):
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


@pytest.fixture(params=["local", "file", "memory", "web", "s3", "gs"])
def place(request):
    """A folder of the same files in every kind of place."""
    if request.param == "file":
        return f"file://{request.getfixturevalue('local')}"
    if request.param == "web":
        pytest.importorskip("aiohttp", reason="needs the extra run")
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def bucket(fsspec):
    """A bucket on a server with the interface of S3."""
    server = pytest.importorskip("moto.server", reason="needs moto and s3fs").ThreadedMotoServer(port=0)
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SECRETS.items():
            patched.setenv(name, value)
        patched.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        fill(fsspec.filesystem("s3"))
        yield "s3://box"
    server.stop()


@pytest.fixture
def s3(bucket):
    tar._read_places.cache_clear()
    return bucket


@pytest.fixture(scope="module")
def google_bucket(fsspec):
    """A bucket on a server with the interface of Google Cloud Storage."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator and gcsfs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google what kind of bucket this is
        pytest.importorskip("gcsfs")
        server = emulator.create_server("127.0.0.1", 0, in_memory=True)
        server.start()
        host, port = server._api._httpd.server_address
        patched.setitem(fsspec.config.conf, "gs", {"endpoint_url": f"http://{host}:{port}", "token": "anon",
                                                   "project": "p"})
        fill(fsspec.filesystem("gs"))
        yield "gs://box"
        server.stop()


@pytest.fixture
def gs(google_bucket):
    tar._read_places.cache_clear()
    return google_bucket


def fill(files):
    """Write the contents into a new bucket."""
    files.mkdir("box")
    for name, content in (CONTENTS | {"empty.png": b""}).items():
        files.pipe_file(f"box/{name}", content)


def reason(uri, kind=ImageError, function=open_uri):
    with pytest.raises(kind) as raised:
        function(uri)
    start, found, message = str(raised.value).partition(": ")
    assert found and start == uri and str(raised.value).isprintable()
    return message


# ---- every place


def test_an_image_is_the_same_in_every_place(place):
    name = "a%20b.png" if place.startswith(("http", "file")) else "a b.png"
    for uri in (f"{place}/{name}", f"{place}/s-0.tar#0.png", f"{place}/s-0.tar#2.png"):
        image = open_uri(uri)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PHOTO)


def test_a_manifest_and_a_tar_file_are_the_same_in_every_place(place):
    for name in ("list.csv", "list.jsonl"):
        assert list(manifest.read(f"{place}/{name}")) == [(7, "a.png")]
    assert tar.members(f"{place}/s-0.tar") == [f"{place}/s-0.tar#{i}.png" for i in range(3)]


def test_a_parquet_manifest_is_the_same_in_every_place(place, request):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra run")
    import pyarrow as pa

    file = io.BytesIO()
    parquet.write_table(pa.table({"id": [7, 8], "uri": ["a.png", "b.png"]}), file)
    if place.startswith("http"):
        request.getfixturevalue("site").pages["/box/list.parquet"] = with_ranges(file.getvalue())
    elif remote.is_local(place):
        with open(f"{remote.local_path(place)}/list.parquet", "wb") as output:
            output.write(file.getvalue())
    else:
        fsspec = request.getfixturevalue("fsspec")
        fsspec.filesystem(remote.scheme(place)).pipe_file(f"{place}/list.parquet", file.getvalue())
    assert list(manifest.read(f"{place}/list.parquet")) == [(7, "a.png"), (8, "b.png")]


def test_a_missing_file_is_named_in_every_place(place):
    for message in (reason(f"{place}/void.png"), reason(f"{place}/void.tar#0.png"),
                    reason(f"{place}/void.csv", ArgumentError, lambda uri: list(manifest.read(uri)))):
        assert ("404" if place.startswith("http") else "no such file") in message


def test_a_file_that_is_no_image_is_named_in_every_place(place):
    assert "not a readable image; expected the content of one of the formats" in reason(f"{place}/list.csv")


# ---- this machine


def test_a_path_is_that_of_open_image(local, monkeypatch):
    monkeypatch.chdir(local)
    np.testing.assert_array_equal(np.asarray(open_uri("a b.png")), np.asarray(open_image("a b.png")))
    assert reason("a.png").startswith("no such file")
    assert reason(local).startswith("expected an image file; got a folder")


def test_a_file_url_of_another_machine(local):
    message = reason("file://a.png")
    assert message == ("expected a file of this machine, such as file:///data/a.jpg; got one of the machine 'a.png'. "
                       "Write three slashes before an absolute path")
    assert open_uri(f"file://localhost{local}/a%20b.png").size == (8, 6)


def load(uri):
    return open_uri(uri).size


def test_a_spawned_process_opens_an_image(local):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(load, [f"{local}/a b.png", f"{local}/s-0.tar#1.png"]) == [(8, 6), (8, 6)]


# ---- stores


def test_fsspec_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    message = 'memory:// needs the package fsspec, which is not installed. Run: pip install "fsspec>=2024.5"'
    assert reason("memory://box/a.png") == message


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_the_package_of_a_store_is_named_if_it_is_missing(fsspec, monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = f"{scheme}:// needs the package {package}, which is not installed. Run: pip install {package}"
    assert reason(f"{scheme}://box/a.png") == reason(f"{scheme}://box/a.tar#a.png") == message


def test_an_unknown_scheme(fsspec):
    assert reason("nowhere://box/a.png") == ("cannot be read (ValueError: Protocol not known: nowhere). Check the "
                                             "URL, the connection and the credentials")


def test_urls_within_urls_are_refused(memory):
    for uri in (f"memory://box/a.png::{memory}/a", "zip://a.png::http://127.0.0.1/a.zip"):
        assert reason(uri) == 'expected one URL; got several, separated by "::". Copy the file to a place of its own'


@pytest.mark.parametrize("function", [open_uri, lambda uri: list(manifest.read(uri)), tar.members,
                                      lambda uri: remote.find(f"{uri}/*.png", recursive=False)])
@pytest.mark.parametrize("uri", ["ftp://me:s3cr3t@box/a.png", "https://me:s3cr3t@box/a.png",
                                 "s3://k:s3cr3t@box/a.tar#a.png"])
def test_a_message_never_has_the_password(fsspec, function, uri):
    with pytest.raises((ImageError, ArgumentError)) as raised:
        function(uri)
    assert "s3cr3t" not in str(raised.value) and "without " in str(raised.value)


def test_a_large_object_is_not_read_into_memory(memory, monkeypatch):
    monkeypatch.setattr(opening, "MAX_BYTES", len(png()))
    assert open_uri(f"{memory}/a b.png").size == (8, 6)
    monkeypatch.setattr(opening, "MAX_BYTES", 10)
    assert reason(f"{memory}/a b.png") == "expected an image of at most 10 bytes; got more. Check the file"


class Refused(Exception):
    """An exception of a package for a store, which derives from none of Python's."""


@pytest.fixture
def failing(fsspec):
    """A store whose files raise an exception: a function that sets it."""
    class Failing(fsspec.AbstractFileSystem):
        protocol, cachable, error = "failing", False, None

        def _raise(self, *_, **__):
            raise Failing.error

        open = cat_file = glob = ls = find = _raise

    fsspec.register_implementation("failing", Failing, clobber=True)
    return lambda error: setattr(Failing, "error", error)


@pytest.mark.parametrize("kind", [Refused, OSError, PermissionError, ValueError, TimeoutError, ImportError])
def test_every_exception_of_a_store_is_an_error_of_the_file(failing, kind):
    failing(kind("bucket\nof another"))
    expected = f"cannot be read ({kind.__name__}: bucket of another). Check the URL, the connection and the credentials"
    assert reason("failing://box/a.png") == reason("failing://box/a.tar#a.png") == expected
    assert reason("failing://box/a.csv", ArgumentError, lambda uri: list(manifest.read(uri))) == expected
    assert reason("failing://box/a.tar", ArgumentError, tar.members) == expected
    for pattern in ("failing://box/*.png", "failing://box/"):
        assert reason(pattern, ImageError, lambda uri: remote.find(uri, recursive=True)) == expected


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_is_no_error_of_a_file_passes_through(failing, kind):
    failing(error := kind("stop"))
    for uri in ("failing://box/a.png", "failing://box/a.tar#a.png"):
        with pytest.raises(kind) as raised:
            open_uri(uri)
        assert raised.value is error


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [TimeoutError, ValueError, ImageError, FileNotFoundError])
def test_an_exception_of_a_signal_handler_is_unchanged(failing, monkeypatch, kind):
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    monkeypatch.setattr(remote, "_filesystem", lambda uri: signal.raise_signal(signal.SIGALRM))
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for uri in ("failing://box/a.png", "failing://box/a.tar#a.png"):
            with pytest.raises(kind) as raised:
                open_uri(uri)
            assert raised.value is error
    finally:
        signal.signal(signal.SIGALRM, before)


def test_patterns_and_folders_of_a_store(fsspec, memory):
    files = fsspec.filesystem("memory")
    for name in ("._a b.png", "deep/b.JPG", "deep/er/c.png", "x.txt"):
        files.pipe_file(f"/box/{name}", b"")

    def found(uri, recursive=False):
        return [name.removeprefix("memory:///box/") for name in remote.find(uri, recursive)]

    assert found(f"{memory}/") == ["a b.png"]
    assert found(f"{memory}/", recursive=True) == ["a b.png", "deep/b.JPG", "deep/er/c.png"]
    assert found(f"{memory}/*.tar") == ["s-0.tar"]
    assert found(f"{memory}/**/*.png") == ["._a b.png", "a b.png", "deep/er/c.png"]
    assert remote.find(f"{memory}/void.png", recursive=False) == [f"{memory}/void.png"]
    assert open_uri(remote.find(f"{memory}/a*.png", recursive=False)[0]).size == (8, 6)
    files.mkdir("/box/none")
    for uri, expected in ((f"{memory}/*.tif", "a pattern that matches a file"),
                          (f"{memory}/none/", "a folder with images")):
        assert reason(uri, ImageError, found) == f"expected {expected}; found none. Check the bucket and the folder"


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_patterns_and_folders_of_buckets(request, store):
    box = request.getfixturevalue(store)
    assert remote.find(f"{box}/*.tar", recursive=False) == [f"{box}/s-0.tar"]
    assert remote.find(f"{box}/", recursive=False) == [f"{box}/a b.png", f"{box}/empty.png"]
    assert remote.find(f"{box}/", recursive=True) == [f"{box}/a b.png", f"{box}/empty.png"]


@pytest.mark.parametrize("store", ["s3", "gs"])
def test_errors_of_buckets(request, store):
    box = request.getfixturevalue(store)
    assert reason(f"{store}://nowhere/a.png").startswith(("no such file", "cannot be read"))
    assert reason(f"{box}/none.png").startswith("no such file. Check the URL")
    assert "s3cr3t" not in reason(f"{box}/empty.png")


# ---- web servers


def test_an_image_at_a_url_needs_no_package(web, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert open_uri(f"{web}/a%20b.png").size == (8, 6)
    assert "needs the package fsspec" in reason(f"{web}/s-0.tar#0.png")


def test_aiohttp_is_named_if_it_is_missing(fsspec, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert reason("https://a.test/a.tar#a.png") == (
        "a tar file or a manifest at https:// needs the package aiohttp, which is not installed. Run: pip install "
        '"aiohttp>=3.12"')


def test_a_member_at_a_url_is_read_by_its_range(web, site):
    pytest.importorskip("aiohttp", reason="needs the extra run")
    tar.members(f"{web}/s-0.tar")
    site.requests.clear()
    for i in range(3):
        open_uri(f"{web}/s-0.tar#{i}.png")
    ranges = [headers["Range"] for _, headers in site.requests]
    assert len(ranges) == 3 and all(int(last) - int(first) == len(png()) - 1
                                    for first, last in (found.removeprefix("bytes=").split("-") for found in ranges))


def test_a_server_without_ranges_is_refused_before_its_file_is_in_memory(web, site):
    pytest.importorskip("aiohttp", reason="needs the extra run")
    open_uri(f"{web}/s-0.tar#0.png")

    def endless(handler):
        handler.answer(200, b"", Content_Length=str(2**40))
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(2**16))

    site.pages["/box/s-0.tar"] = endless
    assert "support range requests" in reason(f"{web}/s-0.tar#1.png")


@pytest.mark.parametrize("name", ["s-0.tar#0.png", "a.png"])
def test_private_addresses_are_refused(web, site, monkeypatch, name):
    pytest.importorskip("aiohttp", reason="needs the extra run")
    site.requests.clear()
    monkeypatch.delenv("MINIGDINO_PRIVATE_URLS")
    for host in (f"127.0.0.1:{site.port}", f"localhost:{site.port}"):
        message = reason(f"http://{host}/box/{name}")
        assert "public address" in message and "MINIGDINO_PRIVATE_URLS=1" in message
    assert not site.requests
