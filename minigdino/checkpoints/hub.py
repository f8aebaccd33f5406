"""Find published checkpoints by name, in the local hub cache or on the Hugging Face hub.

This is the only module that imports `huggingface_hub`, the hub's client:

- Cached files are located directly, because the layout of the cache is public. This needs no network, writes nothing,
  and saves the 0.3 s that importing the client takes.
- Downloads go through the client, so HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and its other
  environment variables have their usual meaning.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, brief, from_signal_handler
from ..version import __version__
from .config import FAMILIES
from .json_file import is_folder, read_json, read_text, status
from .published import IDS, SHAPES, full_name, suggestion
from .weights import INDEX, check_complete

DEFAULT = "IDEA-Research/grounding-dino-tiny"

WEIGHTS = (INDEX, "model.safetensors")
# Files of a checkpoint. Of each tuple, only the first file that the hub has is downloaded; `load` prefers it too.
PARTS = (("config.json",), ("tokenizer.json", "vocab.txt"), ("tokenizer_config.json",),
         ("preprocessor_config.json", "processor_config.json"), WEIGHTS)  # weights last: see `_fetch`

NAME = r"\w([\w.-]{0,94}\w)?"  # an owner or a model on the hub; at most 96 characters
ID = re.compile(rf"(?!.*(--|\.\.)){NAME}/{NAME}", re.ASCII)


def is_model_id(text) -> bool:
    """Return whether a text is a model id (owner/name), and not the path of an existing file or directory."""
    return (isinstance(text, str) and ID.fullmatch(text) is not None and not text.endswith((".git", ".safetensors"))
            and status(text) is None)


def resolved(source: str) -> str:
    """Return the model id if a source is the short name of a published model; otherwise the source.

    A file or folder of that name takes precedence over the short name.
    """
    return full_name(source) if source in IDS and status(source) is None else source


def hidden(source: object) -> str:
    """Return the id of a published model whose short name is that of an existing file or folder; "" if there is none.

    Args:
        source: a source of `load`, after `resolved`.
    """
    return full_name(source) if isinstance(source, str) and source in IDS and status(source) else ""


def find(model_id: str, revision: str | None = None) -> Path:
    """Return the directory of a published checkpoint, and download it first if the local cache lacks it.

    A complete cached checkpoint is used without network access, even if its branch has newer commits on the hub.
    `download` fetches the newest.

    Args:
        model_id: owner/name on the hub, or the short name of a published model.
        revision: a branch, tag or commit; None for the main branch.

    Returns:
        The snapshot directory in the cache.

    Raises:
        CheckpointError: if the checkpoint is neither cached nor available from the hub.
    """
    model_id = _checked_id(model_id, revision)
    try:
        snapshot = _snapshot(model_id, revision)
        missing = _missing(snapshot)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(_message(error, model_id, revision)) from error
    if not missing:
        return snapshot
    try:
        return download(model_id, revision)
    except CheckpointError:
        if {"config.json", "model.safetensors"} & set(missing):
            raise
        return snapshot  # `load` works without the other files


def download(model_id: str, revision: str | None = None) -> Path:
    """Download the files of a checkpoint that the cache lacks, and return its directory.

    Only files that `load` reads are downloaded, with the client's progress bars. An interrupted download leaves the
    previously cached version in use.

    Args:
        model_id: owner/name on the hub, or the short name of a published model.
        revision: a branch, tag or commit; None for the main branch.

    Returns:
        The snapshot directory in the cache.

    Raises:
        CheckpointError: if the download fails.
    """
    model_id = _checked_id(model_id, revision)
    try:
        return _fetch(model_id, revision)
    except CheckpointError:
        raise
    except Exception as error:  # errors of the client and of its two network libraries
        raise CheckpointError(_message(error, model_id, revision)) from error


def cached() -> list[str]:
    """List the supported models that are complete in the local cache, at any revision; none if it is not readable."""
    names = []
    for folder in _glob(cache(), "models--*--*"):
        if any(_is_usable(snapshot) for snapshot in _glob(folder, "snapshots/*")):
            names.append(folder.name.removeprefix("models--").replace("--", "/"))
    return names


def cache() -> Path:
    """Return the local hub cache: $HF_HUB_CACHE, else $HF_HOME/hub, else the client's default.

    Raises:
        CheckpointError: if the client cannot read its environment variables.
    """
    return Path(_constants().HF_HUB_CACHE)


def _constants():
    """The settings of the client, which it reads from environment variables when it is imported."""
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise CheckpointError("the environment variables HF_HUB_* must have values that huggingface_hub can read; one "
                              f"has not ({brief(error)}). Correct it, for example HF_HUB_ETAG_TIMEOUT=10") from None
    return constants


def _checked_id(model_id, revision):
    """Return a model id, given in full or as the short name of a published model, if it is valid."""
    name = full_name(model_id) if isinstance(model_id, str) else ""
    if name == SHAPES.name:
        raise CheckpointError(f"a model id must be owner/name; {SHAPES.name!r} is inside this package, so it needs no "
                              f"download. Load it by that name: load({SHAPES.name!r}), or --model {SHAPES.name}")
    if not ID.fullmatch(name):
        raise CheckpointError(f"a model id must be owner/name, for example {DEFAULT}, or the short name of a "
                              f"published model; got {brief(model_id)}{suggestion(name) and '.' + suggestion(name)}")
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"a revision must be the name of a branch, tag or commit; got {brief(revision)}")
    return name


def snapshot(model_id: str) -> Path:
    """Return the directory of a checkpoint's main branch in the local cache. It need not exist.

    Args:
        model_id: owner/name on the hub.

    Raises:
        CheckpointError: if the name is invalid, or the client cannot read its environment variables.
    """
    return _snapshot(_checked_id(model_id, None), None)


def _snapshot(model_id, revision):
    """Directory of a revision in the cache. It need not exist."""
    revision = revision or "main"
    if ".." in revision or revision.startswith("/"):  # not a valid git revision, but a path that leaves the cache
        return cache() / "no such revision"
    folder = cache() / f"models--{model_id.replace('/', '--')}"
    try:
        commit = read_text(folder / "refs" / revision, limit=1000).strip()
    except (OSError, ValueError) as error:  # no such branch or tag, or a corrupted file
        if from_signal_handler(error):
            raise
        commit = revision
    return folder / "snapshots" / (commit if re.fullmatch(r"\w+", commit, re.ASCII) else "no such revision")


def _missing(snapshot):
    """Names of files that a snapshot lacks or has incomplete, except files that the hub does not have either."""
    absent = snapshot.parent.parent / ".no_exist" / snapshot.name  # the client marks files that the hub does not have
    weights = _shards(snapshot / INDEX) if (snapshot / INDEX).exists() else ["model.safetensors"]
    missing = [part[0] for part in PARTS[:-1] if not any((snapshot / name).exists() for name in part)
               and not all((absent / name).exists() for name in part)]
    return missing + ["model.safetensors" for name in weights if not _is_complete(snapshot / name)]


def _shards(index):
    """File names of the shards in an index; "model.safetensors" if the index is corrupted."""
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (CheckpointError, AttributeError, KeyError, TypeError) as error:
        if from_signal_handler(error):
            raise
        shards = []
    are_names = all(isinstance(shard, str) and Path(shard).name == shard for shard in shards)  # not "../other/file"
    return shards if shards and are_names else ["model.safetensors"]


def _is_complete(path):
    """Return whether a weight file has the length that its header states."""
    from safetensors import SafetensorError

    try:
        check_complete(path)
    except (SafetensorError, OSError, ValueError) as error:
        if from_signal_handler(error):
            raise
        return False
    return True


def _glob(folder, pattern):
    """Matching paths, sorted; none if the folder cannot be accessed."""
    try:
        return sorted(folder.glob(pattern))
    except OSError as error:
        if from_signal_handler(error):
            raise
        return []


def _is_usable(snapshot):
    """Return whether a snapshot holds config and weights of a supported model type."""
    try:
        model_type = read_json(snapshot / "config.json").get("model_type")
        return model_type in FAMILIES and "model.safetensors" not in _missing(snapshot)
    except (CheckpointError, AttributeError, OSError) as error:
        if from_signal_handler(error):
            raise
        return False


def _fetch(model_id, revision):
    """Download the small files, then the weights, then the mapping from the revision to its commit.

    So a snapshot with weights has all other files, and a revision never points to an incomplete snapshot.
    """
    constants = _constants()
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    caller: dict[str, Any] = {"library_name": "minigdino", "library_version": __version__}
    info = HfApi(**caller).model_info(model_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)

    def fetch(*names):
        """Download the first of these files that the hub has. None if it has none of them."""
        for name in names:
            cached_file = _snapshot(model_id, info.sha) / name
            damaged = (cached_file.suffix == ".safetensors" and cached_file.exists()
                       and not _is_complete(cached_file))
            try:
                return Path(hf_hub_download(model_id, name, revision=info.sha, force_download=damaged, **caller))
            except LocalEntryNotFoundError:  # the hub did not answer, so the file may exist
                raise
            except EntryNotFoundError:
                continue
        return None

    config, *_, weights = [fetch(*part) for part in PARTS]
    if weights and weights.name == INDEX:
        weights = all(fetch(shard) for shard in _shards(weights))
    if not config or not weights:
        absent = "weights (model.safetensors, or all shards of its index)" if config else "config.json"
        raise CheckpointError(f"{model_id}: the hub's copy has no {absent}. Weights in .bin, .pth or .onnx files are "
                              "not supported: convert the checkpoint to safetensors first, or choose another one")
    hf_hub_download(model_id, "config.json", revision=revision, **caller)  # maps the revision to the commit
    return config.parent


def _message(error, model_id, revision):
    constants = _constants()
    what = f"{model_id} at revision {brief(revision)}" if revision else model_id
    return (f"{what}: {_reason(error)}{_near(model_id)}\n"
            f"Local cache: {constants.HF_HUB_CACHE}{_gaps(model_id, revision)}; hub: {constants.ENDPOINT}\n"
            "---> hint: give a directory that holds config.json, model.safetensors and "
            'tokenizer.json, or use model="shapes", the checkpoint inside this package. Or run '
            f"`minigdino download {model_id}` on a machine with network access, copy its cache here, and set "
            "HF_HUB_CACHE to the copy")


def _near(model_id):
    """Part of a message: an existing folder of the owner's name, and a published model of a similar name."""
    owner, name = model_id.split("/")
    folder = f"; the folder {owner!r} exists here, but has no {name!r}" if is_folder(owner) else ""
    return f"{folder}.{suggestion(model_id)}"


def _gaps(model_id, revision):
    """Part of a message: the missing files of a partly cached model."""
    try:
        snapshot = _snapshot(model_id, revision)
        missing = ", ".join(dict.fromkeys(_missing(snapshot)))
        return f" ({missing} missing or incomplete)" if missing and snapshot.exists() else ""
    except OSError as error:
        if from_signal_handler(error):
            raise
        return ""


def _reason(error):
    """Part of a message: the cause of an error.

    The client may use either of two network libraries, so connection errors are recognised by their class names.
    """
    from huggingface_hub import utils

    while isinstance(error, utils.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, utils.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not contacted"
    if isinstance(error, utils.RevisionNotFoundError):
        return "the hub has the model, but no branch, tag or commit of that name"
    if isinstance(error, utils.GatedRepoError) or status == 403:
        return "the hub requires that you accept this model's terms; do so on its page, then set HF_TOKEN to your token"
    if isinstance(error, utils.RepositoryNotFoundError) or status == 401:
        return "the hub has no model of that name (a private one needs HF_TOKEN), and no such directory exists here"
    if status is not None:
        return f"the hub answered {status}; try again later"
    if kinds & {"TransportError", "ConnectionError", "Timeout", "TimeoutError"}:
        return f"the hub cannot be reached ({first})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space is left for the local cache ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the local cache cannot be read or written ({first})"
    return f"the download failed ({first})"
