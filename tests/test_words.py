"""Words: the glossary's terms are used, and the phrases it replaced do not come back."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
TEXT = {".py", ".pyx", ".pxd", ".cu", ".cuh", ".h", ".c", ".md", ".toml", ".yml", ".js", ".css", ".html", ""}
NOT_PROSE = ("LICENSE", "tests/test_words.py", "docs/images")

REPLACED = {  # pattern -> what to write
    r"who(m)?(so)?ever": "the caller, a user, code that ...",
    r"hears?|heard": "receives, attends to; caught (of warnings)",
    r"(is|are|was) told|tells (it|them|an?|the)\b": "receives; state the relation",
    r"asked for longest": "least recently used",
    r"(never|ever|not|longer) (there )?whole": "never stored in full",
    r"(is|are) there whole": "stored in full",
    r"gone on with|goes? on with it": "resumed",
    r"taken over to": "folded into",
    r"minds the": "state the effect",
    r"makes room": "is evicted",
    r"the more the": "a proportion in plain words",
    r"by itself alone": "only",
    r"(one|a) page a (module|function)": "one page per ...",
    r"so many (threads|tokens|rows|numbers|blocks|points|channels|images)": "N, or the number of",
    r"at the door": "input validation",
    r"no number (comes|came)|is no number": "a non-finite value",
    r"hand(s|ed)? on\b": "passes, passed",
    r"in its place": "instead",
    r"(here|there) alone": "only for that call",
    r"what (is )?`?added`?": "an optional residual",
    r"(no one|nobody) (asks|reads|sees|hears|waits)": "say what is unused",
    r"what becomes of": "how ... is handled",
    r"anew|thereof|thereby|whereby|lest|thereupon|amongst|whilst": "plain modern words",
    r"a pass of": "a forward pass",
    r"in spite of|outside of the": "despite, outside the",
    r"sane": "the limit",
    r"feed-forward block": "feed-forward network",
    r"nobody|no one": "say what does not happen",
    r"takes? turns": "run one at a time",
    r"in one go|slow(er)? moments?": "in one session, a slow period",
    r"where there is none": "on machines without one",
    r"all the way down|whatever \w+ is": "only NumPy, any value",
    r"yardstick|by and by|as it were|of its own accord": "plain modern words",
}


def pages():
    """Tracked text files, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in ROOT.glob("minigdino/**/*.py")]
    for name in names:
        path = ROOT / name
        data = name.startswith("minigdino/models/") and path.suffix != ".md"
        if path.suffix in TEXT and path.is_file() and not data and not name.startswith(NOT_PROSE):
            yield path


PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages()}


@pytest.mark.parametrize("pattern", REPLACED)
def test_a_replaced_phrase_does_not_come_back(pattern):
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name, text in PAGES.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]
    assert not found, f"write instead: {REPLACED[pattern]}\n" + "\n".join(found)


TERMS = """
forward pass, reference, twin, kernel, backbone, feature map, token, query, reference box, sampling offset,
attention weight, logit, score, threshold, label, phrase, prompt, residual, epilogue, tile, worker, shard, checkpoint,
dtype, peak memory, median
"""


def test_the_glossary_explains_its_terms():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").lower()
    assert [term for term in map(str.strip, TERMS.split(",")) if term not in text] == []
