"""The page of a forward pass is complete, self-contained, and shows the arrays of that forward pass."""

import base64
import json
import math
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import minigdino
from minigdino import CheckpointError, cli
from minigdino.cli import main
from minigdino.image import ImageSettings
from minigdino.inspection.explain import CHAPTERS, FIGURES, TRAINING, captions, page
from minigdino.inspection.explain.encode import packed, pooled, principal_colours, spread
from minigdino.inspection.tree import home, place
from minigdino.network.boxes import sigmoid
from minigdino.network.swin import windows

pytestmark = pytest.mark.once

SCENE = Path(__file__).parent.parent / "docs" / "images" / "scene.jpg"
TEXT = "a purple star. a green heart. an orange ring."
TARGETS = [{"box": [166, 262, 289, 385], "label": "a green heart"}, {"box": [17, 177, 146, 311], "label": 0}]
ALL = (*FIGURES, *TRAINING.figures)


def unpacked(p):
    """Decode a packed array as tensor() of page.js does."""
    dtype = {8: "u1", 16: "<u2", 32: "<f4"}[p["bits"]]
    values = np.frombuffer(base64.b64decode(p["data"]), dtype)
    if p["bits"] == 32:
        return values.reshape(p["shape"])
    low, high = np.array(p["low"])[:, None], np.array(p["high"])[:, None]
    return (low + values.reshape(len(low), -1) / (2 ** p["bits"] - 1) * (high - low)).reshape(p["shape"])


def close(p, want):
    """Equal within half a quantisation step, plus the rounding of the bounds to seven digits."""
    got, want = unpacked(p), np.asarray(want, np.float64)
    assert got.shape == want.shape
    low, high = np.array(p["low"]), np.array(p["high"])
    limit = (high - low) / (2 ** p["bits"] - 1) / 2 + 1e-6 * np.maximum(abs(low), abs(high))
    assert (abs(got - want).reshape(len(low), -1) <= limit[:, None] + 1e-12).all()


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def shapes():
    return minigdino.load("shapes")


@pytest.fixture(scope="module")
def demo(shapes):
    """The page of the embedded checkpoint, with all figures."""
    return page(shapes, SCENE, TEXT, targets=TARGETS)


@pytest.fixture(scope="module")
def traced(shapes):
    """The steps of a forward pass with the same inputs."""
    shapes.clear()
    patterns = {pattern for figure in FIGURES for pattern in figure.steps}
    with minigdino.use("reference"), minigdino.trace(*patterns, "forward.0/return.*") as recorded:
        shapes.detect(SCENE, TEXT)
    return recorded


class Reader(HTMLParser):
    """Collects tags, ids, links and URLs that a browser would load."""

    def __init__(self):
        super().__init__()
        self.ids, self.tags, self.loads, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.append(attributes.get("id"))
        if tag == "a":
            self.links.append(attributes["href"])
        else:
            loading = ("src", "href", "srcset", "data", "action")
            self.loads += [value for name, value in attributes.items() if name in loading]


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def test_the_page_loads_no_other_file(demo):
    reader = read(demo)
    assert all(load.startswith("data:") for load in reader.loads)
    assert all(link.startswith(("#", "https://arxiv.org/abs/")) for link in reader.links)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\(|WebSocket|sendBeacon", demo)
    assert len(demo) < 10e6


def test_every_figure_is_present_in_order_and_linked(demo):
    reader = read(demo)
    slugs = [figure.slug for figure in ALL]
    assert len(set(slugs)) == len(slugs)
    assert [i for i in reader.ids if i in slugs] == slugs
    assert all(f"#{slug}" in reader.links for slug in slugs)
    assert list(data_of(demo)["figures"]) == slugs
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)


def test_every_figure_is_drawn_by_a_script():
    scripts = "".join(path.read_text() for path in Path(captions.__file__).parent.glob("*.js"))
    drawn = {a or b for a, b in re.findall(r'^draw(?:\.(\w+)|\["([\w-]+)"\]) = ', scripts, re.MULTILINE)}
    assert drawn == {figure.slug for figure in ALL}


@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.slug)
def test_a_caption_names_functions_lines_and_papers(figure, demo):
    caption = demo.partition(f'<figure id="{figure.slug}">')[2].partition("</figure>")[0]
    for name in figure.functions:
        assert f"<code>{name}</code>" in caption
        file, line = captions.where(name).split(":")
        assert f"{file}:{line}" in caption
        source = (Path(minigdino.__file__).parents[1] / file).read_text().splitlines()
        rest = "\n".join(source[int(line) - 1 :])
        assert re.match(rf"(@accelerated\(.*\)\n)?def {name.partition('.')[2]}\(", rest), name
    assert re.search(r"<span>[^<]*(§3\.\d|<a href=.https://arxiv)", caption)


@pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.slug)
def test_a_caption_names_the_shapes_of_the_steps(figure, demo, traced):
    caption = demo.partition(f'<figure id="{figure.slug}">')[2].partition("</figure>")[0]
    shapes = {" × ".join(map(str, array.shape)) for array in traced.values()}
    shown = re.findall(r"<span>(?:\[[^<]*\] = )?(\d+(?: × \d+)*)</span>", caption)
    assert shown
    assert set(shown) <= shapes


def test_letters_come_from_the_code():
    assert captions.letters(captions.code("fusion.attend_both_ways"), "to_text") == "[S, M, T]"
    assert captions.letters(captions.code("decoder.decoder"), "return.1") == "[N+1, Q, 4]"
    assert captions.letters(captions.code("queries.select_queries"), "return.scores") == "[S]"
    assert captions.letters(captions.code("swin.swin_block"), "return") == "[H, W, C]"
    assert captions.letters(captions.code("swin.patch_embedding"), "kernel") == ""


def arrows(x):
    """x [N, C], table [2*k, M] -> [N], sums [M]"""
    total = x.sum()  # [1]
    return total


def sections(x):
    """Google style.

    Args:
        x [N, C], table [2*k, M]: rows; biases.

    Returns:
        [N], [M]: results of [0, 1].
    """
    total = x.sum()  # [1]
    return total


def names(x):
    """Google style.

    Returns:
        dict: scores [N], selected [M].
    """
    return x


@pytest.mark.parametrize("function", [arrows, sections])
def test_letters_are_read_from_both_styles_of_docstrings(function):
    steps = ("x", "table", "total", "return", "return.0", "return.1", "return.2", "other")
    assert [captions.letters(function, step) for step in steps] == [
        "[N, C]", "[2*k, M]", "[1]", "[N]", "[N]", "[M]", "", ""]  # fmt: skip


def test_letters_of_a_named_result_are_read():
    assert captions.letters(names, "return.scores") == "[N]"
    assert captions.letters(names, "return.selected") == "[M]"
    assert captions.letters(names, "return") == ""


def test_a_caption_gives_the_place_in_the_papers(demo):
    for figure in ALL:
        caption = demo.partition(f'<figure id="{figure.slug}">')[2].partition("</figure>")[0]
        text = re.sub(r"</?a.*?>", "", caption)
        for name in figure.functions:
            assert f"<span>{place(*name.split('.'))}</span>" in text


def test_chapters_name_sections_of_the_paper():
    sections = {chapter.title: captions.section(chapter.module) for chapter in CHAPTERS}
    assert sections["Image backbone"] == "§3.1"
    assert sections["Query selection"] == "§3.2"
    assert sections["Cross-modality decoder"] == "§3.3"
    assert sections["Text"] == "§3.4"
    assert captions.section(TRAINING.module) == "§3.5"


def steps(traced, pattern):
    return [array for path, array in traced.items() if re.search(pattern, path)]


def test_heat_maps_are_the_attention_weights_of_the_fusion(demo, traced):
    data = data_of(demo)
    ends = np.cumsum([H * W for H, W in data["levels"]])
    for slug, name in (("token-looks", "to_vision"), ("pixel-reads", "to_text")):
        layers = steps(traced, f"attend_both_ways.0/{name}$")
        assert len(layers) == 2
        for i, weights in enumerate(layers):
            heads = np.stack([weights.mean(axis=1), *weights.swapaxes(0, 1)])  # [1 + M, S, T]
            for (H, W), end, p in zip(data["levels"], ends, data["figures"][slug]["maps"]):
                want = heads[:, end - H * W : end].swapaxes(1, 2).reshape(len(heads), -1, H, W)
                size = want.size
                part = {**p, "shape": list(want.shape), "low": p["low"][i * len(p["low"]) // 2 :][: len(p["low"]) // 2],
                        "high": p["high"][i * len(p["high"]) // 2 :][: len(p["high"]) // 2]}  # fmt: skip
                raw = base64.b64decode(p["data"])[i * size : (i + 1) * size]
                close({**part, "data": base64.b64encode(raw).decode()}, want)
    shares = unpacked(data["figures"]["token-looks"]["shares"])
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)


def test_sampling_points_are_those_of_deformable_attention(demo, traced):
    figures = data_of(demo)["figures"]
    sampling, query = figures["sampling"], figures["query-sampling"]
    cells = (np.array(sampling["rows"])[:, None] * sampling["grid"][1] + sampling["cols"]).ravel()
    for name in ("weights", "locations"):
        close(sampling[name], [x[cells] for x in steps(traced, f"enhancer.0/.*deform_attn.0/{name}$")])
        close(query[name], [x[query["queries"]] for x in steps(traced, f"decoder.0/.*deform_attn.0/{name}$")])
    assert len(cells) == np.prod(sampling["grid"])  # all tokens: the image is small


def test_window_weights_belong_to_their_pixels(demo, traced):
    """Compute the weights in another way: cut a map of token indices into windows, to find each token in them."""
    for block in data_of(demo)["figures"]["window-attention"]["blocks"]:
        (H, W), k, shift = block["map"], block["k"], block["shift"]
        padded = np.arange(-(-H // k) * k * -(-W // k) * k).reshape(-(-H // k) * k, -1, 1)
        cut = windows(np.roll(padded, (-shift, -shift), (0, 1)), k)[..., 0]  # [N, K]
        weights = steps(traced, rf"swin_block.{block['block']}/.*attend_in_windows.0/weights$")[0].mean(axis=1)
        found = {token: (n, i) for n, window in enumerate(cut) for i, token in enumerate(window)}
        want = [[weights[found[int(padded[r, c, 0])]] for c in block["cols"]] for r in block["rows"]]
        got = unpacked(block["weights"])[0]
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_masks_boxes_and_scores_are_those_of_the_forward_pass(demo, traced):
    figures = data_of(demo)["figures"]
    mask, positions = (traced[f"forward.0/phrase_mask.0/return.{i}"] for i in (0, 1))
    np.testing.assert_array_equal(unpacked(figures["phrase-mask"]["mask"]), mask)
    assert figures["phrase-mask"]["positions"] == positions.tolist()
    references, boxes = traced["forward.0/return.references"], traced["forward.0/return.boxes"]
    close(figures["refinement"]["boxes"], [*references, boxes])
    np.testing.assert_array_equal(
        unpacked(figures["token-scores"]["probabilities"]), sigmoid(traced["forward.0/return.logits"])
    )
    assert figures["selection"]["selected"] == traced["forward.0/return.selected"].tolist()
    close(figures["selection"]["scores"], traced["forward.0/return.selection_scores"])
    stage = figures["shift-mask"]["stages"][2]
    regions = steps(traced, rf"swin_block.{stage['block']}/.*shift_mask.0/regions$")[0][..., 0]
    np.testing.assert_array_equal(np.add.outer(stage["row_regions"], stage["column_regions"]), regions)
    mask = steps(traced, rf"swin_block.{stage['block']}/.*shift_mask.0/return$")[0]
    np.testing.assert_allclose(unpacked(stage["masks"])[-1], mask[-1], atol=1e-5)
    texts = [steps(traced, rf"/{kind}_layer.*/attention.0/attend.0/weights$") for kind in ("bert", "text_enhancer")]
    close(figures["text-attention"]["weights"], [w.mean(axis=0) for w in sum(texts, [])])
    chosen = figures["query-text"]["queries"]
    for slug, which in (("query-queries", 0), ("query-text", 1)):
        layers = steps(traced, rf"decoder_layer.\d+/attention.{which}/attend.0/weights$")
        close(figures[slug]["weights"], [w.mean(axis=0)[chosen] for w in layers])


def test_the_page_has_the_boxes_of_detect(demo, shapes):
    figures = data_of(demo)["figures"]
    found = shapes.detect(SCENE, TEXT)
    probabilities, boxes = unpacked(figures["token-scores"]["probabilities"]), unpacked(figures["result"]["boxes"])
    scores = probabilities.max(axis=1)
    order = np.argsort(-scores, kind="stable")
    kept = order[scores[order] > figures["token-scores"]["threshold"]]
    assert len(kept) == len(found) == 3
    np.testing.assert_allclose(boxes[kept], found.boxes, atol=0.01)  # twins against references


def test_matches_and_losses_are_those_of_the_model(demo, shapes):
    figure = data_of(demo)["figures"]["matching"]
    with minigdino.use("reference"):
        found = shapes.loss(SCENE, TEXT, *zip(*([*target.values()] for target in TARGETS)), details=True)
    assert figure["labels"] == [1, 0]
    queries, boxes = found.matches[""]
    assert figure["matches"] == {str(box): query for box, query in zip(boxes, queries)}
    total, *parts = unpacked(figure["costs"])
    rows = figure["queries"]
    assert set(queries) <= set(rows) and len(rows) == 12
    np.testing.assert_allclose(total, found.costs[""][rows], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sum(parts), total, rtol=1e-5, atol=1e-5)
    assert (np.diff(total.min(axis=1)) >= 0).all()
    terms = {name: value for name, value, _ in figure["terms"]}
    assert terms == pytest.approx({name: value for name, value in found.terms.items() if "enc" not in name}, rel=1e-5)
    assert figure["total"] == pytest.approx(sum(value * weight for _, value, weight in figure["terms"]), rel=1e-5)


def test_the_figure_of_the_losses_needs_targets(shapes):
    text = page(shapes, SCENE, TEXT)
    assert list(data_of(text)["figures"]) == [figure.slug for figure in FIGURES]
    assert "matching" not in read(text).ids


@pytest.mark.parametrize("n", [0, 1, 12, 13, 100])
def test_any_number_of_annotated_boxes_gives_a_figure(n):
    """Even more boxes than queries."""
    targets = [{"box": [i, 0, i + 2, 9], "label": i % 2} for i in range(n)]
    model = tiny.model(queries=20)
    figure = data_of(page(model, tiny.photo(16, 120), "cat. dog.", targets=targets))["figures"]["matching"]
    costs = unpacked(figure["costs"])
    assert costs.shape == (4, min(20, n and len(figure["queries"])), min(60, n))
    assert np.isfinite(costs).all()
    assert len(figure["boxes"]) == n
    assert len(figure["matches"]) == min(n, 20)
    assert {query for box, query in figure["matches"].items() if int(box) < 60} <= set(figure["queries"])


GEOMETRIES = {
    "four levels": dict(family="grounding-dino"),
    "five levels": dict(family="mm-grounding-dino", stages=(1, 2, 3, 4), levels=5),
    "one stage": dict(family="grounding-dino", stages=(4,), levels=3, queries=5),
}
PROMPTS = {(90, 120): " ".join(["man with hat."] * 60), (64, 400): "cat", (300, 70): ["st. bernard", "dog"]}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", PROMPTS)
def test_any_geometry_image_and_prompt_gives_a_page(geometry, size):
    prompt = PROMPTS[size]
    model = tiny.model(**GEOMETRIES[geometry])
    data = data_of(page(model, tiny.photo(*size), prompt))
    assert list(data["figures"]) == [figure.slug for figure in FIGURES]
    assert len(data["levels"]) == model.config.num_feature_levels
    packs = list(_packs(data))
    assert len(packs) > 20
    assert all(np.isfinite(unpacked(p)).all() for p in packs)


def _packs(value):
    if isinstance(value, dict) and "bits" in value:
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _packs(part)


@pytest.mark.slow
def test_a_large_image_and_a_long_prompt_stay_within_ten_megabytes():
    """The largest published geometry, except for few channels, which do not change the size of the page."""
    large = tiny.config(
        "mm-grounding-dino", stages=(1, 2, 3, 4), levels=5, queries=900, encoder_layers=6, decoder_layers=6
    )
    size = ImageSettings(size=(("longest_edge", 533), ("shortest_edge", 400)))
    model = minigdino.Model.random(large, tokenizer=tiny.tokenizer(), settings=size)
    text = page(model, tiny.photo(400, 533), " ".join(["man with hat."] * 63))
    data = data_of(text)
    assert len(data["tokens"]) == 254
    assert data["levels"][0] == [100, 134]
    assert len(text) < 10e6


def test_a_page_can_have_no_detections(shapes):
    blank = np.full((96, 128, 3), 128, np.uint8)
    assert len(shapes.detect(blank, "a red star.")) == 0
    data = data_of(page(shapes, blank, "a red star."))
    assert unpacked(data["figures"]["token-scores"]["probabilities"]).max() <= 0.25


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # the small vocabulary has no "<"
def test_markup_in_names_and_prompts_is_escaped(tmp_path):
    name = "<script>alert(1)&.png"
    Image.fromarray(tiny.photo()).save(tmp_path / name)
    text = page(tiny.model(), tmp_path / name, ["</script><script>alert(2)</script>", '"><img src=x onerror=alert(3)>'])
    assert read(text).tags.count("script") == 2
    assert "img" not in read(text).tags
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&amp;", "", text)
    assert data_of(text)["phrases"][0] == "</script><script>alert(2)</script>"


def test_the_same_input_gives_the_same_page(shapes, demo):
    shapes.detect(SCENE, TEXT)  # fills the cache; the page must have all steps nevertheless
    assert page(shapes, SCENE, TEXT, targets=TARGETS) == demo


def test_figures_name_functions_that_exist():
    for figure in ALL:
        assert figure.title
        assert figure.text.endswith(".")
        for name in figure.functions:
            assert captions.code(name).__module__ == home(name.partition(".")[0]).__name__


def test_the_command_writes_the_page(tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    start = time.perf_counter()
    assert main(["explain", str(SCENE), TEXT, "--model", "shapes", "--out", str(out)]) == 0
    assert time.perf_counter() - start < 30
    assert f"wrote {out}" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(("content", "options", "loaded"), [
    ("notes", [], False), ("notes", ["--overwrite"], True), (None, [], True)])
def test_the_command_replaces_only_a_page(demo, tmp_path, monkeypatch, capsys, content, options, loaded):
    """The model is loaded after that check."""
    def load(_):
        raise CheckpointError("loaded")

    monkeypatch.setattr(cli, "load", load)
    (tmp_path / "page.html").write_text(content or demo, encoding="utf-8")
    assert main(["explain", str(SCENE), TEXT, "--out", str(tmp_path / "page.html"), *options]) == 1
    message = "loaded" if loaded else "page.html exists, and is not marked as written by minigdino. Choose another name"
    assert message in capsys.readouterr().err
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == (content or demo)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.jpg", "a star."], "no such file"),
        ([str(SCENE), " "], "names nothing to look for"),
        ([str(SCENE), "a star.", "--out", "/dev/null/page.html"], "cannot write there"),
        ([str(SCENE), "a star.", "--model", "nowhere"], "no such file or directory"),
    ],
)
def test_errors_of_the_command_are_reported_without_a_page(arguments, complaint, capsys, tmp_path):
    rest = [] if "--out" in arguments else ["--out", str(tmp_path / "page.html")]
    rest += [] if "--model" in arguments else ["--model", "shapes"]
    assert main(["explain", *arguments, *rest]) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_command_shows_the_losses_of_targets(tmp_path, demo):
    (tmp_path / "targets.json").write_text(json.dumps(TARGETS))
    out = tmp_path / "page.html"
    assert main(["explain", str(SCENE), TEXT, "--model", "shapes", "--out", str(out), "--targets",
                 str(tmp_path / "targets.json")]) == 0
    assert data_of(out.read_text(encoding="utf-8"))["figures"] == data_of(demo)["figures"]


def test_the_targets_of_the_command_can_be_a_coco_file(tmp_path, demo):
    """With other images in it, and labels by the names of categories."""
    boxes = [np.array(target["box"]) for target in TARGETS]
    (tmp_path / "data.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "other.jpg"},
                   {"id": 2, "file_name": SCENE.name, "width": 640, "height": 512}],
        "categories": [{"id": 5, "name": "a purple star"}, {"id": 3, "name": "a green heart"}],
        "annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}] + [
            {"image_id": 2, "category_id": category, "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]}
            for category, box in zip((3, 5), boxes)]}))
    out = tmp_path / "page.html"
    arguments = ["explain", str(SCENE), TEXT, "--model", "shapes", "--out", str(out), "--targets"]
    assert main([*arguments, str(tmp_path / "data.json")]) == 0
    assert data_of(out.read_text(encoding="utf-8"))["figures"] == data_of(demo)["figures"]


BOX = [17, 177, 146, 311]


@pytest.mark.parametrize(("content", "complaint"), [
    (None, "targets.json: expected a JSON file such as [{\"box\": "),
    ("[", "targets.json: expected a JSON file such as"),
    ('[{"box": 1, "box": 2}]', "repeats the key"),
    ({"box": BOX, "label": "a purple star"}, "targets must be a list such as"),
    ({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "a purple star"}],
      "annotations": []}, 'targets.json: expected one entry in "images" for'),
    ({"images": []}, "targets.json: expected at least one image; got none"),
    ([{"box": BOX, "label": "a purple star"}, {"bbox": BOX, "label": "a purple star"}], "targets[1] is"),
    ([BOX], "targets[0] is [17, 177, 146, 311]"),
    ([{"box": BOX, "label": "a dog"}], "labels must be phrases of the prompt or their indices, 0 to 2; got 'a dog'"),
    ([{"box": BOX[::-1], "label": "a purple star"}], "with an area inside the image of 640 x 512; boxes[0] is"),
    ([{"box": [700, 10, 800, 20], "label": 1}], "with an area inside the image"),
    ([{"box": [1, 2, 3], "label": 1}], "boxes must be an array [N, 4]"),
    ([{"box": [1, 2, "3", 4], "label": 1}], "boxes must be an array [N, 4]"),
    ([{"box": [1, 2, float("nan"), 4], "label": 1}], "finite numbers"),
])  # fmt: skip
def test_bad_targets_are_refused_before_the_forward_pass(content, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(minigdino.Model, "detect", None)
    path = tmp_path / "targets.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["explain", str(SCENE), TEXT, "--model", "shapes", "--out", str(tmp_path / "page.html"), "--targets",
                 str(path)]) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_targets_need_scipy(monkeypatch, shapes):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(minigdino.ArgumentError, match="targets needs the package scipy.* pip install"):
        page(shapes, SCENE, TEXT, targets=TARGETS)


def test_a_page_does_not_replace_its_targets(tmp_path, capsys):
    path = tmp_path / "targets.json"
    path.write_text(json.dumps(TARGETS))
    assert main(["explain", str(SCENE), TEXT, "--overwrite", "--out", str(path), "--targets", str(path)]) == 1
    assert "expected different files for --targets and --out" in capsys.readouterr().err
    assert json.loads(path.read_text()) == TARGETS


floats = st.floats(-1e6, 1e6, width=32)
float_arrays = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=floats)


@given(float_arrays, st.sampled_from([8, 16]), st.integers(0, 2))
def test_packing_loses_at_most_half_a_step(array, bits, per):
    close(packed(array, bits, per), array)
    np.testing.assert_array_equal(unpacked(packed(array, 32)), array)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2000), st.integers(0, 5))
def test_pooled_cells_are_means_of_blocks(H, W, max_cells, seed):
    x = np.random.default_rng(seed).random((H, W, 2))
    small = pooled(x, max_cells)
    side = math.ceil(math.sqrt(H * W / max_cells))  # 1 if the limit allows every pixel
    np.testing.assert_allclose(small[0, 0], x[:side, :side].mean(axis=(0, 1)))
    rows, cols = (np.minimum(side, n - side * np.arange(m)) for n, m in zip((H, W), small.shape))
    np.testing.assert_allclose(np.einsum("rcx,r,c->x", small, rows, cols) / (H * W), x.mean(axis=(0, 1)))


@given(st.integers(1, 500), st.integers(1, 500))
def test_spread_indices_rise_from_first_to_last(n, limit):
    indices = spread(n, limit)
    assert len(indices) == min(n, limit)
    assert (np.diff(indices) > 0).all()
    assert indices[0] == 0
    assert indices[-1] == n - 1 or limit == 1


def test_similar_vectors_have_similar_colours():
    x = np.zeros((4, 4, 16), np.float32)
    x[:2] = 1
    x[0, 0] = np.arange(16)
    colours = principal_colours(x).astype(int)
    assert (colours[3] == colours[2, 0]).all()
    assert abs(colours[3, 0] - colours[1, 1]).max() < abs(colours[0, 0] - colours[1, 1]).max()
    assert principal_colours(np.ones((1, 1, 16), np.float32)).shape == (1, 1, 3)


def test_with_a_guide_every_caption_links_to_source_lines_and_terms(shapes):
    text = page(shapes, SCENE, TEXT, guide="../site/", targets=TARGETS)
    for figure in ALL:
        assert f'href="../site/rosetta.html#{figure.slug}"' in text
        for name in figure.functions:
            file, line = captions.where(name).split(":")
            assert f'href="../site/source/{file.rpartition("/")[2]}.html#__codelineno-0-{line}"' in text
    assert "rosetta.html" not in page(shapes, SCENE, TEXT)
