"""COCO's AP, computed by the package faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable

import numpy as np

from ..extras import require
from .candidates import Candidates, checked
from .ground_truth import GroundTruth

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
