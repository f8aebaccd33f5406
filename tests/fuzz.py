"""Fuzz the loading of model files and images. Corrupted files may raise only `minigdino.Error`.

    python tests/fuzz.py --seconds 600 --seed 0                  all targets; prints a table; status 1 after a failure
    python tests/fuzz.py --count 100000 --seed 0                 the same, with a number of inputs for each target
    python tests/fuzz.py --seed 0 --target image --only 1234     one input again, with its traceback
    python tests/fuzz.py --target image --atheris [OPTION ...]   guided by coverage; needs `pip install atheris`

(seed, target, number) determine an input. A worker process, whose address space can grow by MEMORY bytes, processes it.
An input fails if

- the worker dies, or does not answer within HANG seconds (the worker is then replaced);
- it takes more than SLOW seconds of processor time;
- it raises an exception other than `minigdino.Error`;
- its error message is too long or not printable.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import faulthandler
import functools
import io
import json
import math
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tiny
from PIL import Image

import minigdino
from minigdino.image import ImageSettings, open_image, preprocess

SLOW = 1.0  # limit of processor time for one input, in seconds
HANG = 60.0  # limit of time for one input, in seconds
MEMORY = 2**30  # bytes that a warmed-up worker can allocate
PIXELS = 2**20  # Pillow's limit for images, lowered as on a server, so that a small file can be a decompression bomb
MAX_JSON = 2**20  # bytes of the largest JSON file; a larger one would be slow to read
MESSAGE = 2000  # characters of the longest allowed error message
INDEX = "model.safetensors.index.json"
SETTINGS = ImageSettings(size=(("longest_edge", 64), ("shortest_edge", 48)))


# ---- intact files: small and complete


def config():
    """Return a small geometry with at least one layer of each kind."""
    backbone = dict(embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=3, out_indices=(1, 2))
    text = dict(vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                max_position_embeddings=64)
    return tiny.config(backbone_config=backbone, text_config=text, d_model=32, num_feature_levels=3, num_queries=5,
                       encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32)


@functools.cache
def model_files() -> dict[str, bytes]:
    """Return the files of a complete model directory: {name: contents}."""
    model = minigdino.Model.random(config(), tokenizer=tiny.tokenizer(), settings=SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def shards(files):
    """Return the same directory with the weights in two shards."""
    header, body = split(files["model.safetensors"])
    names = [name for name in header if name != "__metadata__"]
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    tensors = {n: (header[n]["dtype"], header[n]["shape"], body[slice(*header[n]["data_offsets"])]) for n in names}
    places = {name: shard for shard, part in parts.items() for name in part}
    rest = {name: data for name, data in files.items() if name != "model.safetensors"}
    index = json.dumps({"metadata": {"total_size": len(body)}, "weight_map": places}).encode()
    return rest | {shard: join({n: tensors[n] for n in part}) for shard, part in parts.items()} | {INDEX: index}


def vocabulary(files):
    """Return the contents of vocab.txt."""
    ids = json.loads(files["tokenizer.json"])["model"]["vocab"]
    return "\n".join(sorted(ids, key=ids.get)).encode() + b"\n"


@functools.cache
def pictures() -> list[bytes]:
    """Return one small image file per format and mode that this Pillow can write. Some have EXIF blocks."""
    photo = Image.fromarray(tiny.photo(7, 9))
    exif = Image.Exif()
    exif[274], exif[271], exif[0x8769] = 6, "minigdino", {36867: "2024:01:01 00:00:00"}
    block = exif.tobytes()
    deep = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    wanted = [
        ("PNG", "RGB", dict(exif=block)), ("PNG", "P", dict(transparency=1)), ("PNG", "RGBA", {}), ("PNG", "LA", {}),
        ("PNG", "1", {}), ("PNG", "I;16", {}), ("JPEG", "RGB", dict(exif=block)), ("JPEG", "CMYK", {}),
        ("JPEG", "L", dict(progressive=True)), ("GIF", "P", dict(transparency=3)),
        ("GIF", "L", dict(save_all=True, append_images=[photo.convert("P")])), ("BMP", "RGB", {}), ("BMP", "P", {}),
        ("WEBP", "RGB", dict(exif=block)), ("WEBP", "RGBA", dict(lossless=True)), ("TIFF", "RGB", dict(exif=block)),
        ("TIFF", "CMYK", dict(compression="tiff_lzw")), ("TIFF", "I;16", {}), ("TIFF", "LAB", {}), ("TIFF", "F", {}),
        ("TIFF", "1", dict(compression="group4")), ("TIFF", "YCbCr", dict(compression="jpeg")),
        ("TIFF", "P", dict(compression="packbits")), ("JPEG2000", "RGB", {}), ("AVIF", "RGB", dict(exif=block)),
        ("ICO", "RGBA", {}), ("PPM", "RGB", {}), ("PPM", "I", {}), ("TGA", "RGBA", dict(compression="tga_rle")),
        ("PCX", "P", {}), ("SGI", "RGB", {}), ("DDS", "RGBA", {}), ("ICNS", "RGBA", {}), ("MPO", "RGB", {}),
    ]
    made = []
    for kind, mode, options in wanted:
        image = deep if mode == "I;16" else Image.new("LAB", (9, 7), (99, 140, 90)) if mode == "LAB" else (
            photo.convert("L").convert(mode) if mode in ("F", "LA", "I") else photo.convert(mode))
        data = io.BytesIO()
        try:
            image.save(data, kind, **options)
        except (OSError, KeyError, ValueError):  # not supported by this build of Pillow
            continue
        made.append(data.getvalue())
    return made


# ---- corruption

ODD = (None, True, False, 0, 1, -1, 2, 3, 100, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308,
       math.inf, math.nan, "", "x", "\0", "..", "stage9", "\ud800", "x" * 3000, "y/" * 200, [], {}, [[]], [1, "x"],
       {"a": {}}, [0] * 70, [1] * 70, list(range(3000)))
ODD_TEXT = (b"1e400", b"NaN", b"-Infinity", b"9" * 5000, b"[" * 120 + b"]" * 120, b"[" * 900 + b"]" * 900,
            b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 100_000, b'"\\ud800"', b'"\xff\xfe"', b"", b"-", b"0x10")
NUMBER = re.compile(rb"-?\d[\d.eE+-]*")


def spot(rng, value):
    """Choose a random position in a JSON value. Returns (container, key)."""
    while True:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.25:
            return value, key
        value = value[key]


def change_values(rng, value):
    """Replace, remove, copy or repeat up to four values inside a JSON value."""
    for _ in range(rng.randint(1, 4)):
        if not value or not isinstance(value, (dict, list)):
            break
        container, key = spot(rng, value)
        old, kind = container[key], rng.randrange(8)
        if kind < 3:
            container[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == 3:
            del container[key]
        elif kind == 4 and type(old) in (int, float):
            changed = (old + 1, old - 1, -old, old * 2, old * 10**6, float(min(old, 2**99)) / 3, [old])
            container[key] = rng.choice(changed)
        elif kind == 5:
            other, other_key = spot(rng, value)
            container[key] = copy.deepcopy(other[other_key])
        elif kind == 6:
            small = len(json.dumps(old)) < 100 and len(json.dumps(value)) < 50_000
            container[key] = [old] * (rng.choice((0, 1, 2, 7, 70, 3000)) if small else 1)
        elif isinstance(container, dict):
            container[rng.choice(("x", "", "\ud800", "stage1", str(key) + "s"))] = container.pop(key)
    return value


def change_json(rng, data):
    """Change values of a JSON file, or make it invalid JSON."""
    value = json.loads(data)
    text = json.dumps(change_values(rng, value) if rng.random() < 0.85 else value).encode()[:MAX_JSON]
    if rng.random() < 0.15 and (numbers := list(NUMBER.finditer(text))):
        start, stop = rng.choice(numbers).span()
        text = text[:start] + rng.choice(ODD_TEXT) + text[stop:]
    if rng.random() < 0.1 and (keys := re.findall(rb'"[^"\\]*": ', text)):
        at = rng.choice([m.end() for m in re.finditer(rb"{", text)])
        text = text[:at] + rng.choice(keys) + json.dumps(rng.choice(ODD)).encode() + b", " + text[at:]
    return change_bytes(rng, text) if rng.random() < 0.1 else text


def change_bytes(rng, data, other=b""):
    """Flip bits, overwrite numbers, remove, repeat or replace parts, or truncate. `other` provides foreign parts."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, n = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 50, 500))
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + n]
        elif kind == 2:
            data[at:at] = data[at : at + n] * rng.choice((1, 1, 1, 100))
        elif kind == 3:
            data[at : at + n] = other[at : at + n]
        elif kind == 4:
            number = rng.choice((0, 1, -1, 2**7, 2**15 - 1, 2**16, 2**31 - 1, 2**31, 2**62, 2**63, 10_000, 70_000))
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
        elif at < len(data):
            data[at] = data[at] ^ 1 << rng.randrange(8) if kind < 7 else rng.randrange(256)
    return bytes(data)


def split(data):
    """Split a safetensors file into its header and its tensor data."""
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join(tensors, metadata=None):
    """Make a safetensors file from {name: (dtype, shape, bytes)}. Only the offsets are valid in any case."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def change_safetensors(rng, data):
    """Change the header length, the header, single tensors with a valid header, or values (NaN, infinity)."""
    header, body = split(data)
    kind = rng.randrange(10)
    if kind == 0:
        length = rng.choice((0, 1, 2, 7, len(data) - 8, len(data), 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1))
        return length.to_bytes(8, "little") + data[8:]
    if kind == 1:
        return change_bytes(rng, data)
    if kind < 5:
        text = change_json(rng, json.dumps(header).encode())
        return len(text).to_bytes(8, "little") + text + body
    if kind == 5:
        values = np.frombuffer(body, "<u4").copy()
        nan, infinity, lowest, smallest = 0x7FC00000, 0x7F800000, 0xFF7FFFFF, 1
        for _ in range(rng.choice((1, 1, 1, 9, 1000))):
            value = rng.choice((nan, infinity, lowest, smallest, rng.getrandbits(32)))
            values[rng.randrange(len(values))] = value
        return data[: len(data) - len(body)] + values.tobytes()
    tensors = {name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
               for name, entry in header.items() if name != "__metadata__"}
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(tensors))
        dtype, shape, raw = tensors[name]
        tensors[name] = rng.choice((
            (dtype, shape[::-1], raw), (dtype, [*shape, 1], raw), (dtype, [1] * 70 + shape, raw),
            (dtype, [0], b""), (dtype, [2**62, 0], b""), (dtype, [0, 2**40, 2**40], b""), (dtype, shape, raw[:-4]),
            ("F16", [2, *shape], raw), ("BF16", [2, *shape], raw), ("F16", shape, raw[: len(raw) // 2]),
            ("BF16", shape, raw[: len(raw) // 2]), ("I32", shape, raw), ("F8_E4M3", [4, *shape], raw),
            ("BOOL", [4, *shape], raw), ("U64", [len(raw) // 8], raw[: len(raw) // 8 * 8])))
        if rng.random() < 0.4:
            new = rng.choice((f"{name}.0", name.upper(), "", ".", "\0", name.replace(".0.", ".7."), "special_tokens",
                              "bbox_embed.1.layers.0.weight", f"model.decoder.{name}", "x" * 3000))
            tensors[new] = tensors.pop(name)
    return join(tensors, header.get("__metadata__"))


def change_lines(rng, data):
    """Remove, repeat, move or replace lines of vocab.txt."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 2, 50))):
        at, line = rng.randrange(len(lines)), rng.choice((b"", b"[CLS]", b"##", b".", b"\xff", b"x" * 3000, b"a b"))
        lines[at : at + 1] = rng.choice(([], [line], [lines[at]] * 2, [rng.choice(lines)]))
    return b"\n".join(lines) if rng.random() < 0.7 else change_bytes(rng, b"\n".join(lines))


PARTS = {  # valid parts of other tokenizers. With some of them, the tokenizers library hangs or ends the process
    "normalizer": (
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 99}] * 9},
        {"type": "Sequence", "normalizers": []}, {"type": "Lowercase"}, {"type": "NFD"}),
    "pre_tokenizer": (
        {"type": "Split", "pattern": {"Regex": "(z+z+)+y"}, "behavior": "Isolated", "invert": False},
        {"type": "Sequence", "pretokenizers": []}, {"type": "Whitespace"}),
    "post_processor": (
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 3000, "pair": [],
         "special_tokens": {}},
        {"type": "BertProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
    "decoder": ({"type": "WordPiece", "prefix": "##", "cleanup": False}, {"type": "BPEDecoder", "suffix": ""}),
    "model": (
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, {"type": "BPE", "vocab": {"a": 0}, "merges": []}),
}  # fmt: skip


def change_tokenizer(rng, data):
    """Corrupt a tokenizer file, either JSON or vocab.txt."""
    if not data.startswith(b"{"):
        return change_lines(rng, data)
    value = json.loads(data)
    if "model" not in value or rng.random() < 0.8:
        return change_json(rng, data)
    part = rng.choice(list(PARTS))
    return json.dumps(value | {part: rng.choice(PARTS[part])}).encode()


def change_picture(rng, data):
    """Corrupt an image. Checksums of a PNG are usually corrected, because the decoder stops at the first wrong one."""
    other = rng.choice(pictures())
    changed = change_bytes(rng, data, other)
    if rng.random() < 0.2:  # corrupt headers and tags, not pixels
        for tag in (b"Exif\0\0", b"II*\0", b"MM\0*", b"IHDR", b"\xff\xc0", b"GIF89a", b"BM", b"VP8"):
            if (at := data.find(tag)) >= 0:
                changed = data[:at] + change_bytes(rng, data[at : at + 60], other[:60]) + data[at + 60 :]
    return with_checksums(changed) if rng.random() < 0.8 else changed


def with_checksums(png):
    """Correct the checksums of a PNG. Other data is returned unchanged."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        return png
    out, at = png[:8], 8
    while at + 12 <= len(png):
        n = int.from_bytes(png[at : at + 4], "big")
        chunk = png[at + 4 : at + 8 + n]
        out += png[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + n
    return out + png[at:]


# ---- targets: the files of an input, and their use

CHANGES = {"safetensors": change_safetensors, "index": change_json, "config": change_json, "preprocessor": change_json,
           "tokenizer": change_tokenizer, "image": change_picture}
TARGETS = tuple(CHANGES)
TEXTS = (["a cat", "remote control"], "A cat. the ünïcode 猫 \U0001f431 [SEP] x?", ["xyz", "st. bernard"], "z" * 300)


def intact(target: str, choice: int) -> tuple[dict[str, bytes], str]:
    """Return intact files, and the name of the file to corrupt. `choice` selects one of several variants."""
    if target == "image":
        return {"picture": pictures()[choice % len(pictures())]}, "picture"
    files = dict(model_files())
    if target == "safetensors":
        return files, "model.safetensors"
    if target == "index":
        return shards(files), INDEX
    if target == "config":
        return files, "config.json"
    if target == "preprocessor":
        name = "preprocessor_config.json"
        if choice % 4 == 3:
            settings = {"image_processor": json.loads(files.pop(name))}
            name = "processor_config.json"
            files[name] = json.dumps(settings).encode()
        return files, name
    name = ("tokenizer.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json")[choice % 4]
    if choice % 4 > 1:
        files["vocab.txt"] = vocabulary(files)
        del files["tokenizer.json"]
        options = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
        files["tokenizer_config.json"] = json.dumps(json.loads(files["tokenizer_config.json"]) | options).encode()
    return files, name


def corrupted(target: str, rng: random.Random) -> dict[str, bytes]:
    """Return the files of one corrupted input."""
    if target in FAULTS:
        return {}
    files, name = intact(target, rng.randrange(1000))
    return files | {name: CHANGES[target](rng, files[name])}


def use(folder: Path, text) -> None:
    """Load an input and run a detection. Raises minigdino.Error if the input is rejected."""
    if (folder / "picture").exists():
        return use_image(folder / "picture")
    model = minigdino.load(folder)
    height, width = model.settings.target(30, 40)
    size = (48, 64) if height * width > 2**16 else None  # a corrupted file can contain a large size, which is slow
    found = model.detect(tiny.photo(30, 40), text, threshold=0, size=size)
    assert found.boxes.shape == (len(found), 4) and found.boxes.dtype == found.scores.dtype == np.float32
    assert len(found.labels) == len(found.phrases) == len(found) <= model.config.num_queries
    assert set(found.labels) <= set(model.tokenize(text).phrases)
    json.loads(found.to_json())


def use_image(path):
    """Read an image from its path, and from a PIL image that the caller opened: the two are the same."""
    given = None
    try:
        opened = Image.open(path)
    except Exception:  # raised in the caller's code, not by minigdino
        opened = None
    if opened:
        with opened, contextlib.suppress(minigdino.Error):
            given = open_image(opened)
    picture = open_image(path)
    assert picture.mode == "RGB" and 0 < picture.width * picture.height <= 2 * PIXELS
    assert given is None or (given.size, given.tobytes()) == (picture.size, picture.tobytes())
    pixels = preprocess(picture, SETTINGS)
    assert pixels.dtype == np.float32 and pixels.shape[0] == 3 and max(pixels.shape) <= 64 and np.isfinite(pixels).all()


def _spin(*_):
    stop = time.process_time() + 1.1 * SLOW
    while time.process_time() < stop:
        pass


def _babble(*_):
    raise minigdino.Error("x" * 2 * MESSAGE)


FAULTS = {  # failures that a worker must report, to test the fuzzer itself
    "die": lambda *_: os.abort(), "sleep": lambda *_: time.sleep(1000),
    "grow": lambda *_: np.empty(2 * MEMORY, np.uint8), "raise": lambda *_: [][1], "spin": _spin, "babble": _babble,
}


# ---- worker: a process that processes one input after another


def attempt(target: str, seed: int, number: int, folder: Path) -> dict:
    """Make and use one input. Returns {"outcome", "failed", "detail", "seconds", "warnings", "peak"}."""
    rng = random.Random(f"{seed} {target} {number}")
    for name, data in corrupted(target, rng).items():
        (folder / name).write_bytes(data)
    outcome, failed, detail, start = "accepted", False, "", time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            FAULTS.get(target, use)(folder, rng.choice(TEXTS))
        except minigdino.Error as error:
            outcome, detail = type(error).__name__, str(error)
            if len(detail) > MESSAGE or not detail.replace("\n", "").isprintable():
                outcome, failed, detail = "unreadable message", True, f"{outcome}: {detail[:500]!r}"
        except BaseException as error:
            outcome, failed, detail = f"raised {type(error).__name__}", True, traceback.format_exc()
    seconds = time.process_time() - start
    if seconds > SLOW:
        outcome, failed, detail = "slow", True, f"{seconds:.1f} s; {outcome} {detail}"
    return {"outcome": outcome, "failed": failed, "detail": detail, "seconds": seconds, "peak": peak(),
            "warnings": [f"{w.category.__name__}: {w.message}"[:200] for w in caught]}


def peak() -> int:
    """Return the peak resident memory of this process, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_memory():
    """Limit this process to MEMORY bytes more than it uses now."""
    import resource

    if (pages := Path("/proc/self/statm")).exists():
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def work() -> None:
    """Read lines "target seed number" from standard input, and write the result of each as a line of JSON."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with answers
    Image.MAX_IMAGE_PIXELS = PIXELS
    with tempfile.TemporaryDirectory() as home:
        for target in ("config", "image"):  # import modules that are imported at first use
            attempt(target, 0, 0, Path(home))
        limit_memory()
        for i, line in enumerate(sys.stdin):
            target, seed, number = line.split()
            (folder := Path(home, str(i))).mkdir()  # a new one each time, because mapped files must not change
            record = attempt(target, int(seed), int(number), folder)
            print(json.dumps(record), file=answers, flush=True)
            shutil.rmtree(folder)


class Worker:
    """A worker process that is restarted whenever it dies."""

    def __init__(self):
        self.process = self.log = None

    def ask(self, target: str, seed: int, number: int, patience: float = HANG) -> dict:
        """Process one input in the worker, and return the result of `attempt`."""
        if self.process is None:
            one = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
            self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
            self.process = subprocess.Popen([sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, text=True,
                                            stdout=subprocess.PIPE, stderr=self.log, env=os.environ | one)
        print(target, seed, number, file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], patience)[0]:
            return self._died("hang", f"no answer for {patience} s")
        if line := self.process.stdout.readline():
            return json.loads(line)
        return self._died("crash", f"status {self.process.wait()}")

    def _died(self, outcome, detail):
        self.log.seek(0)
        output = self.log.read().decode(errors="replace")[-3000:]
        self.close()
        return {"outcome": outcome, "failed": True, "detail": f"{detail}\n{output}", "seconds": 0.0, "peak": 0,
                "warnings": []}

    def close(self):
        """End the process if it runs."""
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.log.close()
            self.process = None


@dataclass
class Tally:
    """Counts of the results of one target."""

    target: str
    outcomes: collections.Counter = field(default_factory=collections.Counter)
    warnings: collections.Counter = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    peak: int = 0

    def add(self, record, seed, number):
        """Count the result of one input."""
        self.outcomes[record["outcome"]] += 1
        self.warnings.update(record["warnings"])
        self.slowest = max(self.slowest, (record["seconds"], number))
        self.peak = max(self.peak, record["peak"])
        if record["failed"]:
            again = f"python tests/fuzz.py --seed {seed} --target {self.target} --only {number}"
            self.failures.append(f"{record['outcome']}: {again}\n{record['detail']}")

    def row(self):
        """Return the row of the table."""
        processed = self.outcomes.total()
        rejected = ", ".join(f"{n} {kind}" for kind, n in self.outcomes.most_common() if kind != "accepted")
        return (f"| {self.target} | {processed} | {self.outcomes['accepted']} | {rejected} | {self.slowest[0]:.2f} s "
                f"| {self.peak / 2**20:.0f} MB | {len(self.failures)} |")


def fuzz(target: str, seed: int, count: int | None = None, seconds: float = math.inf, worker=None) -> Tally:
    """Process the inputs 0, 1, ... of a target: at most `count` inputs, for at most `seconds` seconds."""
    tally, start, number = Tally(target), time.monotonic(), 0
    own = worker or Worker()
    while number != count and time.monotonic() - start < seconds:
        tally.add(own.ask(target, seed, number), seed, number)
        number += 1
    if not worker:
        own.close()
    return tally


def guided(target: str, options: list[str]) -> None:
    """Fuzz one file with libFuzzer, guided by the coverage of the Python code of minigdino and Pillow."""
    import atheris

    Image.MAX_IMAGE_PIXELS = PIXELS
    warnings.simplefilter("ignore")
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{target}-"))
    for i in range(100):
        files, name = intact(target, i)
        (corpus / str(i)).write_bytes(files[name])
    atheris.instrument_all()

    def one(data):
        files, name = intact(target, 0)
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(minigdino.Error):
            for file, content in {**files, name: data}.items():
                Path(folder, file).write_bytes(content)
            use(Path(folder), TEXTS[0])

    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=4096", *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time for all targets together (60)")
    parser.add_argument("--count", type=int, metavar="N", help="process N inputs of each target, instead of --seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="process one target instead of all")
    parser.add_argument("--only", type=int, metavar="N", help="process one input, in this process")
    parser.add_argument("--atheris", nargs=argparse.REMAINDER, help="options for libFuzzer, such as -max_total_time=60")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return 0
    if arguments.atheris is not None:
        return guided(arguments.target or "image", arguments.atheris)
    if arguments.only is not None:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        Image.MAX_IMAGE_PIXELS = PIXELS
        record = attempt(arguments.target, arguments.seed, arguments.only, folder)
        print(f"{record['outcome']} {record['seconds']:.3f} s\n{record['detail']}\n{record['warnings']}")
        print(f"files: {folder}")
        return 0
    targets = [arguments.target] if arguments.target else TARGETS
    tallies = []
    print("| input | processed | accepted | rejected | slowest | peak memory | failures |")
    print("|---|---|---|---|---|---|---|")
    for target in targets:
        seconds = math.inf if arguments.count else arguments.seconds / len(targets)
        tallies.append(fuzz(target, arguments.seed, arguments.count, seconds))
        print(tallies[-1].row(), flush=True)
    for tally in tallies:
        for message, n in tally.warnings.most_common(5):
            print(f"{tally.target}: {n} x {message}")
        for failure in tally.failures[:20]:
            print(f"\n{failure}")
    return 1 if any(tally.failures for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
