"""Published checkpoints by name: the local hub cache first, then the hub. Only this module knows `huggingface_hub`.

The cache is read straight from its folders, whose layout is public and shared by many programs: that needs no network,
writes nothing, and spares a cached model the 0.3 s of importing the client. Whatever is fetched, the client fetches,
so HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and its other variables mean what they mean elsewhere.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from ..errors import CheckpointError
from ..version import __version__
from .config import FAMILIES
from .json_file import read_json
from .weights import INDEX

DEFAULT = "IDEA-Research/grounding-dino-tiny"

WEIGHTS = (INDEX, "model.safetensors")
# What a checkpoint is made of. Of each row the first that the hub has is fetched: the one that `load` reads.
PARTS = (("config.json",), ("tokenizer.json", "vocab.txt"), ("tokenizer_config.json",),
         ("preprocessor_config.json", "processor_config.json"), WEIGHTS)  # the weights come last: see `_fetch`

ID = re.compile(r"(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)  # what the hub lets a model be called


def is_model_id(text) -> bool:
    """Whether a text names a model as the hub does, owner/name, and no file or directory here."""
    return (isinstance(text, str) and ID.fullmatch(text) is not None and not text.endswith((".git", ".safetensors"))
            and not Path(text).exists())


def find(model_id: str, revision: str | None = None) -> Path:
    """Directory of a published checkpoint: from the local cache if it is whole there, without any network; else
    downloaded into it.

    revision: a branch, a tag or a commit; the main branch without one. A cached branch or tag is used as it is, even
    if the hub has moved on: `download` brings the newest.
    Raises CheckpointError if it is neither here nor to be had, saying what was looked for, where, and the ways out.
    """
    _check(model_id)
    try:
        snapshot = _snapshot(model_id, revision)
        lacking = _lacking(snapshot)
    except OSError as error:
        raise CheckpointError(_message(error, model_id, revision)) from error
    if not lacking:
        return snapshot
    try:
        return download(model_id, revision)
    except CheckpointError:
        if {"config.json", "model.safetensors"} & set(lacking):
            raise
        return snapshot  # what it may lack, `load` can do without


def download(model_id: str, revision: str | None = None) -> Path:
    """Ask the hub for a checkpoint, fetch what the cache lacks of it, and return its directory.

    Only the files that `load` reads are fetched, with the client's progress bars. Cut short, it leaves what the cache
    held before in use. Raises CheckpointError as `find` does.
    """
    _check(model_id)
    try:
        return _fetch(model_id, revision)
    except CheckpointError:
        raise
    except Exception as error:  # the client's own, and those of the two libraries it reads the network with
        raise CheckpointError(_message(error, model_id, revision)) from error


def cached() -> list[str]:
    """Names of the models in the local cache that `find` returns and `load` reads, at some revision."""
    names = []
    for folder in sorted(cache().glob("models--*--*")):
        if any(_ours(snapshot) for snapshot in folder.glob("snapshots/*")):
            names.append(folder.name.removeprefix("models--").replace("--", "/"))
    return names


def cache() -> Path:
    """The folder of the local hub cache: HF_HUB_CACHE, else hub in HF_HOME, else the client's default."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check(model_id):
    if not isinstance(model_id, str) or not ID.fullmatch(model_id):
        raise CheckpointError(f"{model_id!r} is not the name of a model; expected owner/name, for example {DEFAULT}")


def _snapshot(model_id, revision):
    """Where the cache keeps a revision, whether it does or not."""
    revision = revision or "main"
    if ".." in revision or revision.startswith("/"):  # nothing git would call a revision, but a way out of the cache
        return cache() / "no such revision"
    folder = cache() / f"models--{model_id.replace('/', '--')}"
    ref = folder / "refs" / revision
    return folder / "snapshots" / (ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision)


def _lacking(snapshot):
    """Names of files that a snapshot should hold and does not, or not whole; the ones the hub lacks too left out."""
    known = snapshot.parent.parent / ".no_exist" / snapshot.name  # the client's notes of what it asked for in vain
    weights = _shards(snapshot / INDEX) if (snapshot / INDEX).exists() else ["model.safetensors"]
    lacking = [part[0] for part in PARTS[:-1] if not any((snapshot / name).exists() for name in part)
               and not all((known / name).exists() for name in part)]
    return lacking + ["model.safetensors" for name in weights if not _whole(snapshot / name)]


def _shards(index):
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (CheckpointError, AttributeError, KeyError, TypeError):
        shards = []
    return shards if shards and all(isinstance(shard, str) for shard in shards) else ["model.safetensors"]


def _whole(path):
    """Whether a file of weights is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            return True
    except (SafetensorError, OSError):
        return False


def _ours(snapshot):
    try:
        model_type = read_json(snapshot / "config.json").get("model_type")
        return model_type in FAMILIES and "model.safetensors" not in _lacking(snapshot)
    except (CheckpointError, AttributeError, OSError):
        return False


def _fetch(model_id, revision):
    """Small files first, the weights then, and last the note which commit the revision is: so a snapshot with its
    weights has the rest, and until it has, the revision stays what it was."""
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    caller = {"library_name": "minigdino", "library_version": __version__}
    info = HfApi(**caller).model_info(model_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)

    def fetch(*names):
        """The first of some files that the hub has, or None."""
        for name in names:
            here = _snapshot(model_id, info.sha) / name
            damaged = here.suffix == ".safetensors" and here.exists() and not _whole(here)
            try:
                return Path(hf_hub_download(model_id, name, revision=info.sha, force_download=damaged, **caller))
            except LocalEntryNotFoundError:  # it may exist: the hub did not answer
                raise
            except EntryNotFoundError:
                continue
        return None

    config, *_, weights = [fetch(*part) for part in PARTS]
    if weights and weights.name == INDEX:
        weights = all(fetch(shard) for shard in _shards(weights))
    if not config or not weights:
        lost = "weights (model.safetensors, or all shards of its index)" if config else "config.json"
        raise CheckpointError(f"{model_id}: the hub's copy has no {lost}. A .bin, .pth or .onnx file will not do: "
                              "convert the checkpoint to safetensors first, or choose another")
    hf_hub_download(model_id, "config.json", revision=revision, **caller)
    return config.parent


def _message(error, model_id, revision):
    from huggingface_hub import constants

    what = f"{model_id} at revision {revision!r}" if revision else model_id
    return (f"{what}: {_reason(error)}.\nLocal cache: {constants.HF_HUB_CACHE}{_gaps(model_id, revision)}; hub: "
            f"{constants.ENDPOINT}\n---> hint: give a directory that holds config.json, model.safetensors and "
            'tokenizer.json, or use model="shapes", the checkpoint inside this package. Or run '
            f"`minigdino download {model_id}` on a machine with a network, copy its cache here, and say where it is "
            "with HF_HUB_CACHE")


def _gaps(model_id, revision):
    """What a cache that holds some of a model lacks, for a message."""
    try:
        snapshot = _snapshot(model_id, revision)
        lacking = ", ".join(dict.fromkeys(_lacking(snapshot)))
        return f" ({lacking} missing or cut short)" if lacking and snapshot.exists() else ""
    except OSError:
        return ""


def _reason(error):
    """What went wrong, in words. The client's connection errors come from either of two libraries: told by name."""
    from huggingface_hub import utils

    while isinstance(error, utils.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, utils.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the hub for it"
    if isinstance(error, utils.RevisionNotFoundError):
        return "the hub has the model, but no branch, tag or commit of that name"
    if isinstance(error, utils.GatedRepoError) or status == 403:
        return "the hub gives it only to those who accepted its terms; do so there, then set HF_TOKEN to your token"
    if isinstance(error, utils.RepositoryNotFoundError) or status == 401:
        return "the hub has no model of that name (a private one needs HF_TOKEN), nor is there such a directory here"
    if status is not None:
        return f"the hub answered {status}; try again later"
    if kinds & {"TransportError", "ConnectionError", "Timeout", "TimeoutError"}:
        return f"the hub cannot be reached ({first})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the local cache has no room for it ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the local cache cannot be used ({first})"
    return f"it could not be fetched ({first})"
