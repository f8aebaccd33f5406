"""Every published layout of a checkpoint, loaded with both libraries: the same tensors and the same results."""

import json

import numpy as np
import pytest
from oracle import (
    BACKBONE,
    CAT,
    CLS,
    DOG,
    DOT,
    FAMILIES,
    GEOMETRIES,
    SEP,
    A,
    assert_equal,
    build,
    load,
    noise,
    publish,
    small,
    torch,
    transformers,
)

import minigdino
from minigdino import Model
from minigdino.checkpoints.parameters import parameters

GD, MM = FAMILIES
IDS = [CLS, A, CAT, DOT, A, DOG, DOT, SEP]
TOP, DECODER = "", "model.decoder."


def head_prefixes(kind, parents):
    """The prefix of each head, given the prefix of its parent module."""
    return [f"{parent}{kind}.{i}" for i, parent in enumerate(parents)]


# layout -> family, whether the config states that heads are shared, parents of the box heads and of the class heads
LAYOUTS = {
    "grounding-dino-tiny": (GD, True, [TOP], []),
    "grounding-dino-base": (GD, True, [DECODER], []),
    "grounding-dino as transformers 5 saves it, shared": (GD, True, [TOP], []),
    "grounding-dino as transformers 5 saves it, not shared": (GD, False, [TOP] * 3, []),
    "mm-grounding-dino and llmdet": (MM, False, [TOP, DECODER, DECODER], [TOP, DECODER, DECODER]),
    "mm-grounding-dino as transformers 5 saves it": (MM, False, [TOP] * 3, [TOP] * 3),
    "mm-grounding-dino as transformers 5 saves it, shared": (MM, True, [TOP], [TOP]),
    "mm-grounding-dino, decoder names only": (MM, False, [DECODER] * 3, [DECODER] * 3),
}


def laid_out(layout, seed=3):
    """A checkpoint in a layout -> config, tensors, prefixes of the heads per layer, whether the config shares them"""
    family, shared, boxes, classes = LAYOUTS[layout]
    config = small(family)
    rng = np.random.default_rng(seed)
    tensors = {n: t for n, t in Model.random(config, seed).tensors.items() if n in parameters(config)}
    C = config.d_model
    for prefix in head_prefixes("bbox_embed", boxes):
        for i, outputs in enumerate((C, C, 4)):
            tensors[f"{prefix}.layers.{i}.weight"] = rng.standard_normal((outputs, C), np.float32) * np.float32(C**-0.5)
            tensors[f"{prefix}.layers.{i}.bias"] = rng.standard_normal(outputs, np.float32)
    for prefix in head_prefixes("class_embed", classes):
        tensors[f"{prefix}.bias"] = rng.standard_normal((), np.float32).reshape(())
    n = config.decoder_layers
    heads = {"bbox_embed": (head_prefixes("bbox_embed", boxes) * n)[:n],
             "class_embed": (head_prefixes("class_embed", classes) * n)[:n]}
    return config, tensors, heads, shared


def flags(shared):
    """Return the options of a config that state whether heads are shared."""
    return {"decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared, "two_stage_bbox_embed_share": False}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_head_layout_loads_as_in_transformers(layout, tmp_path):
    config, tensors, heads, shared = laid_out(layout)
    publish(tmp_path, tensors, config, **flags(shared))
    model, reference = minigdino.load(tmp_path), load(tmp_path)
    for i, prefix in enumerate(heads["bbox_embed"]):
        for head in (reference.bbox_embed[i], reference.model.decoder.bbox_embed[i]):
            for part, parameter in head.named_parameters():
                np.testing.assert_array_equal(parameter.numpy(), tensors[f"{prefix}.{part}"])
        for j in range(3):
            for leaf in ("weight", "bias"):
                np.testing.assert_array_equal(model.weights["bbox_embed"][i]["layers"][j][leaf],
                                              tensors[f"{prefix}.layers.{j}.{leaf}"])
    for i, prefix in enumerate(heads["class_embed"]):
        bias = tensors[f"{prefix}.bias"]
        assert model.weights["class_embed"][i]["bias"] == reference.class_embed[i].bias.numpy() == bias
    assert_equal(model, reference, noise(75, 91), IDS)


@pytest.mark.parametrize("layout", ["mm-grounding-dino and llmdet", "mm-grounding-dino as transformers 5 saves it"])
def test_without_flags_transformers_ties_the_heads_and_minigdino_does_not(layout, tmp_path):
    config, tensors, heads, _ = laid_out(layout)
    publish(tmp_path / "no flags", tensors, config)
    publish(tmp_path / "flags", tensors, config, **flags(False))
    tied = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "no flags", dtype=torch.float32)
    stored = tensors[f"{heads['bbox_embed'][1]}.layers.0.weight"]
    loaded = [parent.bbox_embed[1].layers[0].weight.detach().numpy() for parent in (tied, tied.model.decoder)]
    assert not all(np.array_equal(weight, stored) for weight in loaded)
    assert_equal(minigdino.load(tmp_path / "no flags"), load(tmp_path / "flags"), noise(75, 91), IDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_checkpoints_saved_by_transformers_load(family, geometry, tmp_path):
    reference = build(small(family, geometry))
    reference.save_pretrained(tmp_path)
    assert all(parameter.std() > 0 for parameter in reference.parameters() if parameter.numel() > 1)
    model = minigdino.load(tmp_path)
    assert model.config == small(family, geometry)
    assert_equal(model, reference, noise(75, 91), IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_saved_checkpoints_bit_for_bit(family, tmp_path):
    model = Model.random(small(family), 5)
    model.save(tmp_path)
    parameters_of_transformers = dict(load(tmp_path).named_parameters(remove_duplicate=False))
    loaded = minigdino.load(tmp_path)
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)
        if not name.startswith(BACKBONE):
            np.testing.assert_array_equal(parameters_of_transformers[name].numpy(), tensor)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_dict_of_transformers_5_loads(family, tmp_path):
    """In memory, some tensors have other names than in the published files."""
    reference = build(small(family))
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()
             if not name.startswith(("model.decoder.bbox_embed", "model.decoder.class_embed"))}
    assert any(".swin.encoder." in name for name in state)
    assert any(".attention.q_proj." in name for name in state)
    if family == GD:  # one shared head has three names
        state = {name: t for name, t in state.items() if not name.startswith(("bbox_embed.1", "bbox_embed.2"))}
    publish(tmp_path, state, small(family), **flags(family == GD))
    assert_equal(minigdino.load(tmp_path), reference, noise(75, 91), IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_of_older_files_are_ignored(family, tmp_path):
    config, k = small(family), small(family).backbone_config.window_size
    tensors = dict(Model.random(config).tensors)
    swin = config.backbone_config
    for stage, depth in enumerate(swin.depths):
        for i in range(depth):
            tensors[f"{BACKBONE}encoder.layers.{stage}.blocks.{i}.attention.self.relative_position_index"] = (
                np.zeros((k * k, k * k), np.int64))
    tensors[f"{BACKBONE}swin.layernorm.weight"] = np.ones(swin.channels[-1], np.float32)
    tensors[f"{BACKBONE}swin.layernorm.bias"] = np.ones(swin.channels[-1], np.float32)
    publish(tmp_path, tensors, config, **flags(family == GD))
    assert_equal(minigdino.load(tmp_path), load(tmp_path), noise(64, 64), IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_checkpoints_load(family, tmp_path):
    reference = build(small(family))
    reference.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(minigdino.load(tmp_path), reference, noise(75, 91), IDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_checkpoints_load_with_equal_values(family, dtype, tmp_path):
    build(small(family)).to(dtype).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["dtype"] == str(dtype).removeprefix("torch.")
    model, reference = minigdino.load(tmp_path), load(tmp_path)
    state = reference.state_dict()
    for name, tensor in model.tensors.items():
        if name in state:
            np.testing.assert_array_equal(tensor, state[name].numpy())
    assert_equal(model, reference, noise(75, 91), IDS)


def test_configs_survive_loading_and_saving_by_transformers(tmp_path):
    for family in FAMILIES:
        for geometry in GEOMETRIES:
            config = small(family, geometry)
            Model.random(config).save(tmp_path)
            transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
            assert minigdino.Config.from_file(tmp_path / "config.json") == config


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_older_configs_are_ignored(family, tmp_path):
    config = small(family, "5 levels")
    values = config.to_dict() | flags(family == GD) | {
        "architectures": None, "backbone": None, "backbone_kwargs": None, "use_timm_backbone": False, "dilation": False,
        "use_pretrained_backbone": False, "torch_dtype": "float32", "transformers_version": "4.40.0.dev0",
        "auxiliary_loss": False, "fusion_droppath": 0.1, "is_encoder_decoder": True, "disable_custom_kernels": False}
    values["backbone_config"] |= {"path_norm": True, "out_features": ["stage1", "stage2", "stage3", "stage4"],
                                  "num_layers": 4, "drop_path_rate": 0.1, "hidden_size": 192}
    values["text_config"] |= {"position_embedding_type": "absolute", "use_cache": True, "classifier_dropout": None}
    publish(tmp_path, Model.random(config).tensors, config)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert minigdino.load(tmp_path).config == config
    assert_equal(minigdino.load(tmp_path), load(tmp_path), noise(64, 64), IDS)


def test_a_config_with_only_model_type_is_the_tiny_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "grounding-dino"}')
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert minigdino.Config.from_file(tmp_path / "config.json") == minigdino.Config()
    assert minigdino.Config.from_dict({"model_type": "grounding-dino"}) == minigdino.Config()


def test_published_geometries_have_the_parameter_counts_of_transformers(tmp_path):
    counts = {("grounding-dino", "tiny"): 172_249_090, ("grounding-dino", "base"): 232_313_216,
              ("mm-grounding-dino", "tiny"): 172_912_157, ("mm-grounding-dino", "base"): 232_976_283,
              ("mm-grounding-dino", "large"): 343_052_631}
    for (family, size), count in counts.items():
        config = minigdino.Config.published(family, size)
        values = config.to_dict() | flags(family == GD)
        (tmp_path / "config.json").write_text(json.dumps(values))
        with torch.device("meta"):
            model = transformers.AutoModelForZeroShotObjectDetection.from_config(
                transformers.AutoConfig.from_pretrained(tmp_path))
        shapes = {name: p.shape for name, p in model.named_parameters() if "swin.layernorm" not in name}
        assert sum(shape.numel() for shape in shapes.values()) == count
        heads = sum(shape.numel() for name, shape in shapes.items()
                    if name.removeprefix("model.decoder.").startswith(("bbox_embed", "class_embed")))
        assert sum(int(np.prod(shape)) for shape in parameters(config).values()) + heads == count
