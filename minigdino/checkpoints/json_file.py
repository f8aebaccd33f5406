"""JSON files of a model directory."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import CheckpointError, brief


def read_json(path: str | Path) -> dict:
    """Parse a JSON file.

    Args:
        path: the file, UTF-8 encoded.

    Returns:
        The parsed value.

    Raises:
        CheckpointError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. A model directory holds config.json and the weights.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({brief(error)}); download it again") from None
