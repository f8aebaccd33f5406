"""Packages of the extra test-runs. Without one, its tests are skipped, or fail if MINIGDINO_RUNS=required."""

import importlib
import os

import pytest


@pytest.fixture
def needed():
    """Function that imports a package by its name."""
    return importlib.import_module if os.environ.get("MINIGDINO_RUNS") == "required" else pytest.importorskip
