"""Checkpoint files: all layouts load, errors name the tensor, and float32 weights are memory-mapped without a copy."""

import json
import mmap
import tracemalloc

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

import minigdino
from minigdino import ArgumentError, CheckpointError, Model
from minigdino.checkpoints import weights
from minigdino.checkpoints.names import IN_MEMORY, published
from minigdino.checkpoints.parameters import BACKBONE, random_tensors
from minigdino.checkpoints.weights import read_checkpoint, read_safetensors, tree

FAMILIES = ["grounding-dino", "mm-grounding-dino"]


def write(directory, tensors, config, name="model.safetensors"):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, directory / name)
    return directory


def answer(model):
    return model.forward(tiny.pixels(), tiny.IDS).boxes


@pytest.fixture(params=FAMILIES)
def checkpoint(request):
    config = tiny.config(request.param)
    return random_tensors(config), config


def test_a_checkpoint_comes_back_as_saved(checkpoint, tmp_path):
    tensors, config = checkpoint
    model = Model(tensors, config, tokenizer=tiny.tokenizer(), settings=tiny.SETTINGS)
    model.save(tmp_path)
    again = minigdino.load(tmp_path)
    assert again.config == config
    assert again.settings == model.settings
    np.testing.assert_array_equal(answer(again), answer(model))
    np.testing.assert_array_equal(again.tokenize("a cat").ids, model.tokenize("a cat").ids)
    np.testing.assert_array_equal(answer(minigdino.load(tmp_path / "model.safetensors")), answer(model))


def test_float32_files_are_mapped_and_read_only(checkpoint, tmp_path):
    model = minigdino.load(write(tmp_path, *checkpoint))
    leaf = model.weights["text_backbone"]["embeddings"]["word_embeddings"]["weight"]
    assert not leaf.flags.owndata
    assert not leaf.flags.writeable
    base = leaf
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def moved(tensors, old, new):
    """Replace the prefix of tensor names."""
    return {new + name.removeprefix(old) if name.startswith(old) else name: array for name, array in tensors.items()}


def test_all_head_layouts_of_grounding_dino_are_the_same_model(tmp_path):
    config = tiny.config()
    top = random_tensors(config)  # only bbox_embed.0, as in grounding-dino-tiny
    nested = moved(top, "bbox_embed.0.", "model.decoder.bbox_embed.0.")  # as in grounding-dino-base
    repeated = {
        **top,
        **{
            name.replace(".0.", f".{i}.", 1): v
            for i in (1, 2)
            for name, v in top.items()
            if name.startswith("bbox_embed.0.")
        },
    }
    want = answer(Model(top, config))
    for i, layout in enumerate((nested, repeated)):
        np.testing.assert_array_equal(answer(minigdino.load(write(tmp_path / str(i), layout, config))), want)


def test_all_head_layouts_of_mm_are_the_same_model(tmp_path):
    config = tiny.config("mm-grounding-dino")
    mixed = random_tensors(config)  # head 0 at the top level, the others in the decoder, as published
    top = {
        name.replace("model.decoder.bbox", "bbox").replace("model.decoder.class", "class"): v
        for name, v in mixed.items()
    }
    np.testing.assert_array_equal(answer(minigdino.load(write(tmp_path, top, config))), answer(Model(mixed, config)))
    single = {n: v for n, v in mixed.items() if not n.startswith(("model.decoder.bbox", "model.decoder.class"))}
    shared = Model(single, config).weights
    assert shared["bbox_embed"][2] is not None
    assert shared["class_embed"][2]["bias"] == single["class_embed.0.bias"]
    assert Model(mixed, config).weights["class_embed"][2]["bias"] == mixed["model.decoder.class_embed.2.bias"]


def test_names_in_memory_of_transformers_are_read_and_unused_tensors_ignored(checkpoint):
    tensors, config = checkpoint
    renamed = {}
    for name, array in tensors.items():
        if name.startswith(BACKBONE):
            rest = "." + name.removeprefix(BACKBONE)
            for new, old in IN_MEMORY:
                rest = rest.replace(old, new)
            name = BACKBONE + "swin" + rest
        renamed[name] = array
    assert len(renamed.keys() - tensors.keys()) > 50
    window = np.zeros((16, 16), np.int64)
    renamed |= {
        f"{BACKBONE}encoder.layers.0.blocks.0.attention.self.relative_position_index": window,
        f"{BACKBONE}swin.layernorm.weight": np.ones(3, np.float32),
        f"{BACKBONE}swin.layernorm.bias": np.ones(3, np.float32),
        "model.text_backbone.embeddings.position_ids": window,
        "model.text_backbone.pooler.dense.bias": np.ones(3, np.float32),
    }
    model = Model({published(name): array for name, array in renamed.items()}, config)
    np.testing.assert_array_equal(answer(model), answer(Model(tensors, config)))


def write_bfloat16(path, upper_halves):
    """Write a safetensors file by hand, since NumPy has no bfloat16."""
    header, body = {}, b""
    for name, array in upper_halves.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_sixteen_bit_files_are_converted_once(checkpoint, tmp_path, dtype):
    tensors, config = checkpoint
    if dtype == "F16":
        stored = {n: v.astype(np.float16) for n, v in tensors.items()}
        rounded = {n: v.astype(np.float32) for n, v in stored.items()}
        write(tmp_path, stored, config)
    else:
        stored = {
            n: (np.asarray(v, order="C").reshape(v.shape).view(np.uint32) >> 16).astype(np.uint16)
            for n, v in tensors.items()
        }
        rounded = {n: (v.astype(np.uint32) << 16).view(np.float32) for n, v in stored.items()}
        write(tmp_path, tensors, config)
        write_bfloat16(tmp_path / "model.safetensors", stored)
    got = minigdino.load(tmp_path)
    np.testing.assert_array_equal(answer(got), answer(Model(rounded, config)))
    assert got.weights["level_embed"].dtype == np.float32


MANY = 2**24  # elements of a tensor that occupies no space on the disk, but 64 MiB in float32
POOLER = "model.text_backbone.pooler.dense.weight"


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(
    ("name", "message"), [("junk", "junk belongs to no"), ("model.level_embed", "must have shape"), (POOLER, None)]
)
def test_sixteen_bit_tensors_are_converted_only_if_a_layer_uses_them(checkpoint, tmp_path, dtype, name, message):
    tensors, config = checkpoint
    path = write(tmp_path, {n: v for n, v in tensors.items() if n != name}, config) / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    size = len(whole) - start
    entries = json.loads(whole[8:start])
    entries[name] = {"dtype": dtype, "shape": [MANY], "data_offsets": [size, size + 2 * MANY]}
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + whole[start:])
        file.truncate(file.tell() + 2 * MANY)
    tracemalloc.start()
    try:
        if message:
            with pytest.raises(CheckpointError, match=message):
                minigdino.load(tmp_path)
        else:
            model = minigdino.load(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**24
    if not message:
        assert model.tensors.keys() == tensors.keys()
        model.save(tmp_path / "again")
        np.testing.assert_array_equal(answer(minigdino.load(tmp_path / "again")), answer(Model(*checkpoint)))


def test_tensors_that_no_layer_uses_are_kept_and_saved(checkpoint, tmp_path):
    tensors, config = checkpoint
    unused = {POOLER: np.ones((3, 3), np.float32), "model.text_backbone.embeddings.position_ids": np.arange(7)[None]}
    minigdino.load(write(tmp_path / "a", {**tensors, **unused}, config)).save(tmp_path / "b")
    again = minigdino.load(tmp_path / "b").tensors
    for name, array in unused.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_every_bfloat16_is_converted_exactly_and_needs_the_memory_of_the_result():
    halves = np.tile(np.arange(2**16, dtype=np.uint16), 64)
    tracemalloc.start()
    try:
        got = weights._converted(halves.view(weights.BFLOAT16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), halves.astype(np.uint32) << 16)
    assert peak < 1.1 * got.nbytes


def test_a_model_of_sixteen_bit_arrays_is_one_of_float32(checkpoint):
    halves = {name: array.astype(np.float16) for name, array in checkpoint[0].items()}
    rounded = {name: array.astype(np.float32) for name, array in halves.items()}
    np.testing.assert_array_equal(answer(Model(halves, checkpoint[1])), answer(Model(rounded, checkpoint[1])))


# ---- arrays of the caller


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    "convert", [lambda a: np.ma.masked_array(a, mask=False), np.ma.masked_array, lambda a: np.array(a).view(Subclass)]
)
def test_a_subclass_of_ndarray_becomes_a_plain_array(checkpoint, convert):
    tensors, config = checkpoint
    model = Model({name: convert(array) for name, array in tensors.items()}, config)
    assert {type(array) for array in model.tensors.values()} == {np.ndarray}
    boxes = answer(model)
    assert type(boxes) is np.ndarray
    np.testing.assert_array_equal(boxes, answer(Model(tensors, config)))


def test_the_tensors_of_a_model_are_read_only(checkpoint):
    """Cached features and the check of the first detection hold for unchanged tensors."""
    tensors, config = checkpoint
    model = Model(tensors, config)
    for array in (model.tensors["model.level_embed"], model.weights["level_embed"]):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert np.shares_memory(model.tensors["model.level_embed"], tensors["model.level_embed"])
    assert tensors["model.level_embed"].flags.writeable  # that of the caller


def shards(tmp_path, tensors, config):
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        write(tmp_path, {n: tensors[n] for n in part}, config, file)
    index = {"metadata": {}, "weight_map": {n: file for file, part in parts.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_combined(checkpoint, tmp_path):
    shards(tmp_path, *checkpoint)
    np.testing.assert_array_equal(answer(minigdino.load(tmp_path)), answer(Model(*checkpoint)))


def test_saving_over_a_mapped_file_does_not_change_the_loaded_model(checkpoint, tmp_path):
    """Saving replaces both the model's own file and the shards it was loaded from."""
    shards(tmp_path, *checkpoint)
    running = minigdino.load(tmp_path)
    other = Model.random(checkpoint[1], seed=7)
    before, after = answer(running), answer(other)
    other.save(tmp_path)
    np.testing.assert_array_equal(answer(running), before)
    again = minigdino.load(tmp_path)
    np.testing.assert_array_equal(answer(again), after)
    again.save(tmp_path)
    np.testing.assert_array_equal(answer(again), after)


def test_a_missing_shard_or_a_wrong_index_is_named(checkpoint, tmp_path):
    index = shards(tmp_path, *checkpoint)
    index["weight_map"]["model.level_embed"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["model.nonsense"] = "model-00002-of-00002.safetensors"
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="tensor model.nonsense is in no shard"):
        minigdino.load(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="names 'model-00002-of-00002.safetensors', which is not in"):
        minigdino.load(tmp_path)
    path.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="names '../elsewhere.safetensors'"):
        minigdino.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="expected a 'weight_map'"):
        minigdino.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.enc_output.weight", None, r"tensor model.enc_output.weight \[64, 64\] is missing"),
        (
            "model.enc_output.weight",
            np.zeros((64, 32), np.float32),
            r"model.enc_output.weight must have shape \[64, 64\] with this config.json; got \[64, 32\]",
        ),
        ("model.enc_output.weight", np.zeros((64, 64), np.int64), "must be F32, F16 or BF16; got int64"),
        (
            "model.encoder.layers.7.fc1.weight",
            np.zeros(3, np.float32),
            "model.encoder.layers.7.fc1.weight belongs to no layer",
        ),
        ("bbox_embed.0.layers.1.bias", None, r"tensor bbox_embed.0.layers.1.bias \[64\] is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(checkpoint, tmp_path, name, change, message):
    tensors, config = checkpoint
    tensors = {k: v for k, v in {**tensors, name: change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        minigdino.load(write(tmp_path, tensors, config))
    assert str(tmp_path) in str(caught.value)
    assert "---> hint" in str(caught.value)


def test_incomplete_heads_are_named():
    config = tiny.config("mm-grounding-dino")
    tensors = random_tensors(config)
    for removed, message in (
        ("model.decoder.bbox_embed.2.", r"bbox_embed.2.\* is missing, but other"),
        ("model.decoder.class_embed.1.", r"class_embed.1.\* is missing, but other"),
        ("class_embed.0.", r"class_embed.0.\* is missing, but other"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Model({n: v for n, v in tensors.items() if not n.startswith(removed)}, config)
    with pytest.raises(CheckpointError, match="has no bbox_embed at all"):
        Model({n: v for n, v in tensors.items() if "bbox_embed." not in n}, config)


def test_a_config_of_the_other_family_is_rejected():
    with pytest.raises(CheckpointError, match="no class_embed at all"):
        Model(random_tensors(tiny.config()), tiny.config("mm-grounding-dino"))
    with pytest.raises(CheckpointError, match="belongs to no layer of this model"):
        Model(random_tensors(tiny.config("mm-grounding-dino")), tiny.config())


def test_corrupted_files_are_named(checkpoint, tmp_path):
    write(tmp_path, *checkpoint)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    wrong_offset = (
        whole[:8] + whole[8 : 8 + header].replace(b'"data_offsets":[0,', b'"data_offsets":[9,') + whole[8 + header :]
    )
    cut = (b"", whole[:5], whole[: 8 + header // 2], whole[:-10])
    for bad in (*cut, wrong_offset, b"\xff" * 8 + whole[8:], b"PK" + whole):
        path.write_bytes(bad)
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors: not a complete safetensors file .*download it again"
        ):
            read_safetensors(path)


def test_an_unsupported_dtype_is_named(tmp_path):
    save_file({"x": np.zeros(3, np.uint16)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="tensor x must have one of the dtypes F32, .*; got U16"):
        read_safetensors(tmp_path / "a.safetensors")


def test_missing_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config().to_dict()))
    with pytest.raises(CheckpointError, match="expected model.safetensors or .*; found neither"):
        minigdino.load(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere: no such file or directory"):
        minigdino.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(minigdino.ConfigError, match="config"):
        (tmp_path / "config.json").write_text("{}")
        minigdino.load(tmp_path)


def test_tree_turns_numbered_keys_into_lists():
    assert tree({"a.0.w": 1, "a.1.w": 2, "b.c": 3, "d": 4}) == {"a": [{"w": 1}, {"w": 2}], "b": {"c": 3}, "d": 4}


def test_no_random_parameter_is_zero_or_constant(checkpoint):
    tensors, _ = checkpoint
    for name, array in tensors.items():
        assert array.dtype == np.float32
        assert array.size == 1 or array.std() > 0.02, name
    assert 0.3 < tensors["model.encoder.layers.0.fusion_layer.vision_param"].mean() < 0.7
    other = random_tensors(tiny.config(), seed=1)
    assert not np.array_equal(other["model.level_embed"], tensors["model.level_embed"])


def test_a_lack_of_memory_is_no_fault_of_the_seed(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("minigdino.checkpoints.parameters._random", fail)
    with pytest.raises(MemoryError):
        Model.random(tiny.config())


@pytest.mark.parametrize("seed", [-1, "a", 1.5])
def test_an_invalid_seed_is_refused(seed):
    with pytest.raises(ArgumentError, match="seed must be an int that is not negative"):
        Model.random(tiny.config(), seed)
