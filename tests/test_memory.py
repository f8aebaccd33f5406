"""The allocator that reuses memory during a forward pass."""

import gc
import os
import threading
import warnings

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from minigdino._ext import cpus, memory

MB = 1 << 20


def address(array):
    """Address of the array's first byte."""
    return array.__array_interface__["data"][0]


def test_a_new_array_reuses_freed_memory():
    with memory.reused():
        a = np.ones(MB, np.uint8)
        place = address(a)
        assert place % 64 == 0
        del a
        assert memory.cached_bytes() >= MB
        b = np.zeros(MB - 1000, np.uint8)
        assert address(b) == place
        assert not b.any()  # the reused memory held ones
    assert memory.cached_bytes() == 0


def test_an_array_can_outlive_the_context():
    with memory.reused():
        a = np.arange(MB)
    np.testing.assert_array_equal(a, np.arange(MB))
    del a
    assert memory.cached_bytes() == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=40))
def test_memory_in_use_and_in_the_cache_never_exceeds_the_most_in_use(steps):
    held, most = {}, 0
    with memory.reused():
        for slot, power in steps:
            held.pop(slot, None)
            held[slot] = np.empty(MB << power, np.uint8)  # only a block of the same size is reused
            used = sum(array.nbytes for array in held.values())
            most = max(most, used)
            assert used + memory.cached_bytes() <= most
        held.clear()
        assert memory.cached_bytes() <= most
        assert bool(steps) == bool(memory.cached_bytes())


def test_an_exception_in_flight_is_not_cleared():
    """Arrays are freed while an exception passes through their function, and the cache is then full."""

    def fail():
        arrays = [np.empty((i + 1) * 4 * MB, np.uint8) for i in range(12)]
        raise ValueError(len(arrays))

    with memory.reused():
        for _ in range(5):
            with pytest.raises(ValueError, match="12"):
                fail()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_frees_the_memory_of_its_passes():
    """Also where the fork happened while another thread is in a forward pass, which the child does not have."""
    entered, leave = threading.Event(), threading.Event()

    def other():
        with memory.reused():
            np.ones(MB, np.uint8)
            entered.set()
            leave.wait()

    def kept_after_a_pass():
        with memory.reused():
            np.ones(2 * MB, np.uint8)
        return memory.cached_bytes()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        if (child := os.fork()) == 0:
            os._exit(kept_after_a_pass() != 0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_impossible_sizes_are_refused():
    with memory.reused():
        for n in (2**62, 2**63 - 1):
            with pytest.raises((MemoryError, ValueError)):
                np.empty(n, np.uint8)
            with pytest.raises((MemoryError, ValueError)):
                np.zeros(n, np.uint8)


def test_other_threads_use_numpys_allocator():
    seen = {}

    def other():
        seen["other"] = np._core.multiarray.get_handler_name(np.ones(MB))

    with memory.reused():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert np._core.multiarray.get_handler_name(np.ones(MB)) == "minigdino"
    assert seen["other"] == np._core.multiarray.get_handler_name(np.ones(3)) == "default_allocator"


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3 * MB)), max_size=60))
def test_no_two_arrays_share_memory(steps):
    """Arrays are created, freed and resized; each keeps its values."""
    held = {}
    with memory.reused():
        for i, (slot, size) in enumerate(steps):
            if slot in held:
                value, array = held.pop(slot)
                assert (array[:: max(1, len(array) // 7)] == value).all()
                assert array[-1] == value
            if i % 3 != 2:
                held[slot] = i % 251, np.full(size, i % 251, np.uint8)
            elif i % 2:
                array = np.full(size, 7, np.uint8)
                array.resize(size + 1000, refcheck=False)
                assert array[size - 1] == 7
        for value, array in held.values():
            assert (array == value).all()


def test_a_forward_pass_leaves_no_reference_cycle():
    """A cycle would hold the arrays of a layer until a garbage collection."""
    model, pixels = tiny.model(), tiny.pixels(90, 120)
    model.forward(pixels, tiny.IDS)
    gc.collect()
    gc.disable()
    try:
        for threads in (1, 64):  # both divisions of the work
            cpus.limit(threads)
            model.forward(pixels, tiny.IDS)
        assert gc.collect() == 0
    finally:
        gc.enable()
        cpus.limit(None)
