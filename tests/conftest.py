"""Settings of Hypothesis, which tests are collected, and fixtures of several modules.

Examples have no deadline, because machines differ in speed. In CI, every run uses the same examples; further versions
of Python and of packages get few of them. The parity tests are collected only if PyTorch is installed, those of the
description of the API only if schemathesis is.
"""

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = [folder for folder, package in (("parity", "torch"), ("schema", "schemathesis"))
                  if not importlib.util.find_spec(package)]

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, suppress_health_check=quiet)
settings.register_profile("ci", deadline=None, suppress_health_check=quiet, derandomize=True)
settings.register_profile("few", deadline=None, suppress_health_check=quiet, derandomize=True, max_examples=20)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` on machines without a GPU."""
    if gpu_tests := [item for item in items if item.get_closest_marker("gpu")]:
        reason = _why_no_gpu()
        for item in gpu_tests if reason else ():
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu():
    """Return the first line of the error of device "cuda"; None if there is a GPU."""
    from minigdino import ArgumentError
    from minigdino.runtime.device import find_device

    try:
        find_device("cuda")
    except ArgumentError as error:
        return str(error).partition("\n")[0]
    return None


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and an image."""
    import tiny
    from PIL import Image

    folder = tmp_path_factory.mktemp("home")
    tiny.model().save(folder / "model")
    Image.fromarray(tiny.photo()).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module", params=["fast", "reference"])
def both_kernels(request):
    """Run every test of a module twice: with the compiled twins, and with the NumPy references."""
    import minigdino

    with minigdino.use(request.param):
        yield request.param
