"""Compare released checkpoints with published results for one image, COCO val2017 000000039769.

The tolerances are those of the tests with the published values. Values are not compared in order:

- Query selection is numerically unstable: a rounding error can swap two queries of nearly equal score. The rank of a
  query determines its learned content. So the first rows of logits and boxes are compared as a set.
- transformers lists detections by rank, minigdino by score. So detections are compared as a set.

The table marks rows whose order differs.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoints import hub
from ..checkpoints.published import SHAPES, full_name, suggestion
from ..detector import Model, load
from ..errors import ArgumentError, ImageError
from ..image import open_image

# The files of images.cocodataset.org, under a name that has a valid certificate
IMAGE = "https://s3.amazonaws.com/images.cocodataset.org/val2017/000000039769.jpg"
SHA256 = "dea9e7ef97386345f7cff32f9055da4982da5471c48d575146c796ab4563b04e"  # of the file at IMAGE, 173,131 bytes
MAX_UNEXPECTED = 5  # rows of the table for detections without a published counterpart
MAX_BYTES = 20_000_000  # limit for a download; the image is smaller than 1 % of it
MAX_SECONDS = 300  # limit for the body of a download, whose single reads may take 20 seconds each


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference from an expected value e: absolute + relative * |e|."""

    absolute: float
    relative: float = 0.0

    def __call__(self, expected) -> np.ndarray:
        """Return the largest allowed difference for each expected value."""
        return self.absolute + self.relative * np.abs(expected)


@dataclass(frozen=True)
class Expectation:
    """Published results of one model for one prompt. A field is empty if its values were not published."""

    model_id: str
    text: str
    source: str  # file that the values come from
    image_size: tuple[int, int] = (640, 480)  # width, height
    logits: Sequence[Sequence[float]] = ()  # of the first queries, for the first tokens
    boxes: Sequence[Sequence[float]] = ()  # of the same queries: cx, cy, w (and h), as fractions of the image
    scores: Sequence[float] = ()  # of all detections above the threshold, in any order
    labels: Sequence[str] = ()  # of the same detections, as transformers spells them
    corners: Sequence[Sequence[float]] = ()  # (left, top, right, bottom) of the same detections, or of the first few
    pixels: bool = True  # whether corners are in pixels; else they are fractions of the image
    threshold: float = 0.4
    text_threshold: float = 0.3
    logit: Tolerance = Tolerance(1e-3)
    box: Tolerance = Tolerance(1e-4)
    score: Tolerance = Tolerance(1e-3)
    corner: Tolerance = Tolerance(1e-2)


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    what: str
    expected: str
    got: str
    difference: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class Report:
    """Result of `verify`. `str()` formats it as a table."""

    model: str
    checks: tuple[tuple[Expectation, tuple[Check, ...]], ...]

    @property
    def ok(self) -> bool:
        """True if all values agree."""
        return all(check.ok for _, checks in self.checks for check in checks)

    @property
    def status(self) -> int:
        """Exit status: 0 if all values agree, else 1."""
        return 0 if self.ok else 1

    def __str__(self) -> str:
        head = ("value", "expected", "got", "difference", "tolerance", "ok")
        rows = [[(c.what, c.expected, c.got, f"{c.difference:.2g}", f"{c.tolerance:.2g}", "yes" if c.ok else "NO")
                 for c in checks] for _, checks in self.checks]
        widths = [max(map(len, column)) for column in zip(head, *itertools.chain(*rows))]
        lines = [self.model]
        for (expectation, _), table in zip(self.checks, rows):
            lines += ["", f'"{expectation.text}"  ({expectation.source})']
            lines += ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths)).rstrip() for row in (head, *table)]
        checks = [check for _, checks in self.checks for check in checks]
        failed = sum(not check.ok for check in checks)
        verdict = f"{failed} of {len(checks)} differ.{HINT}" if failed else f"all {len(checks)} agree"
        return "\n".join([*lines, "", verdict])


HINT = ("\n---> hint: run it again with MINIGDINO_KERNELS=reference. If all values agree then, a compiled kernel is "
        "wrong; otherwise the checkpoint or the image differs from the published one")


def verify(model_id: str = hub.DEFAULT, image=None, model: str | Path | Model | None = None, *,
           expectations: Sequence[Expectation] | None = None) -> Report:
    """Compare the results of a checkpoint with its published results.

    Args:
        model_id: model whose published results to use; its id or short name.
        image: image to run on, as `detect` accepts; None for `coco_image()`.
        model: model to run, a Model or an argument of `load`; None for the model `model_id` from the hub.
        expectations: published results; None for `PUBLISHED`.

    Returns:
        The comparison.

    Raises:
        ArgumentError: if there are no published results for the model.
        CheckpointError: if the model cannot be loaded.
        ImageError: if the image cannot be read or downloaded.
    """
    known, model_id = PUBLISHED if expectations is None else expectations, full_name(str(model_id))
    chosen = [e for e in known if e.model_id == model_id]
    if not chosen:
        models = ", ".join(dict.fromkeys(e.model_id for e in known))
        inside = ", which is inside this package and has none" if model_id == SHAPES.name else ""
        raise ArgumentError(f"verify needs a model with published results; got {model_id!r}{inside}."
                            f"{suggestion(model_id)} Choose one of {models}")
    picture = open_image(coco_image() if image is None else image)
    if not isinstance(model, Model):
        model = load(hub.find(model_id) if model is None else model)
    checks = tuple((e, tuple(_checks(e, picture, model))) for e in chosen)
    return Report(f"{model_id} from {model.source}", checks)


def coco_image(folder: str | Path | None = None) -> Path:
    """Return the path of the COCO image, and download it first if necessary.

    Its SHA-256 checksum is compared at each call, and a file with another one is downloaded again. The environment
    variable MINIGDINO_VERIFY_IMAGE sets another path or http(s) URL, whose content is not compared.

    Args:
        folder: folder for the download; None for $MINIGDINO_CACHE, else "minigdino" in the user's cache folder.

    Returns:
        The path.

    Raises:
        ImageError: if the download fails, or its checksum is wrong.
    """
    source = os.environ.get("MINIGDINO_VERIFY_IMAGE") or IMAGE
    if not source.startswith(("http://", "https://")):
        return Path(source)
    try:
        folder = Path(folder or os.environ.get("MINIGDINO_CACHE") or
                      Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigdino")
    except RuntimeError:  # from Path.home
        raise ImageError("the image needs a folder, and this user has no home folder. Set MINIGDINO_CACHE to a "
                         "folder") from None
    path = folder / _stored_name(source)
    wanted = SHA256 if source == IMAGE else None
    try:
        if path.exists() and wanted in (None, _checksum(path)):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            # not urls.download, which uses no proxies and no private addresses: this URL is ours or the user's
            fetched = Path(temporary) / path.name
            with urllib.request.urlopen(source, timeout=20) as answer:
                fetched.write_bytes(_body(answer))
            if wanted not in (None, got := _checksum(fetched)):
                raise ImageError(f"expected a file with the SHA-256 checksum {wanted}; got {got}")
            open_image(fetched)  # raises ImageError if a proxy returned a web page instead
            fetched.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:  # includes URLError and ImageError
        reason = error
        if isinstance(error, urllib.error.HTTPError):
            reason = f"the server answered {error.code}"
            error.close()
        raise ImageError(f"the image at {source} cannot be downloaded to {folder}: {reason}.\n---> hint: download it "
                         "by other means and set MINIGDINO_VERIFY_IMAGE to its path") from error
    return path


def _stored_name(source):
    """File name for the image at a URL. URLs of the user's choice get a hash, because their last parts can be equal."""
    name = source.rstrip("/").rpartition("/")[2]
    return name if source == IMAGE else f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}-{name}"


def _body(answer):
    """Read the body of an HTTP response, at most MAX_BYTES, within MAX_SECONDS."""
    end, data = time.monotonic() + MAX_SECONDS, bytearray()
    while len(data) < MAX_BYTES and (more := answer.read1(MAX_BYTES - len(data))):  # read1 returns what has arrived
        data += more
        if time.monotonic() > end:
            raise TimeoutError(f"the download took more than {MAX_SECONDS} seconds")
    return data


def _checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checks(e, picture, model):
    """Rows of the table for one expectation."""
    yield Check("image size", f"{e.image_size[0]} x {e.image_size[1]}", f"{picture.width} x {picture.height}",
                float(max(abs(np.subtract(picture.size, e.image_size)))), 0.0, picture.size == tuple(e.image_size))
    if len(e.logits) or len(e.boxes):
        output = model.forward(model.preprocess(picture), model.tokenize(e.text).ids)
        yield from _first_ranks(e, output)
    if len(e.scores):
        found = model.detect(picture, e.text, threshold=e.threshold, text_threshold=e.text_threshold)
        yield from _detections(e, found)


def _first_ranks(e, output):
    """Rows for logits and boxes, in the first order of queries within tolerance, else in the published order."""
    parts = [(name, np.array(want), got, tolerance) for name, want, got, tolerance in
             (("logits", e.logits, output.logits, e.logit), ("box", e.boxes, output.boxes, e.box)) if len(want)]
    ranks = range(len(parts[0][1]))

    def largest_excess(order):
        return max(_difference(want, got[list(order)], tolerance)[2] for _, want, got, tolerance in parts)

    order = next((order for order in itertools.permutations(ranks) if largest_excess(order) <= 0), ranks)
    for name, want, got, tolerance in parts:
        for rank, own_rank in zip(ranks, order):
            moved = "" if rank == own_rank else f" (minigdino: {own_rank + 1})"
            yield _check(f"{name}, rank {rank + 1}{moved}", want[rank], got[own_rank], tolerance)


def _detections(e, found):
    """Rows for each published detection and its nearest counterpart, then for unexpected detections."""
    scale = 1 if e.pixels else np.array([*found.image_size] * 2)
    scores, corners, left = np.array(found.scores, float), found.boxes / scale, list(range(len(found)))
    for i, score in enumerate(e.scores):
        label = e.labels[i] if len(e.labels) else None
        corner = np.array(e.corners[i]) if i < len(e.corners) else None
        what = f"detection {i + 1}" + (f", {label}" if label is not None else "")
        if not left:
            yield Check(f"{what}: score", _numbers([score]), "none", float("inf"), e.score.absolute, False)
            continue
        nearest = min(left, key=lambda j: abs(scores[j] - score) if corner is None else abs(corners[j] - corner).max())
        left.remove(nearest)
        yield _check(f"{what}: score", [score], scores[[nearest]], e.score)
        if corner is not None:
            yield _check(f"{what}: box", corner, corners[nearest], e.corner)
        if label is not None:
            phrase = found.phrases[nearest]
            yield Check(f"{what}: label", label, phrase or "''", float(phrase != label), 0.0, phrase == label)
    for j in left[:MAX_UNEXPECTED]:  # highest scores first; a score within tolerance of the threshold is no failure
        over = float(scores[j]) - e.threshold
        yield Check(f"not published, 1 of {len(left)}", "none", f"{_numbers(scores[[j]])} {found.phrases[j]}", over,
                    e.score.absolute, over <= e.score.absolute)


def _check(what, expected, got, tolerance):
    difference, margin, excess = _difference(expected, got, tolerance)
    return Check(what, _numbers(expected), _numbers(got[:len(expected)]), difference, margin, excess <= 0)


def _difference(expected, got, tolerance):
    """(difference, margin, difference - margin) of the value with the largest excess over its margin.

    Only the first columns of `got` are used, as many as `expected` has.
    """
    expected = np.asarray(expected, float)
    difference = np.abs(got[..., :expected.shape[-1]] - expected)
    difference = np.where(np.isnan(difference), np.inf, difference)
    margin = np.broadcast_to(tolerance(expected), difference.shape)
    worst = np.unravel_index((difference - margin).argmax(), difference.shape)
    return float(difference[worst]), float(margin[worst]), float((difference - margin)[worst])


def _numbers(values):
    return " ".join(f"{value:.4f}".rjust(7) for value in values)


def _converted(name: str, scores, corners) -> Expectation:
    """Values from the script that converted MM Grounding DINO and LLMDet to the format of transformers."""
    mm = Tolerance(1e-3, 1e-3)
    return Expectation(name, "cat. remote.", "transformers, convert_mm_grounding_dino_to_hf.py", scores=scores,
                       corners=corners, pixels=False, score=mm, corner=mm)


MM = "openmmlab-community/mm_grounding_dino_"
PUBLISHED = (
    # Computed on a CPU. The conversion script of the model has the same values. Tolerances of the test.
    Expectation(
        hub.DEFAULT, "a cat.", "transformers, tests/models/grounding_dino/test_modeling_grounding_dino.py",
        logits=((-4.8915, -0.1900, -0.2161), (-4.9658, -0.3716, -0.3948), (-5.9596, -3.3763, -3.3103)),
        boxes=((0.7674, 0.4136, 0.4572), (0.2566, 0.5463, 0.4760), (0.2585, 0.5442, 0.4641)),
        scores=(0.4526, 0.4082), labels=("a cat", "a cat"), corners=((344.8143, 23.1796, 637.4004, 373.8295),),
        threshold=0.35),
    # From the documentation page; the docstring of GroundingDinoForObjectDetection has rounded values (0.479, 0.438,
    # 0.478). Computed on a GPU and published without a tolerance, so the tolerance is larger than in the tests. Later
    # versions of the page have 0.468, 0.426 and no remote control, which contradicts the docstring of the same release.
    Expectation(
        hub.DEFAULT, "a cat. a remote control.", "transformers, docs/source/en/model_doc/grounding-dino.md",
        scores=(0.4785, 0.4381, 0.4776), labels=("a cat", "a cat", "a remote control"),
        corners=((344.6959, 23.1090, 637.1833, 374.2751), (12.2666, 51.9145, 316.8582, 472.4392),
                (38.5742, 70.0015, 176.7838, 118.1806)),
        score=Tolerance(2e-3), corner=Tolerance(0.5)),
    Expectation(
        MM + "tiny_o365v1_goldg_v3det", "a cat.",
        "transformers, tests/models/mm_grounding_dino/test_modeling_mm_grounding_dino.py",
        logits=((-5.1160, -0.2143, -0.2089), (-5.0592, -0.4269, -0.4169), (-4.9087, -1.7608, -1.7372)),
        boxes=((0.7666, 0.4142, 0.4590), (0.2557, 0.5480, 0.4812), (0.5049, 0.5133, 0.9767)),
        scores=(0.4480, 0.3973), labels=("a cat", "a cat"), corners=((343.7321, 23.8182, 637.5044, 373.8593),),
        threshold=0.35, logit=Tolerance(1e-3, 1e-3), box=Tolerance(1e-4, 1e-4), score=Tolerance(1e-3, 1e-3),
        corner=Tolerance(1e-2, 1e-2)),
    _converted(MM + "tiny_o365v1_goldg", (0.7722, 0.7584, 0.7984, 0.7163), (
        (0.5212, 0.1594, 0.5792, 0.3895), (0.5424, 0.0513, 0.9996, 0.7757), (0.0629, 0.1526, 0.2746, 0.2447),
        (0.0091, 0.1127, 0.4945, 0.9911))),
    _converted(MM + "tiny_o365v1_goldg_grit", (0.7865, 0.7180, 0.7665, 0.8177), (
        (0.0084, 0.1129, 0.4940, 0.9895), (0.5214, 0.1597, 0.5786, 0.3875), (0.5413, 0.0507, 0.9998, 0.7768),
        (0.0631, 0.1527, 0.2740, 0.2449))),
    _converted(MM + "tiny_o365v1_goldg_v3det", (0.5690, 0.5553, 0.6075, 0.5775), (
        (0.5393, 0.0502, 0.9989, 0.7763), (0.0090, 0.1125, 0.4950, 0.9895), (0.5207, 0.1589, 0.5794, 0.3889),
        (0.0625, 0.1519, 0.2750, 0.2446))),
    _converted(MM + "tiny_o365v1_goldg_grit_v3det", (0.8381, 0.8204, 0.7970, 0.7175), (
        (0.0099, 0.1129, 0.4942, 0.9903), (0.5413, 0.0506, 0.9998, 0.7753), (0.0626, 0.1527, 0.2744, 0.2443),
        (0.5211, 0.1596, 0.5790, 0.3890))),
    _converted(MM + "base_o365v1_goldg_v3det", (0.8418, 0.8364, 0.8342, 0.7885), (
        (0.5427, 0.0502, 0.9996, 0.7770), (0.0628, 0.1529, 0.2747, 0.2448), (0.0085, 0.1132, 0.4947, 0.9898),
        (0.5208, 0.1597, 0.5787, 0.3910))),
    _converted(MM + "base_all", (0.4713,), ((0.5423, 0.0507, 0.9998, 0.7761),)),
    _converted(MM + "large_o365v2_oiv6_goldg", (0.7824, 0.8275, 0.7715, 0.8211), (
        (0.0082, 0.1133, 0.4945, 0.9889), (0.5410, 0.0508, 0.9998, 0.7771), (0.0632, 0.1526, 0.2740, 0.2439),
        (0.5205, 0.1599, 0.5787, 0.3906))),
    _converted(MM + "large_all", (0.7373, 0.6208, 0.6913, 0.4523), (
        (0.5424, 0.0509, 0.9997, 0.7765), (0.0632, 0.1529, 0.2744, 0.2447), (0.0121, 0.1125, 0.4947, 0.9884),
        (0.5206, 0.1597, 0.5789, 0.3933))),
    _converted("iSEE-Laboratory/llmdet_tiny", (0.7262, 0.7552, 0.7656, 0.8207), (
        (0.0114, 0.1132, 0.4947, 0.9854), (0.5387, 0.0513, 0.9992, 0.7765), (0.5212, 0.1605, 0.5788, 0.3890),
        (0.0634, 0.1536, 0.2743, 0.2440))),
    _converted("iSEE-Laboratory/llmdet_base", (0.8646, 0.7567, 0.6978, 0.8084), (
        (0.0632, 0.1529, 0.2745, 0.2438), (0.5420, 0.0512, 0.9989, 0.7774), (0.0110, 0.1134, 0.4950, 0.9875),
        (0.5209, 0.1602, 0.5789, 0.3908))),
    _converted("iSEE-Laboratory/llmdet_large", (0.7107, 0.8626, 0.7458, 0.8166), (
        (0.0147, 0.1128, 0.4957, 0.9858), (0.0634, 0.1528, 0.2744, 0.2447), (0.5414, 0.0511, 0.9997, 0.7776),
        (0.5209, 0.1602, 0.5792, 0.3916))),
)
