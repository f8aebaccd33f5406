"""A short run of tests/fuzz.py, and a check that the fuzzer would see what it looks for."""

import os
import random

import fuzz
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="watches its worker process the POSIX way")


@pytest.fixture(scope="module")
def worker():
    worker = fuzz.Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_only_our_errors_come_out_of_damaged_files(target, worker):
    tally = fuzz.fuzz(target, seed=0, count=30, worker=worker)
    assert not tally.failures, "\n\n".join(tally.failures)
    assert 0 < tally.outcomes["accepted"] < 30  # damage is sometimes survived, and sometimes not


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_undamaged_files_are_accepted(target, tmp_path):
    for choice in range(4):
        room = tmp_path / str(choice)
        room.mkdir()
        for name, data in fuzz.whole(target, choice)[0].items():
            (room / name).write_bytes(data)
        fuzz.use(room, fuzz.TEXTS[choice])


def test_an_input_is_made_from_its_number_alone():
    for target in fuzz.TARGETS:
        first, again, other = (fuzz.damage(target, random.Random(seed)) for seed in (1, 1, 2))
        assert first == again != other


@pytest.mark.parametrize(
    ("mishap", "outcome"),
    [
        ("die", "crash"),
        ("sleep", "hang"),
        ("grow", "raised MemoryError"),
        ("raise", "raised IndexError"),
        ("spin", "slow"),
        ("mutter", "unreadable message"),
    ],
)
def test_a_mishap_is_seen_and_the_next_input_is_tried(mishap, outcome, worker):
    if mishap == "grow" and not os.path.exists("/proc/self/statm"):
        pytest.skip("memory is bounded where /proc says how much there is")
    worker.ask("config", 0, 0)  # so that it is awake
    tally = fuzz.Tally(mishap)
    tally.add(worker.ask(mishap, 0, 0, patience=1 if mishap == "sleep" else fuzz.HANG), 0, 0)
    assert list(tally.outcomes) == [outcome]
    assert f"--target {mishap} --only 0" in tally.failures[0]
    assert not worker.ask("config", 0, 0)["failed"]
