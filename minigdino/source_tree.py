"""In a source tree, such as a clone, make the folder `_ext` beside this package importable as `minigdino._ext`.

Installed, `_ext` is inside this package. In the folder of a source tree, Python imports the tree even if the package is
installed, too.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGE = __name__.rpartition(".")[0]
NAME = f"{PACKAGE}._ext"


def use_tree(package: Path) -> None:
    """Import `_ext` from a source tree; do nothing in an installed package.

    Args:
        package: the folder of this package.
    """
    folder = package.parent / "_ext"
    if NAME in sys.modules or (package / "_ext").exists() or not (folder.with_name("setup.py").exists() and
                                                                  (folder / "__init__.py").exists()):
        return
    spec = importlib.util.spec_from_file_location(NAME, folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None  # both exist for a .py file
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(sys.modules[PACKAGE])["_ext"] = module  # as an import would


use_tree(Path(__file__).parent)
