"""Hypothesis: the same examples on every run in CI, and no deadline, since machines differ. Parity needs PyTorch."""

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = [] if importlib.util.find_spec("torch") else ["parity"]

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, suppress_health_check=quiet)
settings.register_profile("ci", deadline=None, suppress_health_check=quiet, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` run where there is one."""
    if wanting := [item for item in items if item.get_closest_marker("gpu")]:
        lack = _lack_of_gpu()
        for item in wanting if lack else ():
            item.add_marker(pytest.mark.skip(reason=lack))


def _lack_of_gpu():
    from minigdino import ArgumentError
    from minigdino.runtime.device import find_device

    try:
        find_device("cuda")
    except ArgumentError as error:
        return str(error).partition("\n")[0]
    return None
