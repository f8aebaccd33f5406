"""A short run of tests/fuzz.py, and tests that the fuzzer detects every kind of failure."""

import os
import random

import fuzz
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="controls its worker process with POSIX functions")


@pytest.fixture(scope="module")
def worker():
    worker = fuzz.Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_corrupted_files_raise_only_minigdino_errors(target, worker):
    tally = fuzz.fuzz(target, seed=0, count=30, worker=worker)
    assert not tally.failures, "\n\n".join(tally.failures)
    assert 0 < tally.outcomes["accepted"] < 30  # some changes have no effect


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # one of the prompts has unknown words
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_intact_files_are_accepted(target, tmp_path):
    for choice in range(4):
        folder = tmp_path / str(choice)
        folder.mkdir()
        for name, data in fuzz.intact(target, choice)[0].items():
            (folder / name).write_bytes(data)
        fuzz.use(folder, fuzz.TEXTS[choice])


def test_an_input_is_determined_by_its_number():
    for target in fuzz.TARGETS:
        first, again, other = (fuzz.corrupted(target, random.Random(seed)) for seed in (1, 1, 2))
        assert first == again != other


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("die", "crash"),
        ("sleep", "hang"),
        ("grow", "raised MemoryError"),
        ("raise", "raised IndexError"),
        ("spin", "slow"),
        ("babble", "unreadable message"),
    ],
)
def test_a_fault_is_reported_and_the_next_input_is_processed(fault, outcome, worker):
    if fault == "grow" and not os.path.exists("/proc/self/statm"):
        pytest.skip("the memory limit needs /proc")
    worker.ask("config", 0, 0)  # starts the worker
    tally = fuzz.Tally(fault)
    tally.add(worker.ask(fault, 0, 0, patience=1 if fault == "sleep" else fuzz.HANG), 0, 0)
    assert list(tally.outcomes) == [outcome]
    assert f"--target {fault} --only 0" in tally.failures[0]
    assert not worker.ask("config", 0, 0)["failed"]
