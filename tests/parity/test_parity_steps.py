"""The training steps that benchmarks.learning measures: PyTorch's optimizer has the groups of ours."""

import numpy as np
import oracle  # noqa: F401  skips the module without PyTorch
import pytest
from test_benchmarks import changes

from benchmarks import case, learning


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_of_both_programs_changes_the_same_groups_at_the_same_rates(tmp_path, frozen):
    where = case.case(tmp_path, "shapes")
    case.write(where, "shapes", (64, 85), "a star.")
    with np.load(where.inputs) as given:
        inputs = where.checkpoint, given["pixels"], given["ids"]
    ours = changes(learning.minigdino_step(*inputs, "minigdino", frozen))
    theirs = changes(learning.transformers_step(*inputs, frozen))
    assert theirs == pytest.approx(ours, rel=0.1)
