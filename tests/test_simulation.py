"""The simulation of runs on many nodes: exact without failures, and as the formulas of its processes with them."""

import heapq
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import simulation
from benchmarks.simulation import Failures, failing, simulate

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
TASKS = st.lists(st.integers(1, 50), min_size=1, max_size=30)  # integers: sums are exact


def never(unit, after):
    return math.inf


@given(TASKS, st.integers(1, 6), st.integers(0, 5), st.integers(0, 5))
def test_without_failures_the_units_take_the_tasks_in_turn(tasks, units, start, warm):
    """Exact sums, and Graham's bound of lists: the last end is at most one task after the mean."""
    found = simulate(tasks, [1] * units, never, 0, start=start, warm=warm)
    work = sum(tasks) + start * len(tasks)
    assert (found.useful, found.lost, found.failures) == (sum(tasks), 0, 0)
    assert found.starting == start * len(tasks) + warm * units
    assert work / units <= found.finish - warm <= work / units + max(tasks) + start
    assert found.finish == max(found.ends)


@given(TASKS, st.integers(1, 4), st.lists(st.integers(1, 40), max_size=12), st.integers(0, 9), st.integers(0, 3),
       st.none() | st.integers(0, 3))
def test_every_task_ends_once_whatever_fails(tasks, units, gaps, delay, start, unfinished):
    """Time is results, lost work, starts, waiting for another node, or idle; the results are all the work."""
    times = np.cumsum([delay + gap for gap in gaps])

    def next_failure(unit, after):
        return min((time for time in times + unit if time > after), default=math.inf)

    found = simulate(tasks, [1] * units, next_failure, delay, start=start, unfinished=unfinished)
    assert found.useful == sum(tasks)
    assert 0 <= found.lost <= found.failures * (max(tasks) if unfinished is None else unfinished)
    assert start * len(tasks) <= found.starting <= start * (len(tasks) + found.failures)
    assert found.useful + found.lost + found.starting <= units * found.finish
    if not found.failures:
        assert found.lost == 0


def test_a_task_that_starts_over_takes_the_time_of_the_formula():
    """With failures at a rate λ, a task of T seconds takes (exp(λT) - 1) / λ on average."""
    rate, seconds, tasks = 1 / 3600, 3000, 20_000
    fails = failing(np.random.default_rng(0).spawn(1), Failures("", 1 / (3600 * rate), 0))
    found = simulate([seconds] * tasks, [1], fails, 0)
    expected = tasks * (math.exp(rate * seconds) - 1) / rate
    assert found.finish == found.useful + found.lost == pytest.approx(expected, rel=0.03)
    assert found.failures == pytest.approx(tasks * (math.exp(rate * seconds) - 1), rel=0.03)


def test_a_task_that_continues_loses_only_the_images_in_the_making():
    fails = failing(np.random.default_rng(0).spawn(1), Failures("", 1, 0))
    found = simulate([10**6] * 20, [2.0], fails, 60, start=30, unfinished=10)
    assert found.useful == pytest.approx(20 * 10**6 / 2)
    assert found.lost == pytest.approx(5 * found.failures, rel=0.01)  # 10 s on a unit of speed 1
    assert found.failures == pytest.approx((found.finish - 60 * found.failures) / 3600, rel=0.05)


def test_failures_have_their_rate_and_the_same_times_whenever_they_are_read():
    fails = failing(np.random.default_rng(0).spawn(2), Failures("", 2, 100))
    times, now = [], 0.0
    while len(times) < 3000:
        now = fails(0, now)
        times.append(now)
    gaps = np.diff(times)
    assert gaps.min() >= 100
    assert gaps.mean() - 100 == pytest.approx(7200, rel=0.05)
    assert [fails(0, time - 1e-6) for time in times[::-100]] == times[::-100]
    assert fails(1, 0) != times[0]
    assert failing([None], simulation.SCENARIOS[0])(0, 5) == math.inf


def on_processes(seconds, workers):
    """The time of a list of images on some processes, each of which takes the next one when it is free."""
    free = [0.0] * workers
    for second in seconds:
        heapq.heapreplace(free, free[0] + second)
    return max(free)


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_the_time_of_a_shard_is_that_of_its_images_one_by_one(workers):
    rng = np.random.default_rng(0)
    seconds = simulation.image_seconds(rng, 60_000)
    assert simulation.shard_seconds(rng, seconds, 1, workers)[0] == pytest.approx(
        on_processes(seconds.tolist(), workers), abs=float(seconds.max()))
    exact = [on_processes(part.tolist(), workers) for part in np.split(seconds, 30)]
    modelled = simulation.shard_seconds(rng, seconds, 30, workers)
    assert modelled.sum() == pytest.approx(sum(exact), rel=0.005)
    assert modelled.std() > 0  # a hash gives shards of different sizes


def test_seconds_have_the_form_that_was_measured():
    drawn = simulation.image_seconds(np.random.default_rng(0), 100_000)
    assert drawn.mean() == pytest.approx(simulation.MEAN, rel=0.005)
    levels = np.linspace(0, 1, len(simulation.FORM))
    np.testing.assert_allclose(np.quantile(drawn, levels) / simulation.MEAN, simulation.FORM, rtol=0.02)
    assert [*simulation.FORM] == sorted(simulation.FORM)
    assert simulation.image_seconds(np.random.default_rng(0), 100_000, 7.0).mean() == pytest.approx(7, rel=0.005)


def test_the_mean_is_that_of_the_page():
    text = (ROOT / "docs" / "performance.md").read_text()
    (images,) = re.findall(r'\| minigdino, "highest" \| 2 × 1 \| \S+ \| (\d+) \|', text)
    assert 3600 / int(images) == simulation.MEAN


def test_a_failed_node_loses_the_images_of_all_its_processes():
    seconds = simulation.image_seconds(np.random.default_rng(0), 100_000)
    found = simulation.in_a_queue(seconds, simulation.cluster(0, 4, 8, Failures("", 0.2, 60)))
    assert found.failures > 8 * 20
    assert found.lost == pytest.approx(found.failures * simulation.spent(seconds), rel=0.05)
    assert found.finish - min(found.ends) < 2 * float(seconds.max())  # the end of the queue is one by one
    assert simulation.spent(np.full(3, 4.0)) == 2


@given(st.integers(1, 300), st.integers(1, 3))
def test_a_queue_processes_every_image_once(count, workers):
    seconds = simulation.image_seconds(np.random.default_rng(count), count)
    found = simulation.in_a_queue(seconds, simulation.Cluster(workers, [1.0, 1.0], never, 0))
    assert found.useful == pytest.approx(float(seconds.sum(dtype=np.float64)))


def tables(text):
    """{heading, as printed: {first cell: other cells}} of the tables after headings of the third level."""
    found = {}
    for part in re.split("^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = part.partition("\n")
        lines = [line.strip("| ").split(" | ") for line in rest.splitlines() if line.startswith("| ")]
        found[heading] = {first: cells for first, *cells in lines[1:]}
    return found


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_of_the_command():
    page = (ROOT / "docs" / "howto" / "many-images.md").read_text().partition("## A simulation")[2]
    done = subprocess.run([sys.executable, "-m", "benchmarks.simulation"], cwd=ROOT, check=True, capture_output=True,
                          text=True)
    shown, printed = tables(page), tables(done.stdout)
    assert shown and shown.keys() <= printed.keys()
    for heading, rows in shown.items():
        assert len(rows) > 4
        for name, cells in rows.items():  # versions of NumPy may draw other numbers
            np.testing.assert_allclose([*map(float, cells)], [*map(float, printed[heading][name])], rtol=0.05, atol=0.3)


def test_the_command_prints_a_table_per_scenario():
    done = subprocess.run([sys.executable, "-m", "benchmarks.simulation", "--images", "20000", "--nodes", "3", "--runs",
                           "2", "--workers", "2"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("A simulation: 20,000 images, 3 nodes of 2 cores")
    assert done.stdout.count("| queue |") == len(simulation.SCENARIOS)
    assert done.stdout.count("which start over |") == 4 * (len(simulation.SCENARIOS) - 1)
