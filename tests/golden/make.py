"""Write the golden files: the results of every step, computed by transformers. Needs the extra "parity".

    python tests/golden/make.py

The models are `Model.random` of the config in tests/tiny.py, so the files need not store weights. For each step they
hold at most 64 evenly spaced values, under its path in `minigdino.trace`. Two more files hold samples of the gradients
of a weighted sum of all outputs, by the names of the checkpoint's tensors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import GroundingDinoForObjectDetection, MMGroundingDinoForObjectDetection

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny  # noqa: E402
from test_golden import CASES, pixels_of, sample, weights_digest  # noqa: E402
from test_gradients import eight, output_weights  # noqa: E402

from minigdino.checkpoints.names import UNUSED, published  # noqa: E402

CLASSES = {"grounding-dino": GroundingDinoForObjectDetection, "mm-grounding-dino": MMGroundingDinoForObjectDetection}


def map_hwc(tensor):
    """[1, C, H, W] -> [H, W, C]"""
    return tensor[0].permute(1, 2, 0)


def steps_of(network):
    """Yield (path, module of transformers, function from the module's output to the array)."""
    core, enhancer = network.model, "forward.0/enhancer.0"
    yield "forward.0/bert.0/return", core.text_backbone, lambda o: o.last_hidden_state[0]
    for i in range(len(core.config.backbone_config.out_indices)):
        yield (
            f"forward.0/swin.0/return.{i}",
            core.backbone.conv_encoder.model,
            lambda o, i=i: map_hwc(o.feature_maps[i]),
        )
    for i, projection in enumerate(core.input_proj_vision):
        yield f"forward.0/neck.0/return.{i}", projection, map_hwc
    for i, layer in enumerate(core.encoder.layers):
        yield f"{enhancer}/fusion_layer.{i}/return.0", layer.fusion_layer, lambda o: o[0][0][0]
        yield f"{enhancer}/fusion_layer.{i}/return.1", layer.fusion_layer, lambda o: o[1][0][0]
        yield f"{enhancer}/text_enhancer_layer.{i}/return", layer.text_enhancer_layer, lambda o: o[0][0]
        yield f"{enhancer}/deformable_layer.{i}/return", layer.deformable_layer, lambda o: o[0][0]
    for i, layer in enumerate(core.decoder.layers):
        yield (
            f"forward.0/decoder.0/decoder_layer.{i}/return",
            layer,
            lambda o: o[0][0] if isinstance(o, tuple) else o[0],
        )


def load(case):
    """The random model of a case, and the same of transformers"""
    model = tiny.model(case["family"], **case["geometry"])
    with tempfile.TemporaryDirectory() as directory:
        model.save(directory)
        return model, CLASSES[case["family"]].from_pretrained(directory).eval()


def record(case):
    """Run transformers on a case -> {path: sampled values}, plus the selected queries and a digest of the weights"""
    model, network = load(case)
    values, handles = {}, []
    for path, module, array_of in steps_of(network):
        handles.append(
            module.register_forward_hook(
                lambda _m, _i, output, path=path, array_of=array_of: values.update(
                    {path: sample(array_of(output).numpy())}
                )
            )
        )
    with torch.no_grad():
        out = network(torch.tensor(pixels_of(case))[None], torch.tensor(case["ids"])[None])
    for handle in handles:
        handle.remove()
    scores = out.enc_outputs_class[0].max(-1)[0]
    selected = torch.topk(scores, model.config.num_queries)[1].numpy()
    decoder = {p: values.pop(p) for p in list(values) if "/decoder.0/" in p}
    return {
        "selected": selected,
        "weights": weights_digest(model),
        **values,
        "forward.0/select_queries.0/scores": sample(scores.numpy()),
        "forward.0/select_queries.0/references": sample(out.init_reference_points[0].numpy()),
        **decoder,
        "forward.0/logits": sample(out.logits[0, :, : len(case["ids"])].numpy()),
        "forward.0/boxes": sample(out.pred_boxes[0].numpy()),
    }


def layers_of(network, out):
    """Logits and boxes of each decoder layer; transformers returns those of the last one only."""
    references = [out.init_reference_points, *out.intermediate_reference_points.unbind(1)]
    for i, (states, boxes) in enumerate(zip(out.intermediate_hidden_states.unbind(1), references)):
        text = out.encoder_last_hidden_state_text
        logits = network.class_embed[i](states, text, torch.ones(text.shape[:2], dtype=torch.bool))
        yield logits[..., : text.shape[1]], (network.bbox_embed[i](states) + torch.special.logit(boxes, 1e-5)).sigmoid()


def record_gradients(case):
    """Gradients of a case by autograd -> names of all tensors, eight values of each gradient, its largest one"""
    _, network = load(case)
    out = network(torch.tensor(pixels_of(case))[None], torch.tensor(case["ids"])[None])
    logits, boxes = (torch.cat(parts) for parts in zip(*layers_of(network, out)))
    tokens = out.enc_outputs_class[0, :, : len(case["ids"])], out.enc_outputs_coord_logits[0].sigmoid()
    sum((x * torch.tensor(output_weights(x.shape))).sum() for x in (logits, boxes, *tokens)).backward()
    found = {published(name): np.zeros(x.shape) if x.grad is None else x.grad.numpy()
             for name, x in network.named_parameters()}
    names = sorted(name for name in found if not UNUSED.fullmatch(name))
    return {"names": np.array(names), "values": np.stack([eight(found[name]) for name in names]),
            "largest": np.array([abs(found[name]).max() for name in names], np.float32)}


if __name__ == "__main__":
    for name, case in CASES.items():
        values = record(case)
        np.savez_compressed(HERE / f"{name}.npz", **values)
        np.savez_compressed(HERE / f"{name}_gradients.npz", **record_gradients(case))
        print(f"{name}: {len(values) - 2} steps, {(HERE / f'{name}.npz').stat().st_size} bytes")
