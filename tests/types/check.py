"""Check the types of the public API with mypy --strict and pyright: python tests/types/check.py

Checked are `uses.py` and the snippets of README, one after the other as one program. Needs the extra `types`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SNIPPETS = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Run both checkers. Returns the sum of their exit statuses."""
    with tempfile.TemporaryDirectory() as folder:
        readme = Path(folder, "readme.py")
        readme.write_text("\n".join(SNIPPETS.findall((ROOT / "README.md").read_text())))
        files = [str(HERE / "uses.py"), str(readme)]
        settings = Path(folder, "pyrightconfig.json")
        settings.write_text(json.dumps({"include": files, "extraPaths": [str(ROOT)], "typeCheckingMode": "standard",
                                        "enableTypeIgnoreComments": True, "reportUnusedExpression": False}))
        mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", folder, *files]
        pyright = [sys.executable, "-m", "basedpyright", "--project", settings, "--pythonpath", sys.executable]
        return sum(subprocess.run(command, cwd=ROOT, check=False).returncode for command in (mypy, pyright))


if __name__ == "__main__":
    sys.exit(main())
