"""Tar files in WebDataset's layout: every image is found and read in place; damaged and hostile ones are refused."""

import io
import os
import signal
import tarfile
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigdino import ArgumentError, ImageError
from minigdino.runs import remote, tar

NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=9).map(
    lambda name: f"{name}.jpg"), unique=True, min_size=1, max_size=8)
NOT_PLAIN = ("expected a plain file in the tar file; got a link, a device or a sparse file. Write it to the tar file "
             "as a plain one")
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def member(name, size=0, **fields):
    found = tarfile.TarInfo(name)
    found.size = size
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def write(path, contents, **options):
    """Write a tar file of {name: content}, or of pairs of a TarInfo and a content."""
    with tarfile.open(path, "w", **options) as shard:
        for name, content in contents.items() if isinstance(contents, dict) else contents:
            shard.addfile(member(name, len(content)) if isinstance(name, str) else name, io.BytesIO(content))
    return str(path)


def names(shard):
    return [tar.split(uri)[1] for uri in tar.members(shard)]


def reason(shard, name=None):
    kind = ArgumentError if name is None else ImageError
    with pytest.raises(kind) as raised, remote.reading(shard, kind):
        _ = tar.members(shard) if name is None else tar.read_member(shard, name)
    start, found, message = str(raised.value).partition(": ")
    assert found and start == shard and message.isprintable()
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tars")


@given(names=NAMES, form=FORMATS, seed=st.integers(0, 99), prefix=st.sampled_from(["", "./", "a/b/", "/", "../"]))
@settings(max_examples=50)
def test_every_image_is_found_and_read(folder, names, form, seed, prefix):
    rng, contents = np.random.default_rng(seed), {}
    for name in names:
        contents[f"{prefix}{name[:-4]}.json"] = b"{}"
        contents[prefix + name] = rng.bytes(rng.integers(0, 2000))
    shard = write(folder / "all.tar", contents, format=form)
    wanted = [prefix + name for name in names if not name.startswith(".")]
    if not wanted:
        assert reason(shard) == "expected a tar file with images, such as .jpg files; found none. Check the file"
        return
    assert tar.members(shard) == [f"{shard}#{name}" for name in wanted]
    for name in wanted:
        assert tar.split(f"{shard}#{name}") == (shard, name)
        assert tar.read_member(shard, name) == contents[name]


@given(shard=st.text(max_size=9).map(lambda text: f"{text}.tar"), name=st.text(min_size=1, max_size=9))
def test_a_uri_is_split_at_its_first_tar_file(shard, name):
    assert tar.split(f"{shard}#{name}") == (shard, name) or ".tar#" in shard.lower()
    assert tar.split(shard) is None or ".tar#" in shard.lower()


def test_a_url_of_a_tar_file_may_have_a_query():
    assert tar.split("https://h/a.tar?key=1&b=2#x/1.jpg") == ("https://h/a.tar?key=1&b=2", "x/1.jpg")
    assert tar.split("clip.mp4#12") is tar.split("a.tar#") is tar.split("a.tar.gz#b.jpg") is None


def test_only_images_are_listed(folder):
    shard = write(folder / "mixed.tar", {"0.jpg": b"a", "0.json": b"{}", "0.cls": b"1", "._0.jpg": b"x", "a/1.PNG": b"",
                                         "a/.hidden.png": b"", "0.seg.png": b"", "jpg": b""})
    assert names(shard) == ["0.jpg", "a/1.PNG", "0.seg.png"]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_followed(folder, kind):
    shard = write(folder / "links.tar", [(member("0.jpg", type=kind, linkname="/etc/passwd"), b""), (member("d.jpg",
                  type=tarfile.DIRTYPE), b""), (member("1.jpg", 1), b"a")])
    assert names(shard) == ["0.jpg", "1.jpg"]
    assert reason(shard, "0.jpg") == NOT_PLAIN
    assert tar.read_member(shard, "1.jpg") == b"a"


def sparse(name, size, n=0, blocks=0):
    """A member that states `size` bytes of which none is there, as GNU's tar writes them, with blocks of places."""
    header = bytearray(member(name, 0, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" * 2
    header[482] = blocks > 0
    header[483:495] = b"%011o\0" % size
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + (b"00000000001\0" * 42 + b"\1" + b"\0" * 7) * blocks


def test_a_sparse_member_is_not_read(folder):
    path = folder / "sparse.tar"
    path.write_bytes(sparse("0.jpg", 2**30) + bytes(1024))
    assert names(str(path)) == ["0.jpg"]
    assert reason(str(path), "0.jpg") == NOT_PLAIN


LONG = [member("x", 2**40, type=kind).tobuf(tarfile.GNU_FORMAT)
        for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)]


@pytest.mark.parametrize("start", [*LONG, sparse("0.jpg", 9, blocks=5000)],
                         ids=["name", "link", "pax", "global", "sparse"])
def test_headers_without_end_are_refused(folder, start):
    path = folder / "headers.tar"
    path.write_bytes(start)
    os.truncate(path, 2**41)  # a hole on the disk
    assert f"a member has headers of more than {tar.MAX_HEADERS} bytes" in reason(str(path))


def test_a_chain_of_headers_is_refused(folder):
    path = folder / "chain.tar"
    path.write_bytes(member("pax", type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) * 2000)
    assert "cannot be read (RecursionError" in reason(str(path))


@pytest.mark.parametrize("size", [-512, -1024, -(2**40)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_negative_size_is_refused(folder, size, kind):
    path = folder / "negative.tar"
    headers = member("0.txt").tobuf() + member("1.txt", size, type=kind).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(headers + member("2.jpg").tobuf() + bytes(1024))
    assert "expected a complete tar file without compression" in reason(str(path))


def test_a_member_larger_than_its_tar_file_is_refused(folder):
    path = folder / "large.tar"
    path.write_bytes(member("0.jpg", 2**40).tobuf() + bytes(4096))
    assert reason(str(path)) == ("expected a complete tar file without compression; got another one or a damaged one "
                                 "(unexpected end of data). Copy it again, or decompress it")


def test_a_member_larger_than_any_image_is_not_read(folder):
    path = folder / "huge.tar"
    path.write_bytes(member("0.jpg", 2**40).tobuf())
    os.truncate(path, 2**40 + 4096)  # a hole on the disk
    assert names(str(path)) == ["0.jpg"]
    message = f"expected an image of at most {2**30} bytes; got one of {2**40}. Check the tar file"
    assert reason(str(path), "0.jpg") == message


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w:gz"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"),
                                            ("a.tar.bz2", "w:bz2"), ("a.tar.xz", "w:xz")])
def test_a_compressed_tar_file_is_refused(folder, name, mode):
    with tarfile.open(folder / name, mode) as shard:
        shard.addfile(member("0.jpg", 1), io.BytesIO(b"a"))
    assert tar.is_tar(str(folder / name))
    assert "expected a complete tar file without compression" in reason(str(folder / name))


def test_names_that_occur_twice_are_refused(folder):
    shard = write(folder / "twice.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")])
    assert reason(shard) == "expected different names in the tar file; got 'a.jpg' twice. Rename one of the two"


def test_the_number_of_images_is_limited(folder, monkeypatch):
    shard = write(folder / "many.tar", {f"{i}.jpg": b"" for i in range(4)})
    monkeypatch.setattr(tar, "MAX_MEMBERS", 3)
    assert reason(shard) == "expected at most 3 images in a tar file; got more. Split it"


def test_a_missing_tar_file_and_a_missing_member(folder):
    shard = write(folder / "few.tar", {"a.jpg": b""})
    assert reason(str(folder / "void.tar")) == "no such file. Check the path"
    assert reason(str(folder / "void.tar"), "a.jpg") == "no such file. Check the path"
    assert reason(shard, "b.jpg") == "no such image in the tar file. Check the name: it must be as the tar file has it"


def test_an_empty_file_is_refused(folder):
    (folder / "empty.tar").write_bytes(b"")
    assert "(empty file)" in reason(str(folder / "empty.tar"))


@given(data=st.data())
@settings(max_examples=80)
def test_a_damaged_tar_file_is_read_or_refused(folder, data):
    """A header that is damaged is never taken for the end: then all images after it would be missing."""
    contents = {f"{i}.jpg": bytes([i]) * 700 for i in range(4)}
    write(folder / "good.tar", contents)
    damaged = bytearray((folder / "good.tar").read_bytes()[: 4 * 1536 + 1024])
    at = data.draw(st.integers(0, 4 * 1536 - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    path = folder / "damaged.tar"
    path.write_bytes(damaged)
    os.utime(path, ns=(data.draw(st.integers(0, 2**60)),) * 2)
    is_header = at % 1536 < 512
    try:
        found = tar.members(str(path))
    except ArgumentError:
        assert is_header
        return
    assert len(found) == 4
    for uri in found:
        assert len(tar.read_member(*tar.split(uri))) == 700


@pytest.mark.parametrize("size", range(1, 4 * 1536 + 1024, 171))
def test_a_truncated_tar_file_is_refused(folder, size):
    write(folder / "good.tar", {f"{i}.jpg": bytes(700) for i in range(4)})
    path = folder / "truncated.tar"
    path.write_bytes((folder / "good.tar").read_bytes()[:size])
    if size >= 4 * 1536:  # all images are there
        assert len(tar.members(str(path))) == 4
    elif size % 1536:
        assert "got another one or a damaged one" in reason(str(path))


def test_a_tar_file_that_changes_is_read_again(folder):
    shard = write(folder / "changing.tar", {"a.jpg": b"1"})
    assert tar.read_member(shard, "a.jpg") == b"1"
    write(folder / "changing.tar", {"b.png": b"0" * 600, "a.jpg": b"22"})
    assert names(shard) == ["b.png", "a.jpg"] and tar.read_member(shard, "a.jpg") == b"22"


def test_a_tar_file_is_listed_once_for_all_its_images_and_threads(folder, monkeypatch):
    shard = write(folder / "once.tar", {f"{i}.jpg": b"%d" % i for i in range(50)})
    opened, original = [], tar.open_file
    monkeypatch.setattr(tar, "open_file", lambda uri: (opened.append(uri), original(uri))[1])
    found = {}

    def work(start):
        found.update((i, tar.read_member(shard, f"{i}.jpg")) for i in range(start, 50, 4))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: b"%d" % i for i in range(50)} and opened == [shard]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_reads_a_tar_file(folder):
    shard = write(folder / "fork.tar", {"a.jpg": b"1"})
    with tar._lock:
        child = os.fork()
        if not child:
            signal.alarm(5)
            os._exit(tar.read_member(shard, "a.jpg") != b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
