"""The page in a browser: figures, controls, messages, requests and layout."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import minigdino
from minigdino.inspection.explain import FIGURES, TRAINING, page

SCENE = Path(__file__).parents[2] / "docs" / "images" / "scene.jpg"
TEXT = "a purple star. a green heart. an orange ring."
TARGETS = [{"box": [166, 262, 289, 385], "label": "a green heart"}, {"box": [17, 177, 146, 311], "label": 0}]
STAR, HEART, RING = 3, 7, 11  # indices of these tokens in the prompt

SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push(entry.value);
}).observe({type: "layout-shift", buffered: true});
"""


@pytest.fixture(scope="module")
def model():
    return minigdino.load("shapes")


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """Path of the page of the embedded checkpoint."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(model, SCENE, TEXT, targets=TARGETS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def traced(model):
    model.clear()
    patterns = ("*/attend_both_ways.0/to_*", "*/deform_attn.0/weights")
    with minigdino.use("reference"), minigdino.trace(*patterns) as recorded:
        model.detect(SCENE, TEXT)
    return recorded


@pytest.fixture
def opened(chromium):
    """open(path, **options) -> a loaded tab; `messages`: from console and errors, `requests`: URLs"""
    contexts = []

    def open_page(path, width=1280, height=900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.messages, tab.requests = [], []
        tab.on("console", lambda message: tab.messages.append(message.text))
        tab.on("pageerror", lambda error: tab.messages.append(str(error)))
        tab.on("dialog", lambda dialog: (tab.messages.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.add_init_script(SHIFTS)
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=20_000)
        return tab

    yield open_page
    for context in contexts:
        context.close()


def pixels(tab, slug, index=0):
    """Return the pixels of a canvas of a figure: [H, W, 4]"""
    canvas = tab.locator(f"#{slug} canvas:not(.legend canvas)").nth(index)
    data = canvas.evaluate("(canvas) => canvas.toDataURL()").partition(",")[2]
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def slide(tab, slug, value, index=0):
    tab.locator(f"#{slug} input[type=range]").nth(index).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )


def choose(tab, slug, group, index):
    tab.locator(f"#{slug} fieldset", has_text=group).locator("label").nth(index).click()


def brightest(picture, rows, cols):
    """Return the (row, column) of a heat map whose cell is nearest to the bright end of the colour ramp."""
    H, W, _ = picture.shape
    down, across = ((2 * np.arange(n) + 1) * size // (2 * n) for n, size in ((rows, H), (cols, W)))
    middle = picture[np.ix_(down, across)].astype(int)
    return np.unravel_index(abs(middle[..., :3] - (253, 231, 37)).sum(axis=-1).argmin(), (rows, cols))


def test_every_picture_is_drawn_without_messages(opened, file):
    tab = opened(file)
    assert tab.messages == []
    for figure in (*FIGURES, *TRAINING.figures):
        drawing = tab.locator(f"#{figure.slug} .drawing")
        pictures = drawing.locator("canvas, img")
        n_bars = drawing.locator(".bars dd").count()
        assert pictures.count() + n_bars > 0, figure.slug
        empty = pictures.evaluate_all("""(all) => all.filter((p) => p.tagName === "IMG" ? !p.naturalWidth :
            new Set(new Uint32Array(p.getContext("2d").getImageData(0, 0, p.width, p.height).data.buffer)).size < 2)
            .map((p) => p.outerHTML.slice(0, 80))""")
        assert empty == [], figure.slug
    unnamed = tab.evaluate("""() => [...document.querySelectorAll("img, canvas")].filter((p) =>
        !p.alt && !p.ariaLabel && p.ariaHidden !== "true").length""")
    assert unnamed == 0


def test_it_requests_no_other_file(opened, file):
    tab = opened(file)
    assert [url for url in tab.requests if not url.startswith("data:")] == [file.as_uri()]


def test_the_layout_does_not_shift_while_it_loads(opened, file):
    tab = opened(file)
    tab.wait_for_timeout(300)
    assert sum(tab.evaluate("window.shifts")) < 0.01


@pytest.mark.parametrize("token", [STAR, HEART, RING])
def test_layer_and_token_choose_the_heat_map(opened, file, traced, token):
    """The brightest cell of the finest level is at the maximum of the traced weights."""
    tab = opened(file)
    maps = [array.mean(axis=1) for path, array in traced.items() if path.endswith("/to_vision")]
    pictures, compared = [], 0
    choose(tab, "token-looks", "Token", token)
    for layer, weights in enumerate(maps):
        slide(tab, "token-looks", layer)
        finest = weights[:320, token]
        picture = pixels(tab, "token-looks")
        if finest.max() == weights[:, token].max():  # otherwise the maximum is on another level
            assert brightest(picture, 16, 20) == np.unravel_index(finest.argmax(), (16, 20))
            compared += 1
        pictures.append(picture)
        share = tab.locator("#token-looks .cell p").first.text_content()
        assert f"{100 * finest.sum():.0f} %" in share
    assert compared
    assert (pictures[0] != pictures[1]).any()


def test_a_single_head_changes_the_picture(opened, file):
    tab = opened(file)
    mean = pixels(tab, "token-looks")
    choose(tab, "token-looks", "Head", 2)
    assert (pixels(tab, "token-looks") != mean).any()


def test_a_picked_token_shows_its_attention_weights(opened, file, traced):
    tab = opened(file)
    last = [array for path, array in traced.items() if path.endswith("/to_text")][-1].mean(axis=1)
    canvas = tab.locator("#pixel-reads canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    before = pixels(tab, "pixel-reads")
    for row, col in ((2, 5), (13, 17)):
        canvas.click(position={"x": (col + 0.5) * box["width"] / 20, "y": (row + 0.5) * box["height"] / 16})
        assert f"row {row + 1}, column {col + 1}" in tab.locator("#pixel-reads .readout").text_content()
        _check_bars(tab, last[row * 20 + col])
    assert (pixels(tab, "pixel-reads") != before).any()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowDown")
    assert "row 15, column 17" in tab.locator("#pixel-reads .readout").text_content()
    _check_bars(tab, last[14 * 20 + 16])


def _check_bars(tab, weights):
    shown = tab.locator("#pixel-reads .bars dd:nth-child(3n)").all_text_contents()
    got = np.array([float(text.split()[0]) for text in shown])
    np.testing.assert_allclose(got, 100 * weights, atol=0.8)


def test_a_picked_token_shows_its_sampling_points(opened, file, traced):
    tab = opened(file)
    layers = [array for path, array in traced.items() if "enhancer.0/" in path and path.endswith("/weights")]
    canvas = tab.locator("#sampling canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    pictures = []
    for row, col, layer in ((4, 3, 0), (4, 3, 1), (12, 15, 1)):
        slide(tab, "sampling", layer)
        canvas.click(position={"x": (col + 0.5) * box["width"] / 20, "y": (row + 0.5) * box["height"] / 16})
        pictures.append(pixels(tab, "sampling"))
        shares = layers[layer][row * 20 + col].mean(axis=0).sum(axis=1)  # [L]
        shown = tab.locator("#sampling .keys span").all_text_contents()[:4]
        got = [float(text.partition(": ")[2].split()[0]) for text in shown]
        np.testing.assert_allclose(got, 100 * shares, atol=1)
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()


def test_windows_shift_and_masks_follow_the_picked_window(opened, file):
    tab = opened(file)
    plain = pixels(tab, "windows")
    choose(tab, "windows", "Blocks", 1)
    assert (pixels(tab, "windows") != plain).any()
    assert "shifted by 2" in tab.locator("#windows .readout").text_content()
    readout = tab.locator("#shift-mask .readout")
    assert "4 regions" in readout.text_content()
    canvas = tab.locator("#shift-mask canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.click(position={"x": 5, "y": 5})
    assert "one region" in readout.text_content()


def test_boxes_change_from_layer_to_layer(opened, file, model):
    tab = opened(file)
    last = pixels(tab, "refinement")
    slide(tab, "refinement", 0)
    first = pixels(tab, "refinement")
    assert (first != last).any()
    best = model.detect(SCENE, TEXT)[0]
    H, W, _ = last.shape
    x, y = best.box[0] / 640 * W, (best.box[1] + best.box[3]) / 2 / 512 * H  # centre of its left edge
    assert abs(last[int(y), int(x), :3].astype(int) - (0x00, 0x9E, 0x73)).max() < 60  # the third phrase's colour


@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5, 0.6])
def test_thresholds_select_the_detections_of_detect(opened, file, model, threshold):
    tab = opened(file)
    slide(tab, "token-scores", threshold)
    found = model.detect(SCENE, TEXT, threshold=threshold)
    rows = tab.locator("#result table tr").all()[1:]
    got = [row.locator("td").all_text_contents() for row in rows]
    assert [row[0] for row in got] == found.labels
    assert [row[1] for row in got] == [f"{score:.2f}" for score in found.scores]
    corners = [[float(v) for v in row[2].split(", ")] for row in got]
    np.testing.assert_allclose(corners, found.boxes, atol=0.51)
    assert [row[3] for row in got] == [phrase or "none" for phrase in found.phrases]
    assert f"{len(found)} of 20 boxes" in tab.locator("#token-scores .readout").text_content()


def test_the_page_states_that_no_box_is_above_the_threshold(opened, file):
    tab = opened(file)
    slide(tab, "result", 1)
    assert "no box has a score above" in tab.locator("#result table").text_content()
    assert "0 of 20 boxes" in tab.locator("#token-scores .readout").text_content()  # shared sliders
    assert tab.messages == []


def test_the_chosen_query_is_the_same_in_every_decoder_figure(opened, file):
    tab = opened(file)
    slugs = ("query-queries", "query-text", "query-sampling")
    before = [tab.locator(f"#{slug} .drawing").screenshot() for slug in slugs]
    choose(tab, "query-queries", "Query", 1)
    for slug, old in zip(slugs, before):
        assert tab.locator(f"#{slug} :checked").last.evaluate("(i) => i.parentNode.textContent") == "a purple star 0.59"
        assert tab.locator(f"#{slug} .drawing").screenshot() != old


def test_the_matrix_shows_each_cost_and_the_losses(opened, file, model):
    tab = opened(file)
    with minigdino.use("reference"):
        found = model.loss(SCENE, TEXT, *zip(*([*target.values()] for target in TARGETS)), details=True)
    rows = [row.locator("td").all_text_contents() for row in tab.locator("#matching table tr").all()[1:]]
    assert {name: float(value) for name, value, *_ in rows[:-1]} == pytest.approx(
        {name: value for name, value in found.terms.items() if "enc" not in name}, abs=6e-4)
    assert float(rows[-1][3]) == pytest.approx(sum(float(row[3]) for row in rows[:-1]), abs=2e-3)
    assert "12 of 20 queries, 2 of 2 boxes" in tab.locator("#matching .readout").text_content()
    whole = pixels(tab, "matching", 1)
    choose(tab, "matching", "Cost", 2)
    assert (pixels(tab, "matching", 1) != whole).any()


@pytest.mark.parametrize(("n", "shown"), [(0, "no annotated boxes"), (13, "13 of 13 boxes")])
def test_few_and_many_annotated_boxes_are_drawn_without_messages(opened, tmp_path, n, shown):
    path = tmp_path / "page.html"
    targets = [{"box": [8 * i, 0, 8 * i + 6, 50], "label": i % 2} for i in range(n)]
    path.write_text(page(tiny.model(), tiny.photo(64, 120), "cat. dog.", targets=targets), encoding="utf-8")
    tab = opened(path, width=360)
    assert tab.messages == []
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert shown in tab.locator("#matching .readout").text_content()


def test_the_keyboard_reaches_every_control(opened, file):
    tab = opened(file)
    chip = tab.locator("#token-looks fieldset", has_text="Token").locator("input").nth(STAR)
    chip.focus()
    before = pixels(tab, "token-looks")
    tab.keyboard.press("ArrowRight")
    assert (pixels(tab, "token-looks") != before).any()
    unnamed = tab.evaluate("""() => [...document.querySelectorAll("input")].filter((i) => !i.labels.length).length""")
    assert unnamed == 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened, file, width):
    tab = opened(file, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_figures_are_redrawn_for_light_and_dark_schemes(opened, file):
    tab = opened(file, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert min(tab.evaluate(ground)) > 230
    light = pixels(tab, "phrase-mask")
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_timeout(300)
    assert max(tab.evaluate(ground)) < 50
    dark = pixels(tab, "phrase-mask")
    assert (light != dark).any()
    names = dark[:, :60][dark[:, :60, 3] > 200]  # the names of the rows, redrawn for the dark scheme
    assert names[:, :3].mean() > 150


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # the small vocabulary has no "<"
@pytest.mark.parametrize(
    ("geometry", "prompt"),
    [
        (dict(family="mm-grounding-dino", stages=(1, 2, 3, 4), levels=5), "a cat. dog."),
        (dict(family="grounding-dino"), " ".join(["man with hat."] * 60)),
        (dict(family="grounding-dino", stages=(4,), levels=3, queries=5), ["<img src=x onerror=alert(1)>", "cat"]),
    ],
)
def test_other_models_and_prompts_are_drawn_without_messages(opened, tmp_path, geometry, prompt):
    path = tmp_path / "page.html"
    path.write_text(page(tiny.model(**geometry), tiny.photo(64, 120), prompt), encoding="utf-8")
    tab = opened(path, width=360)
    tab.wait_for_timeout(100)
    assert tab.messages == []
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    for slug in ("token-looks", "sampling", "query-sampling", "result"):
        assert len(np.unique(pixels(tab, slug).reshape(-1, 4), axis=0)) > 10
