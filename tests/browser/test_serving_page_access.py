"""The page of `minigdino serve` in a browser: contrast, names, keys, layout, motion and what it loads."""

import re

import pytest
from serving_page import SCENE, add, answer, choose, example, problem, refuse, until

CONTRAST = """() => {
    const channels = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const [r, g, b, a = 1] = channels(getComputedStyle(e).backgroundColor);
            if (a > 0.99) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const texts = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
        [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    const inputs = [...document.querySelectorAll("input")].filter((e) => e.checkVisibility() && e.placeholder);
    const pairs = [...texts.map((e) => [e, null]), ...inputs.map((e) => [e, "::placeholder"])];
    return pairs.map(([e, part]) => {
        const front = channels(getComputedStyle(e, part).color).slice(0, 3);
        const [high, low] = [luminance(front), luminance(ground(e))].sort((a, b) => b - a);
        return [(high + 0.05) / (low + 0.05), e.outerHTML.slice(0, 80)];
    });
}"""
ROLES = {"button", "link", "textbox", "slider", "grid", "image", "list", "region"}
FOCUS = "(e => e.id || e.dataset.copy || e.tagName)(document.activeElement)"
OUTLINED = """(e) => [e, e.parentElement].map((x) => getComputedStyle(x))
    .some(({outlineStyle, opacity}) => outlineStyle !== "none" && Number(opacity))"""
MOVING = "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration)).length"



def unnamed(tab):
    """Controls and regions without a name, as the browser reports them to a screen reader."""
    tree = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")["nodes"]
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in ROLES]
    assert len(nodes) > 3
    return [node["role"]["value"] for node in nodes if not node.get("name", {}).get("value")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_controls_have_names(visit, scheme):
    tab = visit(color_scheme=scheme, reduced_motion="reduce", is_mobile=True, has_touch=True)
    assert tab.locator(".camera").is_visible()
    refuse(tab, {"status": 413, "json": {"error": "too large"}}, {"status": 401, "json": {}}, answer((), ["unknown"]))
    ground = max(map(int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))))
    assert ground < 50 if scheme == "dark" else ground > 230

    def check(n_texts):
        measured = tab.evaluate(CONTRAST)
        assert len(measured) > n_texts
        assert [one for one in measured if one[0] < 4.5] == []
        assert unnamed(tab) == []

    check(8)
    tab.click("#example")
    assert problem(tab) == "Too large."
    check(12)
    tab.click("#detect")
    assert "API key" in problem(tab)
    check(12)
    tab.click("#detect")
    tab.wait_for_selector("#warnings:not([hidden])")
    check(15)
    tab.click("#detect")
    tab.wait_for_selector("#rows tr")
    tab.click("#each summary")
    tab.locator("#rows tr").first.click()
    check(30)


def test_the_tab_key_reaches_every_control_and_leaves_the_page(visit):
    tab = example(visit())
    tab.click("#each summary")
    tab.focus("#choose")
    reached = ["choose"]
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate(FOCUS))
        if reached[-1] == "BODY":
            break
    assert reached == ["choose", "example", *["BUTTON"] * 3, "phrase", "detect", "threshold", "SUMMARY", "threshold-0",
                       "threshold-1", "threshold-2", "TR", "json", "curl", "python", "save", "A", "BODY"]  # fmt: skip


def test_the_focus_is_visible(visit):
    tab = example(visit())
    for control in ("#choose", "#example", "#phrase", "#detect", "#threshold", "#rows tr", "[data-copy=json]", "#save"):
        tab.locator(control).first.focus()
        tab.keyboard.press("Shift")  # the keyboard was used
        assert tab.locator(control).first.evaluate(OUTLINED), control


def test_results_are_announced(visit):
    tab = example(visit())
    until(tab, "document.getElementById('live').textContent.includes('a green heart: 1')")
    assert tab.locator("#live").get_attribute("role") == "status"
    assert tab.locator("#message").get_attribute("role") == "alert"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(visit, width):
    tab = visit(width=width)
    phrase = "word " * 30 + "x" * 80
    found = [{"box": [9 * i % 600, 5, 9 * i % 600 + 30, 90], "score": 0.9, "label": phrase, "label_id": 0, "phrase": ""}
             for i in range(300)]  # fmt: skip
    refuse(tab, answer(found, ["w" * 90]))
    add(tab, phrase)
    choose(tab, SCENE.read_bytes(), "n" * 90 + ".jpg", "image/jpeg")
    tab.wait_for_selector("#rows tr")
    assert tab.locator("#count").text_content() == "300 of the 300 best boxes"
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.getElementById('rows-area'))")
    for control in ("#model", "#file", "#phrase", "#detect", "#threshold", "#count", "[data-copy=json]", "#save"):
        assert tab.locator(control).is_visible(), control
    if width == 1280:  # one screen
        assert tab.evaluate("document.documentElement.scrollHeight") == 800


def test_nothing_moves_for_users_who_prefer_that(visit):
    assert visit(reduced_motion="reduce").evaluate(MOVING) == 0
    assert visit(reduced_motion="no-preference").evaluate(MOVING) > 0


def test_it_loads_from_its_server_only_and_obeys_a_strict_policy(visit, site):
    tab = example(visit())
    assert {url for _, url in tab.requests if not url.startswith((site, "data:", "blob:"))} == set()
    assert tab.messages == []
    policy = tab.evaluate("fetch('').then((answer) => answer.headers.get('Content-Security-Policy'))")
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_it_works_below_a_path_of_a_proxy(visit, site):
    tab = visit()
    tab.route("**/deep/path/**", lambda route: route.fulfill(
        response=route.fetch(url=route.request.url.replace("/deep/path/", "/"))))  # fmt: skip
    tab.requests.clear()
    tab.goto(f"{site}deep/path/")
    example(tab)
    assert [url for _, url in tab.requests if "/deep/path/" not in url] == []
    tab.click("footer a")
    tab.wait_for_url("**/deep/path/docs")


def test_the_footer_has_the_state_of_the_server_and_the_seconds(visit):
    tab = example(visit())
    until(tab, "document.getElementById('server').textContent.startsWith('Server ready')")
    state = tab.locator("#server").text_content()
    assert re.fullmatch("Server ready, [01] of 1 worker busy, 0 requests waiting", state)
    tab.route("**/health/ready", lambda route: route.fulfill(status=503, json={"ready": False, "queue": 0}))
    until(tab, "document.getElementById('server').textContent === 'Server not ready'")
    seconds = r"\d+\.\d\d s"
    assert re.fullmatch(f"Last answer: waited {seconds}, decoded {seconds}, computed {seconds}",
                        tab.locator("#seconds").text_content())  # fmt: skip
    assert "shapes" in tab.locator("#model").text_content()
