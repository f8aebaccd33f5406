"""Optional packages: the module, or an error with the command that installs it."""

import json
import re
import signal
import sys

import pytest
from test_results import found

from minigdino import ArgumentError, ImageError, extras


def test_an_installed_package_is_imported():
    assert extras.require("json", "a test") is json


@pytest.mark.parametrize(("options", "message"), [
    ({}, "a test needs the package nowhere, which is not installed. Run: pip install nowhere"),
    ({"package": "no-where", "otherwise": ", or do without"},
     "a test needs the package no-where, which is not installed. Run: pip install no-where, or do without"),
    ({"package": "nowhere>=1,<3"},
     'a test needs the package nowhere, which is not installed. Run: pip install "nowhere>=1,<3"'),
    ({"kind": ImageError}, "a test needs the package nowhere, which is not installed. Run: pip install nowhere")])
def test_a_missing_package_gives_the_command_that_installs_it(options, message):
    with pytest.raises(options.get("kind", ArgumentError)) as raised:
        extras.require("nowhere", "a test", **options)
    assert str(raised.value) == message


def test_a_package_is_missing_if_one_of_its_modules_is_needed():
    with pytest.raises(ArgumentError, match="nowhere, which is not installed. Run: pip install nowhere$"):
        extras.require("nowhere.inside", "a test", "nowhere")


def test_a_package_without_the_module_that_is_needed_is_damaged():
    expected = r"cannot be imported \(.*json\.inside.*Run: pip install --force-reinstall json$"
    with pytest.raises(ArgumentError, match=expected):
        extras.require("json.inside", "a test", "json")


@pytest.mark.parametrize("content", ["import another_missing", "raise ImportError('libx.so: no such file')"])
def test_a_package_that_is_damaged_is_not_called_missing(tmp_path, monkeypatch, content):
    (tmp_path / "damaged.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError) as raised:
        extras.require("damaged", "a test")
    assert re.fullmatch(r"a test needs the package damaged, which cannot be imported \(.*(another_missing|libx).*\)\. "
                        "Run: pip install --force-reinstall damaged", str(raised.value))


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
def test_a_timeout_during_the_import_passes_through(monkeypatch, kind):
    error = kind("the job took too long")

    def handler(signum, frame):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    monkeypatch.setattr(extras.importlib, "import_module", lambda _: signal.raise_signal(signal.SIGALRM))
    try:
        with pytest.raises(kind) as raised:
            extras.require("json", "a test")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert raised.value is error


@pytest.mark.parametrize("name", ["pandas", "supervision"])
def test_the_conversions_of_results_name_their_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArgumentError) as raised:
        getattr(found(), f"to_{name}")()
    assert str(raised.value) == (f"to_{name}() needs the package {name}, which is not installed. Run: pip install "
                                 f"{name}")
