"""The public API: `load`, `detect` and the methods of `Model`."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import minigdino
from minigdino import Model
from minigdino.checkpoints import hub

FAMILIES = ["grounding-dino", "mm-grounding-dino"]
TEXT = ["a cat", "remote control"]


def same(a, b):
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    assert (a.labels, a.phrases, a.image_size) == (b.labels, b.phrases, b.image_size)


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny.model(request.param)


def test_a_list_of_images_gives_the_bits_of_each_single_image(model):
    a, b = tiny.photo(60, 90, 1), tiny.photo(90, 60, 2)
    both = model.detect([a, b], TEXT, threshold=0)
    same(both[0], model.detect(a, TEXT, threshold=0))
    same(both[1], model.detect(b, TEXT, threshold=0))
    assert len(both[0]) == model.config.num_queries
    assert model.detect([], TEXT) == []


def test_each_image_can_have_its_own_prompt(model):
    a, b = tiny.photo(60, 90, 1), tiny.photo(90, 60, 2)
    both = model.detect([a, b], [["cat"], ["a dog", "hat"]], threshold=0)
    same(both[1], model.detect(b, "a dog. hat.", threshold=0))
    same(both[0], model.detect(a, [["cat"]], threshold=0))
    with pytest.raises(minigdino.PromptError, match="got 2 prompts for 1 image"):
        model.detect(a, [["cat"], ["dog"]])
    with pytest.raises(minigdino.PromptError, match="got 1 prompt for 2 images"):
        model.detect([a, b], [["cat"]])


def test_paths_pil_images_and_arrays_give_the_same_result(model, tmp_path):
    photo = tiny.photo()
    Image.fromarray(photo).save(tmp_path / "photo.png")
    want = model.detect(photo, TEXT, threshold=0)
    same(model.detect(tmp_path / "photo.png", TEXT, threshold=0), want)
    same(model.detect(Image.fromarray(photo), TEXT, threshold=0), want)


def test_detect_is_preprocess_then_tokenize_then_forward(model):
    photo = tiny.photo()
    found = model.detect(photo, TEXT, threshold=0.01)
    out = model.forward(model.preprocess(photo), model.tokenize(TEXT).ids)
    p = 1 / (1 + np.exp(-out.logits.astype(float)))
    best = np.sort(p.max(axis=1))[::-1]
    np.testing.assert_allclose(found.scores, best[best > 0.01], rtol=1e-5)
    query = p.max(axis=1).argmax()
    cx, cy, w, h = out.boxes[query] * (120, 90, 120, 90)
    np.testing.assert_allclose(found.boxes[0], [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], rtol=1e-4, atol=1e-3)


def test_size_changes_the_pixels_but_not_the_units_of_boxes(model):
    assert model.preprocess(tiny.photo(), size=(64, 80)).shape == (3, 60, 80)
    assert model.preprocess(tiny.photo()).shape == (3, 96, 128)
    found = model.detect(tiny.photo(), TEXT, threshold=0, size=(64, 80))
    assert found.image_size == (120, 90)


def test_every_field_of_output_has_its_shape(model):
    out = model.forward(tiny.pixels(), tiny.IDS, details=True)
    Q, T, C, N, S = 20, 8, 64, 3, sum(h * w for h, w in out.sizes)
    shapes = {
        "logits": (Q, T),
        "boxes": (Q, 4),
        "text_features": (T, C),
        "text": (T, C),
        "vision": (S, C),
        "selection_scores": (S,),
        "selected": (Q,),
        "hidden_states": (N, Q, C),
        "references": (N + 1, Q, 4),
        "layer_logits": (N, Q, T),
        "layer_boxes": (N, Q, 4),
        "encoder_logits": (S, T),
        "encoder_boxes": (S, 4),
        "query_logits": (Q, T),
    }
    for name, shape in shapes.items():
        value = getattr(out, name)
        assert value.shape == shape, name
        assert value.dtype == (np.int64 if name == "selected" else np.float32), name
    assert out.sizes == ((8, 10), (4, 5), (2, 3), (1, 2))
    assert [m.shape for m in out.image_features] == [(8, 10, 32), (4, 5, 64), (2, 3, 128)]
    np.testing.assert_array_equal(out.layer_logits[-1], out.logits)
    np.testing.assert_array_equal(out.layer_boxes[-1], out.boxes)
    np.testing.assert_allclose(out.encoder_logits.max(axis=1), out.selection_scores, rtol=1e-6)
    assert model.forward(tiny.pixels(), tiny.IDS).encoder_logits is None


def test_the_argument_selected_replaces_the_query_selection(model):
    own = model.forward(tiny.pixels(), tiny.IDS)
    again = model.forward(tiny.pixels(), tiny.IDS, selected=own.selected)
    np.testing.assert_array_equal(again.boxes, own.boxes)
    other = model.forward(tiny.pixels(), tiny.IDS, selected=list(own.selected[::-1]))
    np.testing.assert_array_equal(other.selected, own.selected[::-1])
    assert abs(other.boxes - own.boxes).max() > 1e-3  # a token's rank selects its learned query


def test_no_step_is_in_float64(model):
    with minigdino.use("reference"), minigdino.trace("*") as seen:
        model.forward(tiny.pixels(), tiny.IDS, details=True)
    double = sorted(path for path, array in seen.items() if array.dtype == np.float64)
    assert double == []


def test_reference_and_fast_agree(model):
    fast = model.forward(tiny.pixels(), tiny.IDS)
    with minigdino.use("reference"):
        slow = model.forward(tiny.pixels(), tiny.IDS, selected=fast.selected)
    np.testing.assert_allclose(slow.logits, fast.logits, atol=1e-3)
    np.testing.assert_allclose(slow.boxes, fast.boxes, atol=1e-4)


def test_threads_share_a_model(model):
    photos = [tiny.photo(seed=i) for i in range(8)]
    want = [model.detect(p, TEXT, threshold=0) for p in photos]
    got = [None] * 8

    def work(i):
        got[i] = model.detect(photos[i], TEXT, threshold=0)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(got, want):
        same(a, b)


def test_detect_loads_a_model_once(model, tmp_path, monkeypatch):
    model.save(tmp_path)
    photo = tiny.photo()
    want = model.detect(photo, TEXT, threshold=0)
    same(minigdino.detect(photo, TEXT, model=str(tmp_path), threshold=0), want)
    (tmp_path / "config.json").unlink()  # only the loaded model works from here on
    same(minigdino.detect(photo, TEXT, model=str(tmp_path), threshold=0), want)
    monkeypatch.setenv("MINIGDINO_MODEL", str(tmp_path))
    same(minigdino.detect(photo, TEXT, threshold=0), want)
    same(minigdino.detect(photo, TEXT, model=model, threshold=0), want)


def test_the_default_model_is_grounding_dino_tiny_from_the_hub(monkeypatch):
    monkeypatch.delenv("MINIGDINO_MODEL", raising=False)
    names = []
    monkeypatch.setattr(hub, "find", lambda name: names.append(name) or Path("nowhere"))
    with pytest.raises(minigdino.CheckpointError, match="no such file or directory"):
        minigdino.detect(tiny.photo(), TEXT)
    assert names == ["IDEA-Research/grounding-dino-tiny"]


def test_the_embedded_checkpoint_takes_precedence_over_a_folder_of_its_name(monkeypatch, tmp_path):
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert minigdino.load("shapes").config.model_type == "mm-grounding-dino"


def test_without_a_tokenizer_forward_works_and_detect_names_the_missing_files():
    bare = Model.random(tiny.config(), settings=tiny.SETTINGS)
    assert bare.forward(tiny.pixels(), tiny.IDS).logits.shape == (20, 8)
    with pytest.raises(minigdino.CheckpointError, match=r"needs tokenizer\.json or vocab\.txt; the model has neither"):
        bare.detect(tiny.photo(), TEXT)


def test_a_prompt_over_the_limit_is_rejected_with_its_length(model):
    with pytest.raises(minigdino.PromptError, match="at most 256 tokens for this model; got 304"):
        model.detect(tiny.photo(), "cat. " * 150 + "hat")


def test_an_image_with_fewer_tokens_than_queries_is_rejected(model):
    with pytest.raises(minigdino.ImageError, match="at least 20 image tokens, .* 32 x 8 pixels .* give 8"):
        model.forward(tiny.pixels(8, 32), tiny.IDS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.forward(tiny.pixels().astype(float), tiny.IDS), r"float32 \[3, H, W\].*got float64 \[3, 64, 80\]"),
        (lambda m: m.forward(tiny.pixels()[None], tiny.IDS), r"\[1, 3, 64, 80\]"),
        (lambda m: m.forward(tiny.pixels(), []), "1 to 256 ints"),
        (lambda m: m.forward(tiny.pixels(), [1.5]), "got float64"),
        (lambda m: m.forward(tiny.pixels(), [[1]]), "1 to 256 ints"),
        (lambda m: m.forward(tiny.pixels(), [-1]), r"0\.\.1099; got -1"),
        (lambda m: m.forward(tiny.pixels(), [1100]), r"0\.\.1099; got 1100"),
        (lambda m: m.forward(tiny.pixels(), tiny.IDS, selected=[1]), r"must be 20 indices .* in 0\.\.107; got int64"),
        (lambda m: m.forward(tiny.pixels(), tiny.IDS, selected=[108] * 20), r"selected must be .*; got 108\.\.108"),
        (lambda m: m.detect(tiny.photo(), TEXT, threshold=2), "threshold must be a number from 0 to 1; got 2"),
        (lambda m: m.detect(tiny.photo(), TEXT, text_threshold="x"), "text_threshold must be a number from 0 to 1"),
        (lambda m: m.detect(tiny.photo(), TEXT, threshold=float("nan")), "got nan"),
        (lambda m: m.detect(tiny.photo(), TEXT, size=3), r"size must be \(shortest, longest\)"),
        (lambda m: m.detect(tiny.photo(), TEXT, size=(0, 4)), r"got \(0, 4\)"),
    ],
)
def test_invalid_arguments_are_rejected(model, call, message):
    with pytest.raises(minigdino.ArgumentError, match=message):
        call(model)


def test_an_image_and_a_text_that_are_swapped_are_named(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(tiny.photo()).save("cat.png")
    (tmp_path / "cat").touch()
    for errors in ("raise", "return"):
        swapped = r"got the text 'cat\.png', .* the image 'a cat\.', .*Swap them"
        with pytest.raises(minigdino.ArgumentError, match=swapped):
            model.detect("a cat.", "cat.png", errors=errors)
    for image, text in [("void.png", "cat"), ("void.png", "a cat."), ("void.png", "cat\0."), ("http:/x", "cat.png")]:
        with pytest.raises(minigdino.ImageError):
            model.detect(image, text)
    model.detect("cat.png", "cat.png")  # a prompt, though an odd one


def test_every_error_is_a_minigdino_error_and_a_builtin_one():
    for kind in (minigdino.PromptError, minigdino.ImageError, minigdino.ArgumentError, minigdino.ConfigError):
        assert issubclass(kind, minigdino.Error)
        assert issubclass(kind, ValueError)
    assert issubclass(minigdino.CheckpointError, OSError)


def test_import_loads_no_large_package():
    code = (
        "import sys, minigdino\n"
        "heavy = {'torch', 'scipy', 'transformers', 'cupy', 'tokenizers', 'safetensors', 'huggingface_hub'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_info_lists_twins_version_and_threads():
    info = minigdino.info()
    assert set(info["twins"].values()) == {True}
    assert info["minigdino"] == minigdino.__version__
    assert info["threads"] >= 1


def test_a_path_never_means_the_embedded_checkpoint(tmp_path, monkeypatch):
    """Path("shapes") is a folder of that name, for both `load` and `detect`."""
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: minigdino.load(Path("shapes")),
        lambda: minigdino.detect(tiny.photo(), TEXT, model=Path("shapes")),
    ):
        with pytest.raises(minigdino.CheckpointError, match="shapes: no such file or directory"):
            call()
    with pytest.raises(minigdino.ArgumentError, match="a model must be a str or a path; got int"):
        minigdino.load(7)


def test_a_threshold_may_be_a_python_or_a_numpy_number(model):
    for value in (0.3, 0.25):
        counts = [len(model.detect(tiny.photo(), TEXT, threshold=kind(value))) for kind in (float, np.float64)]
        assert counts[0] == counts[1]
    with pytest.raises(minigdino.ArgumentError, match="rows of different lengths"):
        model.forward(tiny.pixels(), [[1], [2, 3]])


def test_a_tensor_with_nan_is_named():
    model = tiny.model()
    bad = {**model.tensors, "model.enc_output.bias": np.full(64, np.nan, np.float32)}
    with pytest.raises(minigdino.CheckpointError, match=r"tensor model\.enc_output\.bias holds NaN or infinity"):
        Model(bad, model.config, tokenizer=model.tokenizer, settings=model.settings).detect(tiny.photo(), TEXT)


def test_an_error_in_save_names_the_folder(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(minigdino.CheckpointError, match="the model cannot be written there"):
        model.save(tmp_path / "file")
