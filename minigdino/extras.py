"""Optional packages. Each is imported when it is first used, so that minigdino works without it."""

from __future__ import annotations

import importlib
import re
from typing import Any

from .errors import ArgumentError, Error, brief


def require(module: str, purpose: str, package: str | None = None, kind: type[Error] = ArgumentError,
            otherwise: str = "") -> Any:
    """Import an optional package.

    Args:
        module: its name in Python, such as "av" or "scipy.optimize".
        purpose: what needs it, for the message.
        package: its name for pip, if that is another one, or with versions, such as "av>=17.1,<19".
        kind: the type of the error.
        otherwise: the end of the message, such as ", or convert the image".

    Returns:
        The module.

    Raises:
        Error: of type `kind`, if the package is not installed or cannot be imported.
    """
    package = package or module
    name = re.split("[<>=]", package)[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            problem, option = "is not installed", ""
        else:  # the package is there, but damaged, or one that it needs is missing
            problem, option = f"cannot be imported ({brief(error)})", "--force-reinstall "
        quoted = package if package == name else f'"{package}"'  # a shell would redirect to a file
        raise kind(f"{purpose} needs the package {name}, which {problem}. Run: pip install {option}{quoted}"
                   f"{otherwise}") from None
