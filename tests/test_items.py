"""The images of a run: sources of every kind, and ids that differ."""

import io
import json
import pickle
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import found

from minigdino import ArgumentError, ImageError, files
from minigdino.runs import manifest
from minigdino.runs.items import MAX_URI, Item, read_items, record, stable_id


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images, a tar file and a manifest."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.jpg", "photos/a.png", "photos/more/c.jpg", "photos/._a.png", "d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for i in range(3):
        with tarfile.open(f"s-0{i}.tar", "w") as shard:
            shard.addfile(tarfile.TarInfo(f"{i}.png"), io.BytesIO())
    (tmp_path / "list.csv").write_text("id,uri\n7,d.jpg\n-1,s3://box/e.jpg\n")
    return tmp_path


def uris(*sources, **options):
    return [item.uri for item in read_items(sources, **options)]


def reason(*sources, kind=ArgumentError):
    with pytest.raises(kind) as raised:
        list(read_items(sources))
    return str(raised.value)


# ---- ids


@given(st.text())
def test_an_id_is_a_positive_int64_that_depends_on_the_uri_alone(uri):
    assert 0 <= stable_id(uri) == stable_id(uri) < 2**63
    assert stable_id(uri) != stable_id(f"{uri}x")


def test_ids_never_change():
    """Results of earlier versions are merged by them."""
    assert stable_id("photos/a.jpg") == 5634474915115145088
    assert stable_id("s3://bucket/000.tar#é.jpg") == 1130606000861266932


def test_files_have_the_ids_of_their_names(folder):
    items = list(read_items(["photos", "d.jpg", "s-00.tar"]))
    assert items == [Item(stable_id(item.uri), item.uri) for item in items]
    (folder / "photos" / "0.jpg").write_bytes(b"")
    assert set(items) < set(read_items(["photos", "d.jpg", "s-00.tar"]))


def test_a_manifest_states_the_ids(folder):
    assert list(read_items(["list.csv"])) == [Item(7, "d.jpg"), Item(-1, "s3://box/e.jpg")]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.integers(1, 11))
@settings(max_examples=60)
def test_ids_that_occur_twice_are_refused_at_the_end(tmp_path_factory, ids, split):
    folder = tmp_path_factory.mktemp("lists")
    names = [folder / "a.csv", folder / "b.csv"]
    places = {}
    for name, part in zip(names, (ids[:split], ids[split:])):
        name.write_text("id,uri\n" + "".join(f"{number},{i}.jpg\n" for i, number in enumerate(part)))
        for i, number in enumerate(part, start=1):
            places.setdefault(number, []).append(f"{name} (image {i})")
    items = read_items([str(name) for name, part in zip(names, (ids[:split], ids[split:])) if part])
    assert [next(items).id for _ in ids] == ids
    if len(set(ids)) == len(ids):
        assert next(items, None) is None
    else:
        number = min(number for number in ids if ids.count(number) > 1)
        with pytest.raises(ArgumentError) as raised:
            next(items)
        first, second = places[number][:2]
        assert str(raised.value) == (f"expected a different id for each image; {first} and {second} have the id "
                                     f"{number}. Change one of the two, or remove it")


def test_an_id_of_a_manifest_may_not_be_that_of_a_file(folder):
    (folder / "other.jsonl").write_text(json.dumps({"id": stable_id("d.jpg"), "uri": "x.jpg"}))
    assert reason("d.jpg", "other.jsonl").startswith("expected a different id for each image; d.jpg and other.jsonl "
                                                     f"(image 1) have the id {stable_id('d.jpg')}. ")


# ---- sources


def test_sources_of_every_kind(folder):
    shards = [f"s-0{i}.tar#{i}.png" for i in range(3)]
    assert uris("photos", "d.jpg", "void.jpg") == ["photos/a.png", "photos/b.jpg", "d.jpg", "void.jpg"]
    assert uris("photos", recursive=True) == ["photos/a.png", "photos/b.jpg", "photos/more/c.jpg"]
    assert uris("photos/*.jpg", "https://a.test/x.jpg?y=.csv") == ["photos/b.jpg", "https://a.test/x.jpg?y=.csv"]
    assert uris("s-*.tar", "s-{00..02}.tar", "s-01.tar") == shards
    assert uris("list.csv", "s-{01..02}.tar") == ["d.jpg", "s3://box/e.jpg", *shards[1:]]
    assert uris("s-00.tar#0.png", f"file://{folder}/photos") == [shards[0], f"{folder}/photos/a.png",
                                                                 f"{folder}/photos/b.jpg"]
    assert uris("s3://box/x.jpg", "list.cs[v]") == ["s3://box/x.jpg", "d.jpg", "s3://box/e.jpg"]


def test_sources_in_a_store(folder):
    memory = pytest.importorskip("fsspec", reason="needs the extra run").filesystem("memory")
    for i in range(2):
        memory.pipe_file(f"/items/s-{i}.tar", (folder / f"s-0{i}.tar").read_bytes())
        memory.pipe_file(f"/items/{i}.jpg", b"")
    memory.pipe_file("/items/list.csv", b"id,uri\n7,d.jpg\n")
    try:
        shards = [f"memory:///items/s-{i}.tar#{i}.png" for i in range(2)]
        assert uris("memory:///items/s-{0..1}.tar") == uris("memory://items/s-*.tar") == shards
        assert uris("memory://items/") == ["memory:///items/0.jpg", "memory:///items/1.jpg"]
        assert uris("memory://items/list.csv", "memory://items/void.jpg") == ["d.jpg", "memory://items/void.jpg"]
        assert reason("memory://items/*.tif", kind=ImageError).startswith("memory://items/*.tif: expected a pattern")
    finally:
        memory.rm("/items", recursive=True)


@given(st.integers(0, 2000), st.integers(0, 20), st.integers(0, 5))
def test_a_range_counts_with_the_digits_of_its_start(first, n, zeros):
    last, start = first + n, f"{first:0{zeros}}"
    numbers = [f"{i:0{len(start)}}" if start.startswith("0") else str(i) for i in range(first, last + 1)]
    assert uris(f"x-{{{start}..{last}}}.jpg") == [f"x-{number}.jpg" for number in numbers]


def test_ranges(folder):
    assert uris("{0..1}/{08..10}.jpg") == [f"{i}/{j}.jpg" for i in range(2) for j in ("08", "09", "10")]
    (folder / "{0..1}.jpg").write_bytes(b"")
    assert uris("{0..1}.jpg") == ["{0..1}.jpg"]
    for wrong in ("{3..1}", "{0..1000000}"):
        assert reason(f"{wrong}.jpg") == (f"{wrong}.jpg: expected an ascending range of at most 1000000 numbers, such "
                                          f"as {{000..127}}; got {wrong}. Correct it")


def test_a_uri_without_end_is_refused(folder):
    for length in (MAX_URI, MAX_URI + 1):
        (folder / "long.jsonl").write_text("".join(json.dumps({"id": i, "uri": "a" * n}) + "\n"
                                                   for i, n in enumerate([1, length])))
        if length == MAX_URI:
            assert len(uris("long.jsonl")) == 2
    assert reason("long.jsonl").startswith("long.jsonl (image 2): expected a path or a URL of at most 8192 characters; "
                                           "got 8193: 'aaa")


def test_invalid_sources_are_refused_before_the_first_image(folder):
    with pytest.raises(ImageError, match="the pattern matches no file"):
        read_items(["d.jpg", "*.tif"])
    for source, got in (("-", "standard input"), ("clip.mp4", "the video 'clip.mp4'"), ("/dev/video0", "the video '")):
        with pytest.raises(ArgumentError) as raised:
            read_items(["d.jpg", source])
        assert str(raised.value).startswith(f"a run needs images with names, from files; got {got}")
    assert reason("void.csv") == "void.csv: no such file. Check the path"
    assert reason("s-{00..03}.tar") == "s-03.tar: no such file. Check the path"


def test_a_row_takes_the_memory_of_its_id_only(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "BLOCK", 2**14)
    path = tmp_path / "list.csv"
    path.write_text("id,uri\n" + "".join(f"{i},photos/{i:09}.jpg\n" for i in range(20_000)))
    tracemalloc.start()
    try:
        n = sum(1 for _ in read_items([str(path)]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == 20_000 and peak < 20_000 * 30  # bytes; an Item and its path have over 150


# ---- lines


def test_a_line_has_the_id_after_the_name():
    item, result = Item(7, "a.jpg"), found()
    assert list(record(item, result)) == ["image", "id", "width", "height", "detections"]
    assert record(item, result) == {**files.record("a.jpg", result), "id": 7}
    assert record(item, ImageError("a.jpg: empty")) == {"image": "a.jpg", "id": 7, "error": "a.jpg: empty"}


def test_an_item_can_be_pickled_and_is_frozen():
    item = Item(2**63 - 1, "é")
    assert pickle.loads(pickle.dumps(item)) == item and hash(item) == hash(Item(2**63 - 1, "é"))
    with pytest.raises(AttributeError):
        item.id = 3
