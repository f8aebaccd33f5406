"""Hypothesis: the same examples on every run in CI, and no deadline, since machines differ. Parity needs PyTorch."""

import importlib.util
import os

from hypothesis import HealthCheck, settings

collect_ignore = [] if importlib.util.find_spec("torch") else ["parity"]

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, suppress_health_check=quiet)
settings.register_profile("ci", deadline=None, suppress_health_check=quiet, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
