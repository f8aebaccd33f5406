"""The code for transformers on the how-to pages runs, and gives the detections of the code for minigdino."""

import re
from pathlib import Path

import numpy as np
import oracle  # noqa: F401  chooses the attention of transformers
import pytest

import minigdino

ROOT = Path(__file__).parents[2]


def run(page, language, names):
    """Run the blocks of a language on a how-to page, with shared variables."""
    text = (ROOT / "docs" / "howto" / page).read_text()
    for code in re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(compile(code, page, "exec"), names)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    for folder in ("docs", "minigdino"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_columns_of_the_page_find_the_same(workplace):
    theirs, ours = {}, {}
    run("from-transformers.md", "py", theirs)
    run("from-transformers.md", "python", ours)
    result, found = theirs["result"], ours["found"]
    order = np.argsort(-result["scores"].numpy(), kind="stable")
    np.testing.assert_allclose(found.scores, result["scores"].numpy()[order], atol=1e-5)
    np.testing.assert_allclose(found.boxes, result["boxes"].numpy()[order], atol=0.01)
    assert found.phrases == [result["text_labels"][i] for i in order]
    assert len(found) == 2


def test_a_checkpoint_that_transformers_saved_is_loaded(workplace):
    run("own-checkpoint.md", "py", {})
    names = sorted(path.name for path in (workplace / "mine").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert {"preprocessor_config.json", "processor_config.json"} & set(names)
    image = ROOT / "docs" / "images" / "scene.jpg"
    found = minigdino.load("mine").detect(image, "a red star.", threshold=0.4)
    assert found.labels == ["a red star"]
    np.testing.assert_allclose(found.boxes, minigdino.load("shapes").detect(image, "a red star.", threshold=0.4).boxes)
