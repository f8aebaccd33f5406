"""`import minigdino` works in a source tree: never built, built in place, or beside an installed package."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import minigdino

ROOT = Path(__file__).parent.parent
SHOW = "import minigdino, minigdino._ext.checks as c; print(minigdino.__file__, c.__file__)"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tree as in a repository: without compiled modules."""
    folder = tmp_path_factory.mktemp("clone") / "tree"
    leave = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
    for name in ("minigdino", "_ext"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


# An editable installation of these tests' own tree would find the compiled modules that the copies lack.
WITHOUT_EDITABLE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"


def run(folder, *arguments, more=""):
    """Run Python in a folder, without the variables that tests set, after the code `more`.

    Returns its output and its messages.
    """
    unset = ("MINIGDINO_REQUIRE_KERNELS", "MINIGDINO_KERNELS", "PYTHONWARNINGS")
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(WITHOUT_EDITABLE + more)
    env = {name: value for name, value in os.environ.items() if name not in unset} | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_clone_imports_its_own_files(clone):
    output, _ = run(clone, "-c", SHOW)
    assert output.split() == [str(clone / "minigdino/__init__.py"), str(clone / "_ext/checks.py")]


PROGRAM = """
import sys
import minigdino
model = minigdino.load("shapes")
for _ in range(2):
    found = model.detect(sys.argv[1], ["a purple star"])
    model.clear()
print(*{*found.labels})
"""


def test_a_clone_detects_with_the_formulas_and_says_so_once(clone):
    output, messages = run(clone, "-c", PROGRAM, ROOT / "docs" / "images" / "scene.jpg")
    assert output == "a purple star\n"
    assert messages.count("NumPy references run instead") == 1
    assert "in a clone: pip install -e ." in messages


def test_the_command_line_runs_in_a_clone(clone):
    output, _ = run(clone, "-m", "minigdino", "info")
    assert "ops was not built" in output


def test_other_folders_of_the_tree_are_not_part_of_the_package(clone):
    program = "import minigdino, importlib.util; print(importlib.util.find_spec('minigdino.setup'))"
    assert run(clone, "-c", program)[0] == "None\n"


@pytest.mark.skipif(minigdino.info()["missing"] != [], reason="compiled modules are missing")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_modules_that_were_built_in_place_are_used_by_all_processes(clone, tmp_path, method):
    tree = tmp_path / "tree"
    shutil.copytree(clone, tree)
    built = Path(minigdino._ext.__file__).parent
    for file in built.rglob("*.so"):
        shutil.copy(file, tree / "_ext" / file.relative_to(built))
    (tree / "program.py").write_text(f"""
import multiprocessing
import minigdino

def missing(model):
    return minigdino.__file__, minigdino.info()["missing"], model.source

if __name__ == "__main__":
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        print(*pool.apply(missing, [minigdino.load("shapes")]))
""")
    assert run(tree, "program.py")[0] == f"{tree}/minigdino/__init__.py [] shapes\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lets_python_import_the_tree_above_a_clone(tmp_path):
    """There, Python takes the folder minigdino, the clone, for a package without files."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    site = next((venv / "lib").glob("python*/site-packages"))
    (site / "pip.py").touch()  # installs nothing
    (venv / "bin/minigdino").write_text("#!/bin/sh\necho missing none\n")
    (venv / "bin/minigdino").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAKE", "MFLAGS"))}
    subprocess.run(["make", "build", f"VENV={venv}"], cwd=ROOT, env=env, check=True, timeout=60)
    (tmp_path / "minigdino").mkdir()
    code = "import importlib.util; print(importlib.util.find_spec('minigdino').origin)"
    show = [str(venv / "bin/python"), "-c", code]
    done = subprocess.run(show, cwd=tmp_path, env=env, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{ROOT / 'minigdino/__init__.py'}\n"


def test_a_wheel_holds_all_packages_and_their_files():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for file in (ROOT / "minigdino").rglob("__init__.py") if "_ext" not in file.parts}
    assert {str(folder.relative_to(ROOT)).replace("/", ".") for folder in folders} == {
        name for name in settings["packages"] if not name.startswith("minigdino._ext")}
    listed = {file for package, patterns in settings["package-data"].items()
              for pattern in patterns for file in ROOT.joinpath(*package.split(".")).glob(pattern)}
    others = {file for file in (ROOT / "minigdino").rglob("*") if file.is_file() and "_ext" not in file.parts
              and file.suffix not in {".py", ".pyc", ".so"}}
    assert others <= listed and others


def test_an_installed_package_has_its_own_folder(clone, tmp_path):
    """The folder _ext beside an installed package is another program's."""
    shutil.copytree(clone / "minigdino", tmp_path / "minigdino")
    shutil.copytree(clone / "_ext", tmp_path / "minigdino" / "_ext")
    shutil.copytree(clone / "_ext", tmp_path / "_ext")
    (tmp_path / "setup.py").touch()
    assert run(tmp_path, "-c", SHOW)[0].split()[1] == str(tmp_path / "minigdino/_ext/checks.py")


# as an editable installation of another tree does, which offers its compiled modules to this one
LENDING = """
import importlib.machinery
import sys

class Lending:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("minigdino._ext."):
            folders = name.split(".")[2:-1]
            return importlib.machinery.PathFinder.find_spec(name, ["/".join([{built!r}, *folders])])

sys.meta_path.append(Lending)
"""


@pytest.mark.skipif(minigdino.info()["missing"] != [], reason="compiled modules are missing")
def test_compiled_modules_of_another_tree_are_not_used(clone):
    """They may be those of another version."""
    built = Path(minigdino._ext.__file__).parent
    program = "import minigdino as m, minigdino._ext.ops as ops; print(ops.__file__, m.info()['twins'])"
    output, _ = run(clone, "-c", program, more=LENDING.format(built=str(built)))
    assert output.startswith(str(built)), "the other tree's modules can be imported"
    assert "False" in output and "True" not in output
    output, messages = run(clone, "-c", PROGRAM, ROOT / "docs" / "images" / "scene.jpg",
                           more=LENDING.format(built=str(built)))
    assert output == "a purple star\n"
    assert "NumPy references run instead" in messages
    assert f"it belongs to another source tree, {built}" in messages
