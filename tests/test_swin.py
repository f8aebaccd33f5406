"""Swin: windows, shifts, masks and merging; blocks and stages in the paper's order."""

from unittest import mock

import definitions
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from minigdino._ext import cpus
from strategies import attention_weights, linear_weights, rngs, sizes

from minigdino.network import swin
from minigdino.runtime import kernels

pytestmark = pytest.mark.usefixtures("both_kernels")


@given(rngs(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_windows_tile_the_image(rng, rows, cols, k):
    x = rng.standard_normal((rows * k, cols * k, 3))
    cut = swin.windows(x, k)
    assert cut.shape == (rows * cols, k * k, 3)
    np.testing.assert_array_equal(cut[-1].reshape(k, k, 3), x[-k:, -k:])
    np.testing.assert_array_equal(swin.unwindow(cut, rows * k, cols * k), x)


@given(rngs(), sizes(), st.integers(1, 5))
def test_padding_goes_below_and_right(rng, size, k):
    x = rng.standard_normal((*size, 2))
    y = swin.pad_to_multiple(x, k)
    assert y.shape[0] % k == y.shape[1] % k == 0
    assert y.shape[0] - size[0] < k
    np.testing.assert_array_equal(y[: size[0], : size[1]], x)
    assert not y[size[0] :].any()
    assert not y[:, size[1] :].any()


@given(rngs(), st.integers(1, 5))
def test_relative_position_bias_depends_on_the_offset_only(rng, k):
    table = rng.standard_normal(((2 * k - 1) ** 2, 2))
    bias = swin.relative_position_bias(table, k)
    for i, j in rng.integers(0, k * k, (20, 2)):
        dy, dx = i // k - j // k, i % k - j % k
        np.testing.assert_array_equal(bias[:, i, j], table[(dy + k - 1) * (2 * k - 1) + dx + k - 1])


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 6))
def test_the_shift_mask_separates_pixels_that_were_not_adjacent(rows, cols, k):
    H, W, shift = rows * k, cols * k, k // 2
    mask = swin.shift_mask(H, W, k, shift, like=np.zeros(0, np.float32))
    r, c = np.mgrid[:H, :W]
    # two pixels of a window were neighbours before the roll if it moved both by the same vector
    old = np.stack([(r + shift) % H, (c + shift) % W], -1) - np.stack([r, c], -1)
    moved = swin.windows(old, k)
    together = (moved[:, :, None] == moved[:, None]).all(-1)
    np.testing.assert_array_equal(mask, np.where(together, 0, -100))


def block(rng, C, k, heads):
    return {
        "layernorm_before": {"weight": rng.random(C) + 0.5, "bias": rng.standard_normal(C)},
        "layernorm_after": {"weight": rng.random(C) + 0.5, "bias": rng.standard_normal(C)},
        "self_attn": {
            **attention_weights(rng, C),
            "relative_position_bias_table": rng.standard_normal(((2 * k - 1) ** 2, heads)),
        },
        "fc1": linear_weights(rng, 2 * C, C),
        "fc2": linear_weights(rng, C, 2 * C),
    }


SETTINGS = {"n_heads": 2, "k": 4, "activation": "gelu", "eps": 1e-5}


@given(rngs(), st.integers(1, 3), st.integers(1, 3))
def test_a_block_without_shift_attends_within_windows_only(rng, rows, cols):
    w, x = block(rng, 4, 4, 2), rng.standard_normal((rows * 4, cols * 4, 4))
    y = swin.swin_block(x, **w, shift=0, **SETTINGS)
    np.testing.assert_allclose(swin.swin_block(x[:4, :4], **w, shift=0, **SETTINGS), y[:4, :4], atol=1e-10)


@given(rngs())
def test_a_shifted_block_attends_across_windows_but_not_around_the_edge(rng):
    w, x = block(rng, 4, 4, 2), rng.standard_normal((8, 8, 4))
    changed = x.copy()
    changed[:2] = rng.standard_normal((2, 8, 4))  # the roll moves the top rows to the bottom
    y, z = (swin.swin_block(v, **w, shift=2, **SETTINGS) for v in (x, changed))
    np.testing.assert_allclose(y[2:], z[2:], atol=1e-10)
    other = x.copy()
    other[2] = rng.standard_normal((8, 4))
    assert abs(swin.swin_block(other, **w, shift=2, **SETTINGS) - y)[4].max() > 1e-6  # row 4 is in another window


@given(rngs(), sizes(9), st.sampled_from([0, 2]))
def test_padding_after_the_projections_equals_padding_before_them(rng, size, shift):
    """The paper's order: pad the normed map with zeros, shift, partition into windows, and only then project."""
    heads, k, C = 2, 4, 6
    x, attn = rng.standard_normal((*size, C)), block(rng, C, k, heads)["self_attn"]
    padded = swin.pad_to_multiple(x, k)
    H, W, _ = padded.shape
    cut = swin.windows(np.roll(padded, (-shift, -shift), (0, 1)), k)

    def project(name):
        return (cut @ attn[name]["weight"].T + attn[name]["bias"]).reshape(-1, k * k, heads, C // heads).swapaxes(1, 2)

    scores = project("query") @ project("key").swapaxes(2, 3) * (C // heads) ** -0.5
    scores = scores + swin.relative_position_bias(attn["relative_position_bias_table"], k)
    if shift:
        scores = scores + swin.shift_mask(H, W, k, shift, like=x)[:, None]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    attended = (weights @ project("value")).swapaxes(1, 2).reshape(-1, k * k, C)
    back = np.roll(swin.unwindow(attended, H, W), (shift, shift), (0, 1))[: size[0], : size[1]]
    want = back @ attn["out_proj"]["weight"].T + attn["out_proj"]["bias"]
    np.testing.assert_allclose(swin.window_attention(x, **attn, n_heads=heads, k=k, shift=shift), want, atol=1e-10)


@given(rngs(), sizes(11), st.integers(1, 40), st.integers(1, 5), st.booleans(), st.integers(1, 9))
def test_attention_in_bands_equals_attention_of_the_whole_map(rng, size, wider, k, shifted, threads):
    """Bands, parts of wide bands, and with many threads the whole map."""
    size = size[0], size[1] + wider
    x, attn = rng.standard_normal((*size, 4)), block(rng, 4, k, 2)["self_attn"]
    options = {"n_heads": 2, "k": k, "shift": k // 2 * shifted, "residual": rng.standard_normal(x.shape)}
    with mock.patch.object(cpus, "_limit", threads):
        banded = kernels.load(swin.window_attention.twins["numpy"])(x, **attn, **options)
    np.testing.assert_allclose(banded, swin.window_attention.reference(x, **attn, **options), atol=1e-12)


@given(rngs(), sizes(9), st.sampled_from([0, 2]))
def test_the_values_of_padding_tokens_are_the_bias(rng, size, shift):
    """Padding tokens are attended to. So a change of the value bias reaches every pixel in full, beside padding too."""
    attn, x, options = block(rng, 4, 4, 2)["self_attn"], rng.standard_normal((*size, 4)), {"n_heads": 2, "k": 4}
    change = rng.standard_normal(4)
    value = {**attn["value"], "bias": attn["value"]["bias"] + change}
    before = swin.window_attention(x, **attn, **options, shift=shift)
    after = swin.window_attention(x, **{**attn, "value": value}, **options, shift=shift)
    expected = np.broadcast_to(attn["out_proj"]["weight"] @ change, x.shape)
    np.testing.assert_allclose(after - before, expected, atol=1e-9)


@given(rngs(), sizes(7))
def test_patch_merging_concatenates_in_the_order_of_the_weights(rng, size):
    x = rng.standard_normal((*size, 2))
    w = rng.standard_normal((4, 8))
    y = swin.patch_merging(x, {"weight": np.ones(8), "bias": np.zeros(8)}, {"weight": w}, eps=1e-5)
    padded = np.pad(x, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)))
    v = np.concatenate([padded[0, 0], padded[1, 0], padded[0, 1], padded[1, 1]])
    v = (v - v.mean()) / np.sqrt(v.var() + 1e-5)
    np.testing.assert_allclose(y[0, 0], w @ v, atol=1e-9)
    assert y.shape == (-(-size[0] // 2), -(-size[1] // 2), 4)


@given(rngs(), st.integers(1, 13), st.integers(1, 13))
def test_patch_embedding_is_a_strided_convolution(rng, H, W):
    pixels, kernel, bias = rng.standard_normal((3, H, W)), rng.standard_normal((6, 3, 4, 4)), rng.standard_normal(6)
    norm = {"weight": np.ones(6), "bias": np.zeros(6)}
    y = swin.patch_embedding(pixels, {"weight": kernel, "bias": bias}, norm, eps=1e-5)
    assert y.shape == (-(-H // 4), -(-W // 4), 6)
    corner = np.zeros((3, 4, 4))
    corner[:, : min(H, 4), : min(W, 4)] = pixels[:, :4, :4]
    v = (kernel * corner).sum((1, 2, 3)) + bias
    np.testing.assert_allclose(y[0, 0], (v - v.mean()) / np.sqrt(v.var() + 1e-5), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 5), (64, 64)])
def test_maps_halve_rounding_up(size):
    model = tiny.model(stages=(1, 2, 3, 4), levels=5)
    maps = swin.swin(tiny.pixels(*size), **model.weights["backbone"], config=model.config.backbone_config)
    edges = [[-(-n // 4) for n in size]]
    for _ in range(3):
        edges.append([-(-n // 2) for n in edges[-1]])
    assert [list(m.shape) for m in maps] == [[h, w, 16 * 2**i] for i, (h, w) in enumerate(edges)]


@given(rngs(), sizes(9), st.sampled_from([0, 2]), st.sampled_from(["gelu", "relu"]))
def test_a_block_is_equation_3(rng, size, shift, activation):
    """z = (S)W-MSA(LN(x)) + x, then MLP(LN(z)) + z."""
    w, x, C = block(rng, 4, 4, 2), rng.standard_normal((*size, 4)), 4

    def norm(a, p):
        return definitions.norm(a.reshape(-1, C), p).reshape(a.shape)

    z = swin.window_attention(norm(x, w["layernorm_before"]), **w["self_attn"], n_heads=2, k=4, shift=shift) + x
    rows = norm(z, w["layernorm_after"]).reshape(-1, C)
    want = definitions.feed_forward(rows, w["fc1"], w["fc2"], activation).reshape(z.shape) + z
    got = swin.swin_block(x, **w, shift=shift, **{**SETTINGS, "activation": activation})
    np.testing.assert_allclose(got, want, atol=1e-6)  # the erf fit of GELU


@pytest.mark.parametrize("size", [(40, 52), (31, 70)])
def test_the_backbone_runs_its_stages_in_order(size):
    """Section 3.1, Figure 3: patches, then pairs of blocks, the second one shifted; merging between stages."""
    model = tiny.model(stages=(1, 2, 3, 4), levels=5)
    w, config = model.weights["backbone"], model.config.backbone_config
    eps, k = config.layer_norm_eps, config.window_size
    x = swin.patch_embedding(
        tiny.pixels(*size), w["embeddings"]["patch_embeddings"]["projection"], w["embeddings"]["norm"], eps
    )
    want = []
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads)):
        options = {"n_heads": heads, "k": k, "activation": config.hidden_act, "eps": eps}
        blocks = w["layers"][stage]["blocks"]
        for pair in range(depth // 2):
            x = swin.swin_block(x, **blocks[2 * pair], shift=0, **options)
            x = swin.swin_block(x, **blocks[2 * pair + 1], shift=k // 2, **options)
        rows = definitions.norm(x.reshape(-1, x.shape[2]), w["hidden_states_norms"][f"stage{stage + 1}"], eps)
        want.append(rows.reshape(x.shape))
        if stage < 3:
            x = swin.patch_merging(x, **w["layers"][stage]["downsample"], eps=eps)
    got = swin.swin(tiny.pixels(*size), **w, config=config)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
