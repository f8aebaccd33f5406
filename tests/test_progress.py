"""The progress of a run, on a terminal and in a log."""

import functools
import io
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_streams import copies, detect

from minigdino import detect_run, progress
from minigdino.progress import INTERVAL, Progress


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@given(times=st.lists(st.floats(0, 100), min_size=1, max_size=60), is_known=st.booleans())
def test_a_log_has_a_line_at_most_every_30_seconds(times, is_known):
    stream, clock = io.StringIO(), Clock()
    shown = Progress(stream, len(times) if is_known else None, clock)
    at, lines = [0.0], 0
    for seconds in times:
        clock.now += seconds
        shown.clear()
        shown.step()
        if (n := stream.getvalue().count("\n")) > lines:
            assert n == lines + 1 and clock.now - at[-1] >= INTERVAL
            at.append(clock.now)
            lines = n
        assert clock.now - at[-1] < INTERVAL  # else, a line was due
    shown.close()
    text = stream.getvalue()
    assert text.count("\n") == lines and "\r" not in text and "\033" not in text
    assert lines == 0 if sum(times) < INTERVAL else lines > 0


def test_a_line_of_a_log_has_the_time_left():
    stream, clock = io.StringIO(), Clock()
    shown = Progress(stream, 10_000, clock)
    for i in range(1, 121):
        clock.now = 0.61 * i
        shown.step()
    assert stream.getvalue() == ("50/10000 images, 0.61 s each, 1 h 41 min left\n"
                                 "100/10000 images, 0.61 s each, 1 h 41 min left\n")


def test_without_a_total_no_time_is_left():
    stream, clock = Terminal(), Clock()
    shown = Progress(stream, None, clock)
    for _ in range(2):
        clock.now += 0.5
        shown.clear()
        shown.step()
    shown.close()
    assert stream.getvalue() == "\r\033[K\r\033[K1 done, 0.50 s each\r\033[K\r\033[K2 done, 0.50 s each\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_run_without_images_shows_nothing(stream):
    shown = Progress(stream := stream(), 0, Clock())
    shown.close()
    assert stream.getvalue() == ""


def test_a_run_of_many_images_writes_a_log(home, monkeypatch, capsys):
    copies(home, "slow", *(f"{i}.png" for i in range(7)))
    monkeypatch.setattr(detect_run, "Progress", functools.partial(Progress, clock=itertools.count(0, 10).__next__))
    status, err = detect(home, monkeypatch, capsys, "slow", "cat")
    lines = err.splitlines()
    assert status == 0 and len(lines) == 2
    assert all(re.fullmatch(r"\d/7 images, 10\.00 s each, \d+ s left", line) for line in lines)
    monkeypatch.undo()
    status, err = detect(home, monkeypatch, capsys, "slow", "cat")
    assert (status, err) == (0, "")  # shorter than the interval
    assert progress.duration(59.6) == "60 s"
