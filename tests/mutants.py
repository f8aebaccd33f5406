"""Plant mistakes in the network one at a time, and check that the tests of the changed module detect each of them.

    python tests/mutants.py

Each mistake is planted in a copy of the package; the working tree is not changed. Exits with 1 if one is not detected.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NETWORK = Path("minigdino") / "network"


def move(first: str, second: str, end: str) -> tuple[str, str]:
    """Return two blocks of the enhancer, each from its marker to the next one: unchanged, and in the opposite order."""
    text = (ROOT / NETWORK / "enhancer.py").read_text(encoding="utf-8")
    i, j = text.index(first), text.index(second)
    k = text.index(end, j)
    return text[i:k], text[j:k] + text[i:j]


def image_before_text() -> tuple[str, str]:
    """Return text and image attention of a decoder layer: unchanged, and in the opposite order."""
    text = (ROOT / NETWORK / "decoder.py").read_text(encoding="utf-8")
    i, j, k = (text.index(start) for start in ("    from_text =", "    from_image =", "    hidden = feed_forward("))
    of_text = text[i:j].replace("after_text", "after_both").replace("after_self", "after_first")
    of_image = text[j:k].replace("after_text", "after_self").replace("after_image", "after_first")
    return text[i:k], of_image + of_text + "    after_image = after_both\n"


MISTAKES = [  # description, module, correct text, text with the mistake
    ("windows shifted in the wrong blocks", "swin", "shift=i % 2 * (k // 2)", "shift=(i + 1) % 2 * (k // 2)"),
    ("no shift mask", "swin", "masked = scores + mask", "masked = scores"),
    ("position bias transposed", "swin", "row[:, None] - row + k", "row - row[:, None] + k"),
    ("patches merged in another order", "swin", "for col in (0, 1) for row in (0, 1)",
     "for row in (0, 1) for col in (0, 1)"),
    ("residual after the norm", "swin", "shift=shift, residual=x)", "shift=shift, residual=normed)"),
    ("positions counted over the whole text", "bert", '["weight"][positions]', '["weight"][: len(positions)]'),
    ("half a pixel missing", "deformable", "x = xy[..., 0] * W - 0.5", "x = xy[..., 0] * W"),
    ("offsets count whole boxes", "deformable", "* size * 0.5", "* size"),
    ("residual of the unnormed image", "fusion", "n_heads=n_heads, residual=v)", "n_heads=n_heads, residual=vision)"),
    ("residual of the unnormed text", "fusion", "return fused, t + text_param", "return fused, text + text_param"),
    ("text values with positions", "enhancer", "attention(positioned, positioned, text,",
     "attention(positioned, positioned, positioned,"),
    ("mask ignored by a text layer", "enhancer", "n_heads=n_heads, mask=mask)", "n_heads=n_heads)"),
    ("mask not passed on to text layers", "enhancer", "text_pos, mask, **layer", "text_pos, None, **layer"),
    ("text positions at the image's temperature", "enhancer", "text.shape[1], 10000)", "text.shape[1], 20)"),
    ("positions in the deformable memory", "enhancer", "deformable_attention(vision + positions, references, vision,",
     "deformable_attention(vision + positions, references, vision + positions,"),
    ("fusion last", "enhancer", *move("        vision, text = fusion_layer(", "        text = text_enhancer_layer(",
                                      "    return vision, text\n")),
    ("one level embedding for all levels", "enhancer", "level_embed[i]", "level_embed[0]"),
    ("no group norm", "enhancer", "maps.append(group_norm(projected, **norm))", "maps.append(projected)"),
    ("border tokens scored", "queries", "zeroed = vision * inside[:, None]", "zeroed = vision * 1"),
    ("similarity not scaled", "queries", "scores * x.shape[-1] ** -0.5 + bias", "scores + bias"),
    ("positions in the decoder's values", "decoder", "attention(positioned, positioned, queries,",
     "attention(positioned, positioned, positioned,"),
    ("no positions in the text query", "decoder", "attention(after_self + query_pos, text, text",
     "attention(after_self, text, text"),
    ("image before text", "decoder", *image_before_text()),
    ("normed states refine the boxes", "decoder", "boxes.append(refine(x, boxes",
     "boxes.append(refine(states[-1], boxes"),
    ("positions of the first boxes", "decoder", "box_positions(boxes[-1],", "box_positions(boxes[0],"),
    ("attention not scaled", "ops", "n_heads) * (queries.shape[-1] // n_heads) ** -0.5", "n_heads)"),
    ("weights of yes and no exchanged", "losses", "np.where(targets, alpha * loss, (1 - alpha) * loss)",
     "np.where(targets, (1 - alpha) * loss, alpha * loss)"),
    ("plain IoU", "losses", "intersection / union - (hull - union) / hull", "intersection / union"),
    ("losses of all boxes", "losses", "tokens[queries] = targets.tokens[chosen]",
     "tokens[: len(targets.tokens)] = targets.tokens"),
    ("encoder's term of transformers", "losses", "output.encoder_logits[output.selected], sigmoid",
     "output.query_logits, sigmoid"),
    ("sum over images instead of mean over boxes", "losses", "count = max(1, len(targets.boxes))", "count = 1"),
    ("cost of no ignored", "matching", "return (yes - no) @", "return yes @"),
    ("GIoU as a cost", "matching", "- config.giou_cost * giou", "+ config.giou_cost * giou"),
    ("class cost as a sum", "matching", "(phrase / phrase.sum(axis=1, keepdims=True)).T", "phrase.T"),
    ("class head on the text before the enhancer", "model", "similarity(states[i], text, **weights",
     "similarity(states[i], text_features, **weights"),
]


def plant(folder: Path, module: str, right: str, wrong: str) -> bool:
    """Return whether an assertion of a module's tests fails with the mistake. The source is restored afterwards."""
    path = folder / NETWORK / f"{module}.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{module}.py: expected this once, found it {text.count(right)} times: {right}"
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/test_{module}.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    path.write_text(text, encoding="utf-8")
    return done.returncode == 1 and "AssertionError" in done.stdout


def main() -> int:
    """Plant every mistake; return the exit status."""
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("minigdino", "tests"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for what, *mistake in MISTAKES:
            caught = plant(Path(folder), *mistake)
            passed += not caught
            print(f"{'caught' if caught else 'NOT CAUGHT':12}{mistake[0]:12}{what}", flush=True)
    print(f"{len(MISTAKES) - passed} of {len(MISTAKES)} caught")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
