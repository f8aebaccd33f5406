"""Check types: python tests/types/check.py

- `uses.py` and the snippets of README, one after the other as one program: mypy --strict and pyright, which must infer
  the types of the public API.
- The package itself: pyright, in its basic mode.

Needs the extra `types`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SNIPPETS = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Run all checks. Returns the sum of their exit statuses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python_files = shutil.ignore_patterns("*.so", "*.c", "models", "__pycache__")
        package = shutil.copytree(ROOT / "minigdino", folder / "minigdino", ignore=python_files)
        shutil.copytree(ROOT / "_ext", package / "_ext", ignore=python_files)  # as installed
        snippets = folder / "readme.py"
        snippets.write_text("\n".join(SNIPPETS.findall((ROOT / "README.md").read_text())))
        uses = shutil.copy(HERE / "uses.py", folder)
        return sum([run("mypy", "--strict", "--follow-imports", "silent", uses, snippets, cwd=folder),
                    pyright(folder, "uses.json", [uses, snippets], "standard"),
                    pyright(folder, "package.json", [package], "basic",
                            reportMissingImports=False)])  # packages that need not be installed, such as CuPy


def pyright(folder: Path, name: str, files: list[Path], mode: str, **rules: bool) -> int:
    """Run pyright in a mode on some files of a folder, with settings in a file of that name."""
    settings = folder / name
    settings.write_text(json.dumps({"include": list(map(str, files)), "typeCheckingMode": mode,
                                    "enableTypeIgnoreComments": True, "reportUnusedExpression": False, **rules}))
    return run("basedpyright", "--project", settings, "--pythonpath", sys.executable, cwd=folder)


def run(module: str, *arguments: str | Path, cwd: Path) -> int:
    """Run a module as a program. Returns its exit status."""
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=cwd, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
