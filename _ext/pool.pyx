# cython: language_level=3
"""Thread pool for the rows of a loop. Compiled loops release the interpreter lock, so threads run them in parallel.

Threads wait on C locks, which use no CPU time and which no signal interrupts. An exception of a signal handler, such as
KeyboardInterrupt, is therefore raised before or after a loop, or in a loop body that is Python code.

After a fork, the child has no helper threads. It starts new ones. A signal handler or a loop body may fork inside a
loop: the fork waits until the helpers of that loop have finished. The child could not finish their ranges for them,
because it would process some rows twice, which changes the result of a loop that works in place.
"""

import os
import sys
from contextvars import copy_context

from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_get_thread_ident, PyThread_start_new_thread, PyThread_type_lock,
)
from cpython.ref cimport Py_DECREF, Py_INCREF

from minigdino._ext import cpus

RANGES_PER_THREAD = 2  # so that other threads can process those of a delayed thread

cdef extern from *:
    """
    #if defined(_MSC_VER)
    static __declspec(thread) int inside_a_loop;
    #else
    static __thread int inside_a_loop;
    #endif
    """
    int inside_a_loop  # of this thread

cdef PyThread_type_lock loop_lock = PyThread_allocate_lock()  # a loop uses all threads, so loops run one at a time
cdef Loop current = None  # the loop that holds the lock
cdef list helpers = []


cdef void wait_for(PyThread_type_lock lock) noexcept:
    """Acquire a lock. A signal does not end the wait"""
    with nogil:
        PyThread_acquire_lock(lock, WAIT_LOCK)


cdef class Helper:
    """A thread that takes part in one loop after the other. Both locks are held while it waits.

    If its work is taken back before it wakes up, it wakes up once more than it has work.
    """
    cdef PyThread_type_lock start, finished
    cdef object work  # until the thread takes it; a loop that ends before takes it back

    def __cinit__(self):
        self.start, self.finished = PyThread_allocate_lock(), PyThread_allocate_lock()
        PyThread_acquire_lock(self.start, NOWAIT_LOCK)
        PyThread_acquire_lock(self.finished, NOWAIT_LOCK)
        # not by Python's function, which gevent and eventlet replace: their threads cannot run while this one waits
        Py_INCREF(self)
        if PyThread_start_new_thread(run_helper, <void *> self) == <unsigned long> -1:
            Py_DECREF(self)
            raise RuntimeError("the system starts no more threads")

    def __dealloc__(self):
        PyThread_free_lock(self.start)
        PyThread_free_lock(self.finished)

    cdef run(self):
        global inside_a_loop
        inside_a_loop = True
        while True:
            wait_for(self.start)
            work, self.work = self.work, None
            if work is None:  # taken back
                continue
            try:
                work()
            except BaseException:  # out of memory before its first range; the other threads process all ranges
                pass
            work = None
            PyThread_release_lock(self.finished)


cdef void run_helper(void *helper) noexcept with gil:
    (<Helper> helper).run()


cdef class Loop:
    """The ranges of a loop. Each thread takes the next range when it is free."""
    cdef object body, error
    cdef list ranges, helpers
    cdef Py_ssize_t next
    cdef unsigned long caller  # the thread that called for_rows

    def __cinit__(self, body, list ranges):
        self.body, self.ranges, self.helpers, self.next, self.error = body, ranges, [], 0, None
        self.caller = PyThread_get_thread_ident()

    def work(self):
        """Process ranges until none is left, or one has failed"""
        cdef Py_ssize_t i
        try:
            while self.next < len(self.ranges):
                i = self.next
                self.next += 1
                self.body(*self.ranges[i])
        except BaseException as error:
            self.next = len(self.ranges)
            if self.error is None or not isinstance(error, Exception):  # KeyboardInterrupt, over a consequence of it
                self.error = error

    cdef wait_for_helpers(self):
        """Wait until no helper works. One that has not woken up finds no work, so there is no need to wait for it"""
        cdef Helper helper
        while self.helpers:
            helper = self.helpers.pop()
            if helper.work is None:
                wait_for(helper.finished)
            helper.work = None


def for_rows(loop, n, minimum=1):
    """Run a loop over n rows in several threads, and return when all rows are done.

    A loop inside a loop runs in the calling thread.

    The first exception in the loop is raised in the caller, after all threads have stopped.

    Args:
        loop: called as loop(first, last) for ranges of rows; the ranges cover 0..n once. The result of a row must not
            depend on the range that it is in, so that it does not depend on the number of threads.
        n: number of rows.
        minimum: minimum number of rows per range; a smaller range is not worth a call, or does not fill a vector.
    """
    global current, inside_a_loop
    # one range: no need to count; helpers cannot run while the interpreter ends
    cdef int threads = 1 if n // minimum < 2 or inside_a_loop or sys.is_finalizing() else cpus.count()
    cdef Py_ssize_t n_ranges = min(threads * RANGES_PER_THREAD, n // minimum)
    cdef Py_ssize_t i
    cdef Helper helper
    if threads == 1 or n_ranges < 2:
        loop(0, n)
        return
    if n_ranges > threads:
        n_ranges -= n_ranges % threads  # a multiple, so that no thread waits in the last round
    cdef Loop rows = Loop(loop, [(n * i // n_ranges, n * (i + 1) // n_ranges) for i in range(n_ranges)])
    inside_a_loop = True  # before the lock: a garbage collection below may run a destructor that runs a loop
    wait_for(loop_lock)
    current = rows
    try:
        # more threads than processors would not run at the same time
        for helper in _helpers(min(threads, n_ranges, cpus.affinity()) - 1):
            work = _in_this_context(rows.work)
            rows.helpers.append(helper)  # before it has work: from here on, nothing can fail
            helper.work = work
            PyThread_release_lock(helper.start)
        rows.work()
    finally:
        rows.wait_for_helpers()
        current = None
        PyThread_release_lock(loop_lock)
        inside_a_loop = False
    if rows.error is not None:
        raise rows.error


def _in_this_context(function):
    """The function, to be run with the settings of this thread, such as the mode of the kernels"""
    context = copy_context()
    return lambda: context.run(function)


cdef list _helpers(Py_ssize_t n):
    """n helpers, or fewer if the system starts no more threads"""
    while len(helpers) < n:
        try:
            helpers.append(Helper())
        except RuntimeError:  # at a limit of the system, or while the interpreter ends
            break
    return helpers[:n]


def _finish_helpers():
    """Before a fork inside a loop"""
    if current is not None and current.caller == PyThread_get_thread_ident():
        current.wait_for_helpers()


def _forget():
    """In a forked child: replace the locks, which may be held, and the helpers, which do not exist there"""
    global loop_lock, current, helpers, inside_a_loop
    loop_lock, helpers = PyThread_allocate_lock(), []
    if current is not None and current.caller == PyThread_get_thread_ident():  # the child finishes the loop
        PyThread_acquire_lock(loop_lock, NOWAIT_LOCK)
    else:
        current, inside_a_loop = None, False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_finish_helpers, after_in_child=_forget)
