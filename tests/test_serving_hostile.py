"""A short run of tests/hostile.py, and tests that it detects every kind of fault."""

import json
import sys

import hostile
import pytest
from hostile import Answer, Attack

from minigdino.serving.refusals import HEADERS

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def server():
    with hostile.target() as server:
        yield server


@pytest.mark.parametrize("requests", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_request_makes_the_server_fail(server, requests):
    tallies, failures = hostile.run(server, requests, seed=0)
    assert not failures, "\n".join(failures)
    assert all(tally.statuses.total() > requests / 30 for tally in tallies.values())
    assert tallies["values"].statuses[200] and tallies["images"].statuses[200]  # some changes are harmless


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in /proc")
def test_large_bodies_keep_neither_memory_nor_time():
    requests = hostile.large()
    assert all(hostile.LARGE - 1000 < len(request.data) < hostile.LARGE + 1000 for request in requests.values())
    with hostile.target(hostile.LARGE) as server:
        failures = hostile.run_large(server, requests)
    assert not failures, "\n".join(failures)


def test_a_request_is_determined_by_its_number():
    assert hostile.attack(1, 2) == hostile.attack(1, 2) != hostile.attack(1, 3) != hostile.attack(2, 3)


def answer(status=422, text="expected a number", **changes):
    return Answer(status, {name.lower(): value for name, value in HEADERS.items()},
                  json.dumps({"error": text}).encode())._replace(**changes)


@pytest.mark.parametrize(("found", "problem"), [
    (answer(500), "status 500"), (Answer("hang"), "status hang"), (Answer("closed"), "no answer"),
    (answer(content=b"<html>"), "the error is not JSON with one text"), (answer(content=b'{"error": "a", "b": "c"}'),
                                                                       "the error is not JSON with one text"),
    (answer(text=""), "the error is not a short, printable text"),
    (answer(text="\x1b[2J"), "the error is not a short, printable text"),
    (answer(text="/tmp/model/config.json: not found"), "the error names a path"),
    (answer(text="Traceback (most recent call last)"), "the error names a path"),
    (answer(headers={}), f"the header {next(iter(HEADERS))} is missing"), (answer(), None), (answer(200), None)])
def test_faults_of_answers_are_found(found, problem):
    assert hostile.fault(Attack(b""), found) == problem


def test_only_a_request_that_may_be_incomplete_may_get_no_answer():
    assert hostile.fault(Attack(b"", complete=False), Answer("closed")) is None


def test_replaced_workers_and_tracebacks_are_failures(monkeypatch):
    class Broken:
        port, lines = 0, ["serving"]
        pids = iter(([1], [2]))

        def workers(self):
            self.lines = [*self.lines, "ValueError: no"]
            return next(self.pids)

    answers = iter((b"a", b"b"))
    monkeypatch.setattr(hostile, "known", lambda server: next(answers))
    monkeypatch.setattr(hostile, "send", lambda port, request: Answer("closed"))
    monkeypatch.setattr(hostile, "KINDS", {"sizes": hostile.sizes})
    failures = hostile.run(Broken(), 1, seed=5)[1]
    assert failures[0].startswith("no answer: python tests/hostile.py --seed 5 --only 0")
    assert "another answer" in failures[1]
    assert failures[2:] == ["workers were replaced", "log: ValueError: no"]
