"""The page of `minigdino serve` in a browser: pictures, phrases, thresholds, boxes and rows."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_page import (
    PHRASES,
    SCENE,
    add,
    answer,
    choose,
    detections,
    encoded,
    example,
    expected,
    plain,
    problem,
    refuse,
    slide,
    until,
)

import minigdino
from minigdino.drawing import colour
from minigdino.image import open_image


def posts(tab):
    return sum(method == "POST" for method, _ in tab.requests)


def chips(tab):
    return tab.locator("#chips span").all_text_contents()


def pixels(tab):
    """Return the canvas over the picture: [H, W, 4]"""
    data = tab.evaluate("document.getElementById('boxes').toDataURL().split(',')[1]")
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def test_the_example_shows_the_detections_of_detect(visit, model):
    tab = example(visit())
    assert detections(tab) == expected(model.detect(SCENE, PHRASES))
    assert chips(tab) == PHRASES
    assert "3 of" in tab.locator("#count").text_content()
    assert "640 × 512" in tab.locator("#file").text_content()
    assert tab.messages == []


def test_the_example_is_the_scene_of_the_documentation():
    page = Path(minigdino.__file__).parent / "serving" / "page"
    assert (page / "example.jpg").read_bytes() == SCENE.read_bytes()


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 0.95])
def test_the_threshold_selects_boxes_without_a_request(visit, model, threshold):
    tab = example(visit())
    slide(tab.locator("#threshold"), threshold)
    assert detections(tab) == expected(model.detect(SCENE, PHRASES, threshold=threshold))
    assert tab.locator("#threshold-value").text_content() == f"{threshold:.2f}"
    assert posts(tab) == 1


def test_each_phrase_has_a_threshold_of_its_own(visit, model):
    tab = example(visit())
    tab.click("#each summary")
    sliders = tab.locator("#thresholds input")
    for i, value in enumerate((0.7, 0.05, 0.5)):
        slide(sliders.nth(i), value)
    found = model.detect(SCENE, PHRASES, threshold=dict(zip(PHRASES, (0.7, 0.05, 0.5))))
    assert detections(tab) == expected(found)
    assert posts(tab) == 1
    slide(tab.locator("#threshold"), 0.4)  # sets all of them
    assert [slider.input_value() for slider in sliders.all()] == ["0.4"] * 3
    assert detections(tab) == expected(model.detect(SCENE, PHRASES, threshold=0.4))


def test_phrases_keep_their_thresholds_on_another_picture(visit, model):
    tab = example(visit())
    slide(tab.locator("#thresholds input").nth(1), 0.95)
    choose(tab, encoded(Image.open(SCENE)))
    until(tab, "document.getElementById('file').textContent.startsWith('picture.png')")
    tab.wait_for_selector("#rows tr")
    assert detections(tab) == expected(model.detect(SCENE, PHRASES, threshold=dict(zip(PHRASES, (0.25, 0.95, 0.25)))))


def test_an_empty_result_names_the_best_score(visit, model):
    tab = example(visit())
    slide(tab.locator("#threshold"), 0.95)
    best = model.detect(SCENE, PHRASES)[0].score
    assert tab.locator("#count").text_content() == f"No box above the threshold; the best score is {best:.2f}"


# phrases


def test_phrases_are_added_and_removed_by_keys(visit):
    tab = visit()
    field = tab.locator("#phrase")
    field.press_sequentially("a  cat,a Dog.")
    field.press_sequentially("red star")
    field.press("Enter")
    assert chips(tab) == ["a cat", "a Dog", "red star"]
    field.press_sequentially("A CAT,")  # there already
    assert chips(tab) == ["a cat", "a Dog", "red star"]
    field.press("Backspace")
    assert chips(tab) == ["a cat", "a Dog"]
    tab.keyboard.insert_text("xy, z")
    assert chips(tab) == ["a cat", "a Dog", "xy"]
    assert field.input_value() == "z"  # may go on
    field.press("Backspace")
    field.press("Backspace")
    field.press_sequentially("xy")
    field.press("Backspace")  # removes a letter only
    assert chips(tab) == ["a cat", "a Dog"]
    tab.click("[aria-label='Remove a cat']")
    assert chips(tab) == ["a Dog"]
    assert tab.evaluate("document.activeElement.id") == "phrase"
    assert tab.messages == []


@pytest.mark.parametrize("text", ["a cat\na dog\r\na red star\nA cat", "a cat. a dog; a red star, A Cat."])
def test_a_pasted_list_becomes_phrases(visit, text):
    tab = visit()
    tab.locator("#phrase").focus()
    tab.evaluate("""(text) => {
        const data = new DataTransfer();
        data.setData("text/plain", text);
        const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
        if (document.activeElement.dispatchEvent(event)) document.execCommand("insertText", false, text);
    }""", text)  # fmt: skip
    assert chips(tab) == ["a cat", "a dog", "a red star"]


def test_a_new_phrase_starts_a_request_with_all_of_them(visit, model):
    tab = example(visit())
    tab.locator("#phrase").press_sequentially("a red star,")
    until(tab, "document.getElementById('rows').textContent.includes('a red star')")
    assert detections(tab) == expected(model.detect(SCENE, [*PHRASES, "a red star"]))
    assert posts(tab) == 2


def test_detect_adds_the_text_that_is_still_in_the_field(visit):
    tab = visit()
    choose(tab, SCENE.read_bytes(), "scene.jpg", "image/jpeg")
    tab.fill("#phrase", "a red star")
    tab.click("#detect")
    tab.wait_for_selector("#rows tr")
    assert chips(tab) == ["a red star"]
    tab.wait_for_timeout(500)  # the added phrase starts no second request
    assert posts(tab) == 1


def test_markup_in_a_phrase_is_text(visit):
    tab = example(visit())
    add(tab, "<img src=x onerror=alert(1)>")
    assert chips(tab)[-1] == "<img src=x onerror=alert(1)>"
    assert tab.locator("#chips img").count() == 0


# pictures


GIVE = """([name, type, base64, how]) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type}));
    const common = {bubbles: true, cancelable: true};
    const event = how === "paste" ? new ClipboardEvent("paste", {...common, clipboardData: data})
        : new DragEvent("drop", {...common, dataTransfer: data});
    document.body.dispatchEvent(event);
}"""


def give(tab, how, data, name="given.jpg", kind="image/jpeg"):
    tab.evaluate(GIVE, [name, kind, base64.b64encode(data).decode(), how])


@pytest.mark.parametrize("how", ["choose", "capture", "paste", "drop"])
def test_a_picture_is_chosen_photographed_pasted_or_dropped(visit, model, how):
    tab = visit()
    add(tab, "a red star")
    if how in ("paste", "drop"):
        give(tab, how, SCENE.read_bytes())
    else:
        tab.set_input_files(f"#{how}", SCENE)
    tab.wait_for_selector("#rows tr")
    assert detections(tab) == expected(model.detect(SCENE, ["a red star"]))
    assert tab.locator("#capture").get_attribute("capture") == "environment"


def test_other_files_and_damaged_pictures_are_named(visit):
    tab = visit()
    give(tab, "drop", b"%PDF", "paper.pdf", "application/pdf")
    assert "Only picture files" in problem(tab)
    give(tab, "drop", b"no picture", "broken.png", "image/png")
    until(tab, "document.getElementById('problem').textContent.includes('broken.png')")
    assert posts(tab) == 0
    example(tab)
    assert tab.locator("#message").is_hidden()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_lie_on_the_upright_picture(visit, model, tmp_path, orientation):
    """The picture, its size, the boxes of the server and the saved picture have one orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.open(SCENE).save(path, exif=exif, quality=95)
    tab = visit()
    add(tab, "a red star")
    tab.set_input_files("#choose", path)
    until(tab, "!document.getElementById('results').hidden")
    slide(tab.locator("#threshold"), 0.05)
    found = model.detect(path, ["a red star"], threshold=0.05)
    assert len(found) and detections(tab) == expected(found)
    width, height = found.image_size
    assert f"{width} × {height}" in tab.locator("#file").text_content()
    saved = download(tab)
    assert saved.size == (width, height)
    upright = np.array(open_image(path)).astype(int)
    outside = np.ones((height, width), bool)
    for left, top, right, bottom in found.clip().boxes:
        outside[max(0, int(top) - 40) : int(bottom) + 40, max(0, int(left) - 40) : int(right) + 140] = False
    assert outside.any()
    assert abs(np.array(saved).astype(int) - upright)[outside].mean() < 4  # of a JPEG file


def download(tab):
    with tab.expect_download() as info:
        tab.click("#save")
    with Image.open(info.value.path()) as image:
        image.load()
    tab.saved = info.value.suggested_filename
    return image.convert("RGB")


SLOW_AT_FIRST = """
const {decode} = HTMLImageElement.prototype;
let calls = 0;
HTMLImageElement.prototype.decode = async function() {
    if (!calls++) await new Promise((resolve) => setTimeout(resolve, 400));
    return decode.call(this);
};
"""


def test_the_last_of_two_pictures_is_shown(visit):
    tab = visit(init=SLOW_AT_FIRST)
    choose(tab, encoded(plain(300, 200)), "slow.png")
    choose(tab, encoded(plain(200, 300)), "quick.png")
    tab.wait_for_timeout(700)
    assert tab.locator("#file").text_content() == "quick.png, 200 × 300"


def test_a_picture_that_replaces_another_gets_its_own_boxes(visit):
    tab = example(visit())
    choose(tab, encoded(plain(300, 200)), "plain.png")
    until(tab, "document.getElementById('file').textContent.startsWith('plain.png')")
    until(tab, "document.getElementById('count').textContent && !document.getElementById('results').hidden")
    assert posts(tab) == 2
    assert detections(tab) == []


# drawing


def test_colours_are_those_of_plot(visit):
    got = visit().evaluate("""async () => {
        const {colour} = await import("/static/drawing.js");
        return Array.from({length: 300}, (_, i) => colour(i).match(/\\d+/g).map(Number));
    }""")
    assert [tuple(rgb) for rgb in got] == [colour(i) for i in range(300)]


@pytest.mark.parametrize(("width", "height", "scale"), [(1280, 800, 1), (1280, 600, 1.5), (390, 844, 3)])
def test_frames_are_drawn_at_the_boxes(visit, model, width, height, scale):
    tab = example(visit(width=width, height=height, device_scale_factor=scale))
    canvas = pixels(tab)
    H, W, _ = canvas.shape
    factor = min(W / 640, H / 512)
    left, top = (W - 640 * factor) / 2, (H - 512 * factor) / 2
    for d in model.detect(SCENE, PHRASES):
        x, y = left + d.box[0] * factor, top + (d.box[1] + d.box[3]) / 2 * factor  # centre of its left edge
        assert tuple(canvas[round(y), round(x)]) == (*colour(d.label_id), 255)
        assert canvas[round(y), round(x + 8 * scale), 3] == 0


PAINTED = """async ([found, chosen]) => {
    const {paint} = await import("/static/drawing.js");
    const tags = [];
    const context = {measureText: (text) => ({width: 7 * text.length}), strokeRect() {}, fillText() {},
                     fillRect: (...rectangle) => tags.push(rectangle)};
    const area = {left: 20, top: 30, width: 320, height: 256};
    paint(context, found, {area, scale: 0.5, unit: 1, chosen: found[chosen] ?? null});
    return tags;
}"""
SIDE = st.floats(-50, 700, allow_subnormal=False)


def test_tags_lie_in_the_picture_and_never_overlap(visit):
    tab = visit()

    @given(boxes=st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), min_size=1, max_size=30), label=st.text(max_size=90))
    @settings(max_examples=60)
    def check(boxes, label):
        found = [{"box": [*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])], "label": label, "score": 0.5,
                  "label_id": i} for i, box in enumerate(boxes)]  # fmt: skip
        tags = np.array(tab.evaluate(PAINTED, [found, None]))
        tags[:, 2:] += tags[:, :2]
        left, top, right, bottom = tags.T
        assert (left >= 20).all() and (top >= 30).all() and (right <= 340).all() and (bottom <= 286).all()
        gaps = np.maximum(tags[:, None, :2], tags[None, :, :2]) >= np.minimum(tags[:, None, 2:], tags[None, :, 2:])
        assert (gaps.any(axis=2) | np.eye(len(tags), dtype=bool)).all()
        assert len(tab.evaluate(PAINTED, [found, len(found) - 1])) == 1  # the chosen box has one, the others have none

    check()


def test_the_pointer_chooses_the_smallest_box(visit):
    boxes = [[0, 0, 90, 90], [10, 10, 20, 20], [5, 5, 80, 80]]
    got = visit().evaluate("""async (boxes) => {
        const {boxAt} = await import("/static/drawing.js");
        const found = boxes.map((box) => ({box}));
        return [[15, 15], [25, 15], [85, 85], [95, 1]].map(([x, y]) => found.indexOf(boxAt(found, x, y)));
    }""", boxes)  # fmt: skip
    assert got == [1, 2, 0, -1]


def test_the_saved_picture_has_the_boxes(visit, model):
    tab = example(visit())
    saved = np.array(download(tab)).astype(int)
    assert tab.saved == "example-boxes.jpg"
    for d in model.detect(SCENE, PHRASES):
        x, y = round(d.box[0]), round((d.box[1] + d.box[3]) / 2)
        assert abs(saved[y, x - 1 : x + 2] - colour(d.label_id)).sum(axis=1).min() < 60
    choose(tab, encoded(plain(64, 64)))
    until(tab, "document.getElementById('count').textContent.startsWith('No')")
    assert np.unique(np.array(download(tab)).reshape(-1, 3), axis=0).tolist() == [[0, 0, 128]]
    assert tab.saved == "picture-boxes.png"


def test_rows_and_boxes_are_linked(visit, model):
    tab = example(visit())
    plain = pixels(tab)
    rows = tab.locator("#rows tr")
    rows.nth(1).hover()
    near = pixels(tab)
    assert (near != plain).any()
    tab.mouse.move(5, 5)
    assert (pixels(tab) == plain).all()
    canvas = tab.locator("#boxes").bounding_box()
    factor = min(canvas["width"] / 640, canvas["height"] / 512)
    left, top, right, bottom = model.detect(SCENE, PHRASES)[1].box
    x = canvas["x"] + canvas["width"] / 2 + ((left + right) / 2 - 320) * factor
    y = canvas["y"] + canvas["height"] / 2 + ((top + bottom) / 2 - 256) * factor
    tab.mouse.move(x, y)
    assert "near" in rows.nth(1).get_attribute("class")
    assert (pixels(tab) == near).all()
    tab.mouse.click(x, y)
    tab.mouse.move(5, 5)
    assert [row.get_attribute("aria-selected") for row in rows.all()] == ["false", "true", "false"]
    assert (pixels(tab) == near).all()
    slide(tab.locator("#threshold"), 0.6)  # removes the chosen box
    assert [row.get_attribute("aria-selected") for row in rows.all()] == ["false"]
    assert (pixels(tab)[..., 3] == 255).any()  # the others are opaque again


def test_a_tap_on_a_box_scrolls_the_table_and_not_the_page(visit):
    tab = visit(width=390, has_touch=True)
    found = [{"box": [10 * (i % 10), 10 * (i // 10), 10 * (i % 10) + 9, 10 * (i // 10) + 9], "score": 0.9,
              "label": "a cat", "label_id": 0, "phrase": ""} for i in range(100)]  # fmt: skip
    refuse(tab, answer(found, size=(100, 100)))
    add(tab, "a cat")
    choose(tab, encoded(plain(100, 100)))
    tab.wait_for_selector("#rows tr")
    box = tab.locator("#boxes").bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    tab.touchscreen.tap(left + 0.745 * side, top + 0.645 * side)
    row, table = tab.locator("#rows tr").nth(67), tab.locator("#rows-area")
    assert row.get_attribute("aria-selected") == "true"
    assert tab.evaluate("scrollY") == 0
    middle = [part.bounding_box()["y"] + part.bounding_box()["height"] / 2 for part in (row, table)]
    assert middle[0] == pytest.approx(middle[1], abs=2)


def test_arrow_keys_move_among_the_rows(visit):
    tab = example(visit())
    rows = tab.locator("#rows tr")
    assert [row.get_attribute("tabindex") for row in rows.all()] == ["0", "-1", "-1"]
    rows.first.focus()
    for key, index in (("ArrowDown", 1), ("End", 2), ("ArrowDown", 2), ("Home", 0), ("ArrowUp", 0)):
        tab.keyboard.press(key)
        assert tab.evaluate("[...document.activeElement.parentNode.children].indexOf(document.activeElement)") == index
    tab.keyboard.press("Enter")
    assert rows.first.get_attribute("aria-selected") == "true"
    tab.keyboard.press("Escape")
    assert rows.first.get_attribute("aria-selected") == "false"
