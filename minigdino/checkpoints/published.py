"""The published checkpoints: names, sizes and reported accuracy. Figures are data; nothing here reads a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A checkpoint on the Hugging Face hub, or the one inside this package.

    Attributes:
        id: owner/name on the hub; "shapes" for the embedded checkpoint.
        family: "grounding-dino" or "mm-grounding-dino", as in `Config.published`; None for the embedded one.
        size: "tiny", "base" or "large", as in `Config.published`; None for the embedded one.
        parameters: number of parameters.
        bytes: size of the weight file. The other files have less than 1 MB in total.
        coco: box AP on COCO val, as reported by the authors; None if they report none.
        lvis: box AP on LVIS minival, likewise. Zero-shot for all.
        coco_in_training: whether COCO was part of the training data; if not, `coco` is zero-shot.
        licence: SPDX identifier of the authors' licence.
        licence_source: where the authors state it: "card", the model card; or "repository", that of their code, which
            links to the weights. In the second case, the card was not consulted.
    """

    id: str
    family: str | None
    size: str | None
    parameters: int
    bytes: int
    coco: float | None = None
    lvis: float | None = None
    coco_in_training: bool = False
    licence: str = "Apache-2.0"
    licence_source: str = "card"

    @property
    def name(self) -> str:
        """Short name: the part of the id after the owner."""
        return self.id.rpartition("/")[2]


SHAPES = Published("shapes", None, None, 3_162_506, 6_383_652)


def _grounding_dino(size, *figures, coco, lvis=None, coco_in_training=False):
    return Published(f"IDEA-Research/grounding-dino-{size}", "grounding-dino", size, *figures, coco=coco, lvis=lvis,
                     coco_in_training=coco_in_training)


def _mm(size, data, coco, lvis=None, coco_in_training=False):
    return Published(f"openmmlab-community/mm_grounding_dino_{size}_{data}", "mm-grounding-dino", size,
                     *MM_FIGURES[size], coco=coco, lvis=lvis, coco_in_training=coco_in_training,
                     licence_source="repository")


def _llmdet(size, lvis):
    return Published(f"iSEE-Laboratory/llmdet_{size}", "mm-grounding-dino", size, *MM_FIGURES[size], lvis=lvis,
                     licence_source="repository")


MM_FIGURES = {  # (parameters, bytes)
    "tiny": (172_912_157, 692_015_412), "base": (232_976_283, 936_057_092), "large": (343_052_631, 1_376_363_740)}
PUBLISHED = (
    # 27.4 is from Table 3 of arXiv 2303.05499; Table 3 of arXiv 2401.02361 lists 28.8 for the same model
    _grounding_dino("tiny", 172_249_090, 689_359_096, coco=48.4, lvis=27.4),
    _grounding_dino("base", 232_313_216, 933_400_872, coco=56.7, coco_in_training=True),
    _mm("tiny", "o365v1_goldg", 50.4, 35.7),
    _mm("tiny", "o365v1_goldg_grit", 50.5, 36.5),
    _mm("tiny", "o365v1_goldg_v3det", 50.6, 40.5),
    _mm("tiny", "o365v1_goldg_grit_v3det", 50.4, 41.4),
    _mm("base", "o365v1_goldg_v3det", 52.5),
    _mm("base", "all", 59.5, coco_in_training=True),
    _mm("large", "o365v2_oiv6_goldg", 53.0),
    _mm("large", "all", 60.3, coco_in_training=True),
    _llmdet("tiny", 44.7),
    _llmdet("base", 48.3),
    _llmdet("large", 51.1),
)
IDS = {model.name: model.id for model in PUBLISHED}  # by short name


def full_name(name: str) -> str:
    """Return the model id of a short name such as "llmdet_tiny"; any other name unchanged."""
    return IDS.get(name, name)


def suggestion(name: str) -> str:
    """Return a sentence that names the published model with the most similar name.

    Args:
        name: a name that was not found.

    Returns:
        " Did you mean 'grounding-dino-tiny'?", with the space before it; "" if no name is similar.
    """
    from difflib import get_close_matches  # only for a message

    known = {known.lower(): known for known in (SHAPES.name, *IDS, *IDS.values())}
    close = get_close_matches(name[:200].lower(), known, n=1, cutoff=0.75)
    return f" Did you mean {known[close[0]]!r}?" if close and known[close[0]] != name else ""
