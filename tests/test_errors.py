"""Unusual invalid inputs, most of them found by tests/fuzz.py: the class of the error, and the parts of its message.

A message states what was expected, what was given, and the next step. The common mistakes are tested in
test_weights.py, test_config.py, test_image.py, test_prompt.py and test_detector.py.
"""

import contextlib
import io
import json
import os
import warnings

import fuzz
import numpy as np
import pytest
import tiny
from PIL import Image, ImageOps

import minigdino
from minigdino import ArgumentError, CheckpointError, Config, ConfigError, ImageError, PromptError
from minigdino.image import ImageSettings, open_image, preprocess

PHOTO = tiny.photo(30, 40)


def load(room, **changes):
    """Load a complete model directory with changed files: bytes, changed values of a JSON file, or None for no file."""
    files = fuzz.model_files() | {name.replace("__", "."): change for name, change in changes.items()}
    for name, change in files.items():
        if isinstance(change, dict):
            change = json.dumps(json.loads(fuzz.model_files()[name]) | change).encode()
        if change is not None:
            (room / name).write_bytes(change)
    return minigdino.load(room)


def weights(**changes):
    """A model.safetensors with changed values in the header entry of one tensor."""
    header, body = fuzz.split(fuzz.model_files()["model.safetensors"])
    header["model.level_embed"] |= changes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def lone(dtype="F32", shape=(1,), data=b"1234"):
    """A safetensors file of one tensor, which may be invalid."""
    return fuzz.join({"x": (dtype, list(shape), data)})


def png(width, height):
    """A PNG file of 45 bytes whose header states this size."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = (len(header).to_bytes(4, "big") + b"IHDR" + header + b"\0\0\0\0", b"\0\0\0\0IEND\0\0\0\0")
    return fuzz.with_checksums(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def gif(width, height):
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff," + bytes(4) + size + b"\0\x02\x02\x4c\x01\0;"


def encoded(kind, **options):
    data = io.BytesIO()
    Image.fromarray(tiny.photo(40, 40)).save(data, kind, **options)
    return data.getvalue()


def path(room, data, name="picture"):
    (room / name).write_bytes(data)
    return room / name


def settings(room, **values):
    return load(room, preprocessor_config__json=values)


def backbone(room, **values):
    complete = json.loads(fuzz.model_files()["config.json"])["backbone_config"]
    return load(room, config__json={"backbone_config": complete | {"out_indices": None} | values})


def indexed(room, tensor, shard):
    return load(room, **{fuzz.INDEX: json.dumps({"weight_map": {tensor: shard}}).encode()})


def tokens(change):
    value = json.loads(fuzz.model_files()["tokenizer.json"])
    change(value)
    return json.dumps(value).encode()


CASES = {
    # images
    "bomb": (
        lambda room: open_image(path(room, png(20_000, 20_000))),
        ImageError,
        "picture: Image size (400000000 pixels) exceeds limit",
        "raise PIL.Image.MAX_IMAGE_PIXELS",
    ),
    "bomb in a GIF": (lambda room: open_image(path(room, gif(65_535, 65_535))), ImageError, "exceeds limit"),
    "a header without image data": (
        lambda room: open_image(path(room, png(30, 30))),
        ImageError,
        "picture: not a readable image (",
        "expected a complete PNG, JPEG or other file that Pillow can decode",
    ),
    "truncated, opened by the caller": (
        lambda room: open_image(Image.open(io.BytesIO(encoded("JPEG")[:800]))),
        ImageError,
        "not a readable image (image file is truncated",
        "expected a complete PNG",
    ),
    "closed by the caller": (lambda room: open_image(closed()), ImageError, "not a readable image", "closed image"),
    "an unusual exception of a Pillow decoder": (
        lambda room: open_image(path(room, encoded("DDS")[:200])),
        ImageError,
        "not a readable image (",
    ),
    "a folder": (lambda room: open_image(room), ImageError, "expected an image file; got a folder", "a list of them"),
    "resized to more pixels than memory holds": (
        lambda room: preprocess(Image.fromarray(PHOTO), ImageSettings(), (90_000, 90_000)),
        ImageError,
        "40 x 30 would be resized to 90000 x 67500",
        "Use a smaller `size`",
    ),
    "an integer size with 400 digits": (
        lambda room: tiny.model().detect(PHOTO, "cat", size=(10**400, 10**400)),
        ArgumentError,
        "each edge of `size` must be 1 to 100000 pixels; got {'longest_edge': 1000",
    ),
    # safetensors
    "a header longer than any file": (
        lambda room: load(room, model__safetensors=(2**63).to_bytes(8, "little") + b"{}"),
        CheckpointError,
        "model.safetensors: not a complete safetensors file",
        "download it again",
    ),
    "more dimensions than NumPy supports": (
        lambda room: load(room, model__safetensors=lone(shape=[1] * 70)),
        CheckpointError,
        "tensor x has an impossible entry in the header",
        "'shape': [1, 1,",
        "download the file again",
    ),
    "more elements than fit in memory": (
        lambda room: load(room, model__safetensors=lone(shape=[2**62, 0], data=b"")),
        CheckpointError,
        "tensor x has an impossible entry",
    ),
    "an entry that is a list": (
        lambda room: load(room, model__safetensors=listed()),
        CheckpointError,
        "tensor x has an impossible entry",
    ),
    "overlapping tensors": (
        lambda room: load(room, model__safetensors=weights(data_offsets=[0, 384])),
        CheckpointError,
        "not a complete safetensors file",
    ),
    "a very long tensor name": (
        lambda room: load(room, model__safetensors=fuzz.join(named("y" * 90_000))),
        CheckpointError,
        "tensor yyy",
        "..",
        "belongs to no layer",
    ),
    "a shard name too long for a file system": (
        lambda room: indexed(room, "x", "y" * 9000),
        CheckpointError,
        "which is not in",
        "download the missing file",
    ),
    "surrogates in a tensor name": (
        lambda room: indexed(room, "\ud800", "model.safetensors"),
        CheckpointError,
        r"tensor \ud800 is in no shard",
        "download that file again",
    ),
    # config.json
    "depths that are not a list": (
        lambda room: backbone(room, depths=7),
        ConfigError,
        "backbone_config.depths must look like [2, 2, 6, 2]; got 7",
    ),
    "features that are not a list": (
        lambda room: backbone(room, out_features=7),
        ConfigError,
        "backbone_config.out_features must look like ['stage4']; got 7",
    ),
    "a stage number with 5000 digits": (
        lambda room: backbone(room, out_features=["stage" + "9" * 5000]),
        ConfigError,
        "out_indices must be increasing stages in 1..2; got ()",
    ),
    "too many stages": (
        lambda room: backbone(room, depths=[1] * 3000, num_heads=[1] * 3000),
        ConfigError,
        "depths must have at most 16 stages; got 3000",
    ),
    "a million layers": (
        lambda room: load(room, config__json={"encoder_layers": 10**6}),
        ConfigError,
        "encoder_layers must be positive and at most 200; got 1000000",
    ),
    "a million blocks": (lambda room: backbone(room, depths=[1, 10**6]), ConfigError, "depths must be positive"),
    "an epsilon that float32 rounds to zero": (
        lambda room: load(room, config__json={"layer_norm_eps": 1e-320}),
        ConfigError,
        "layer_norm_eps must be positi",
    ),
    "a very long value": (
        lambda room: load(room, config__json={"d_model": "x" * 10**6}),
        ConfigError,
        "config.d_model must look like 256; got 'xxx",
        "...",
    ),
    "a deeply nested value": (
        lambda room: load(room, config__json={"model_type": nested(500)}),
        ConfigError,
        "model_type must be 'grounding-dino' or 'mm-grounding-dino'; got [[[[[[[...",
        "are not supported",
    ),
    "a Config with a value of the wrong type": (
        lambda room: Config(d_model="wide"),
        ConfigError,
        "d_model must look like 256; got 'wide'",
    ),
    "a Config with an invalid backbone": (
        lambda room: Config(backbone_config=7),
        ConfigError,
        "config.backbone_config must look like a SwinConfig or a dict; got 7",
    ),
    # preprocessor_config.json
    "a mean with NaN": (
        lambda room: settings(room, image_mean=[0.5, float("nan"), 0.5]),
        CheckpointError,
        "preprocessor_config.json: invalid image settings: image_mean must be a list of three numbers; got "
        "[0.5, nan, 0.5]. Correct the file, or download it again",
    ),
    "an infinite edge": (
        lambda room: settings(room, size={"shortest_edge": float("inf")}),
        CheckpointError,
        "size must be an object of edges, each 1 to 100000 pixels; got {'shortest_edge': inf}",
    ),
    "a fractional filter number": (
        lambda room: settings(room, resample=2.5),
        CheckpointError,
        "resample must be the number of a Pillow filter, 0 to 5; got 2.5",
    ),
    "a string for a boolean": (
        lambda room: settings(room, do_resize="no"),
        CheckpointError,
        "do_resize must be true or false; got 'no'",
    ),
    # the tokenizer
    "tokenizer settings that are a list": (
        lambda room: load(room, tokenizer_config__json=b"[]"),
        CheckpointError,
        "tokenizer_config.json: must be a JSON object; got []. Download the file again",
    ),
    "a vocabulary without [UNK]": (
        lambda room: load(room, tokenizer__json=tokens(lambda t: t["model"]["vocab"].pop("[UNK]"))),
        CheckpointError,
        "tokenizer.json: expected a BERT vocabulary; it lacks the token '[UNK]'",
        "Use the tokenizer of a published Grounding DINO checkpoint",
    ),
    "a tokenizer whose library would panic": (
        lambda room: load(room, tokenizer__json=tokens(lambda t: t["post_processor"]["special_tokens"].pop("[CLS]"))),
        CheckpointError,
        "tokenizer.json: post_processor.special_tokens.[CLS].ids must be [101]; got None",
    ),
    # prompts
    "bytes that are not UTF-8": (
        lambda room: tiny.model().detect(PHOTO, os.fsdecode(b"caf\xe9")),
        PromptError,
        "contains surrogates",
        "Type the text again",
    ),
    "a text as long as a book": (
        lambda room: tiny.model().detect(PHOTO, "a cat. " * 20_000),
        PromptError,
        "a prompt must have at most 65536 characters; got 140000",
        "Split its phrases",
    ),
}


def closed():
    image = Image.fromarray(PHOTO)
    image.close()
    return image


def listed():
    text = b'{"x":["F32",[1],[0,4]]}'
    return len(text).to_bytes(8, "little") + text + b"1234"


def named(name):
    header, body = fuzz.split(fuzz.model_files()["model.safetensors"])
    some = {n: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for n, e in header.items() if n[0] != "_"}
    return some | {name: ("F32", [1], b"1234")}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", CASES)
def test_an_error_states_what_was_expected_what_was_given_and_the_next_step(case, tmp_path):
    call, kind, *parts = CASES[case]
    with pytest.raises(kind) as caught:
        call(tmp_path)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert len(message) < fuzz.MESSAGE
    message.encode()  # no surrogates, so it can be printed


def test_unknown_keys_in_a_safetensors_header_are_ignored(tmp_path):
    model = load(tmp_path, model__safetensors=weights(note="made by hand"))
    assert len(model.detect(PHOTO, "cat", threshold=0)) == model.config.num_queries


def test_an_image_with_a_corrupted_exif_block_is_read(tmp_path):
    exif = Image.Exif()
    exif[274], exif[271], exif[282] = 6, "minigdino", 72.0
    photo = Image.fromarray(tiny.photo(7, 9))
    block = bytearray(exif.tobytes())
    block[41] = 29  # a tag of a type that cannot be written; ImageOps.exif_transpose writes the block
    photo.save(tmp_path / "odd.jpg", exif=bytes(block))
    with Image.open(tmp_path / "odd.jpg") as opened, pytest.raises(AttributeError):
        ImageOps.exif_transpose(opened)
    assert open_image(tmp_path / "odd.jpg").size == (7, 9)
    photo.save(tmp_path / "broken.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of the corrupted block
        assert open_image(tmp_path / "broken.jpg").size == (9, 7)


@pytest.mark.parametrize(("value", "size"), [(v, (3, 2) if v < 5 else (2, 3)) for v in range(1, 9)])
def test_every_exif_orientation_gives_the_result_of_pillow(value, size, tmp_path):
    exif = Image.Exif()
    exif[274] = value
    Image.fromarray(tiny.photo(2, 3)).save(tmp_path / "turned.png", exif=exif)
    turned = open_image(tmp_path / "turned.png")
    assert turned.size == size
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(np.asarray(turned), np.asarray(ImageOps.exif_transpose(opened)))


@contextlib.contextmanager
def short_files():
    """No file can become longer than 1,000 bytes. Not a fixture: the output of pytest may go to a file, too."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_in_the_error(tmp_path):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    with short_files(), pytest.raises(CheckpointError, match="cannot be written there .*File too large"):
        model.save(tmp_path)
    with short_files(), pytest.raises(OSError, match="File too large"):
        tokenizer.save(tmp_path)


def test_a_file_in_place_of_the_folder_is_named_in_the_error(tmp_path):
    with pytest.raises(OSError, match="exists.*model"):
        tiny.model().save(path(tmp_path, b"", "model"))
