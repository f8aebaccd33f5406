# cython: language_level=3
"""Allocator that reuses the memory of large temporary arrays.

Every layer allocates temporaries of several megabytes and frees them. The default allocator returns such memory to the
operating system, and the next allocation obtains new pages. Obtaining a page takes longer than computing on it. This
allocator, which NumPy can set per thread, caches freed blocks during a forward pass and frees them at its end.
Blocks in use and cached blocks together never exceed the most that was in use at once, so the cache does not raise the
peak.
"""

import os

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strcpy
from cpython.pycapsule cimport PyCapsule_New
cimport numpy as np

np.import_array()

cdef extern from *:
    """
    #if defined(__linux__)
    #include <stdint.h>
    #include <sys/mman.h>
    /* Request 2 MB pages where a block contains whole ones: obtaining one replaces obtaining 512. May fail. */
    static void prefer_large_pages(void *start, size_t size) {
        const uintptr_t page = (uintptr_t)1 << 21, first = ((uintptr_t)start + page - 1) & ~(page - 1);
        const uintptr_t last = ((uintptr_t)start + size) & ~(page - 1);
        if (last > first)
            madvise((void *)first, last - first, MADV_HUGEPAGE);
    }
    #else
    static void prefer_large_pages(void *start, size_t size) {}
    #endif
    #if defined(_MSC_VER)
    static __declspec(thread) int passes_of_this_thread;
    #else
    static __thread int passes_of_this_thread;
    #endif
    """
    void prefer_large_pages(void *start, size_t size) noexcept nogil
    int passes_of_this_thread  # forward passes that it is inside of

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept nogil
        void *(*calloc)(void *ctx, size_t n, size_t size) noexcept nogil
        void *(*realloc)(void *ctx, void *pointer, size_t size) noexcept nogil
        void (*free)(void *ctx, void *pointer, size_t size) noexcept nogil
    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object handler)

cdef enum:
    LINE = 64  # bytes of a cache line; every array starts at a line, for aligned vector loads
    SLOTS = 64  # maximum number of cached blocks
    MIN_SIZE = 1 << 18  # bytes; the default allocator caches smaller blocks

cdef struct Block:
    char *start  # the pointer that malloc returned
    size_t size

# NumPy holds the interpreter lock when it calls an allocator, so no other lock is needed. The functions are `nogil`
# nevertheless: they may run while an exception is in flight, which any Python operation would clear.
cdef Block cached[SLOTS]  # oldest first
cdef int n_cached = 0, n_passes = 0  # n_passes: of all threads
# of blocks of at least MIN_SIZE; the most since the cache was emptied
cdef size_t bytes_cached = 0, bytes_used = 0, most_used = 0


cdef void remove(int slot) noexcept nogil:
    """Remove a block from the cache, without freeing it."""
    global n_cached, bytes_cached
    cdef int i
    bytes_cached -= cached[slot].size
    n_cached -= 1
    for i in range(slot, n_cached):
        cached[i] = cached[i + 1]


cdef void free_oldest() noexcept nogil:
    free(cached[0].start)
    remove(0)


cdef void *allocate(void *ctx, size_t size) noexcept nogil:
    """Return the smallest cached block of size to 1.5 * size bytes, else a new block."""
    global bytes_used, most_used
    cdef int i, best = -1
    cdef char *start
    cdef char *array
    if size >= MIN_SIZE:
        for i in range(n_cached):
            if size <= cached[i].size <= size + size // 2 and (best < 0 or cached[i].size < cached[best].size):
                best = i
    if best >= 0:
        start, size = cached[best].start, cached[best].size
        remove(best)
    else:
        while n_cached and size >= MIN_SIZE and bytes_used + bytes_cached + size > most_used:
            free_oldest()
        start = <char *> malloc(size + 2 * LINE) if size <= <size_t> -1 - 2 * LINE else NULL
        if start == NULL:
            return NULL
        prefer_large_pages(start, size)
    if size >= MIN_SIZE:
        bytes_used += size
        most_used = max(most_used, bytes_used)
    # the cache line before the array stores its Block
    array = <char *> ((<size_t> start // LINE + 2) * LINE)
    (<Block *> (array - LINE))[0] = Block(start, size)
    return array


cdef void *allocate_zeros(void *ctx, size_t n, size_t size) noexcept nogil:
    cdef void *array
    if size and n > (<size_t> -1 - 2 * LINE) // size:
        return NULL
    array = allocate(ctx, n * size)
    if array != NULL:
        memset(array, 0, n * size)
    return array


cdef void release(void *ctx, void *array, size_t size) noexcept nogil:
    global n_cached, bytes_cached, bytes_used
    cdef Block block
    if array == NULL:
        return
    block = (<Block *> (<char *> array - LINE))[0]
    if block.size >= MIN_SIZE:
        bytes_used -= block.size
    if n_passes == 0 or block.size < MIN_SIZE:
        free(block.start)
        return
    if n_cached == SLOTS:
        free_oldest()
    cached[n_cached] = block
    n_cached += 1
    bytes_cached += block.size


cdef void *resize(void *ctx, void *array, size_t size) noexcept nogil:
    cdef void *larger = allocate(ctx, size)
    if larger != NULL and array != NULL:
        memcpy(larger, array, min(size, (<Block *> (<char *> array - LINE)).size))
        release(ctx, array, 0)
    return larger


cdef PyDataMem_Handler handler
strcpy(handler.name, b"minigdino")
handler.version = 1
handler.allocator = PyDataMemAllocator(NULL, allocate, allocate_zeros, resize, release)
cdef object capsule = PyCapsule_New(&handler, "mem_handler", NULL)


cdef void empty_cache() noexcept nogil:
    global most_used
    while n_cached:
        free_oldest()
    most_used = bytes_used


def _forget_other_threads():
    """In a forked child: the threads of other passes do not exist there"""
    global n_passes
    n_passes = passes_of_this_thread
    if n_passes == 0:
        empty_cache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class reused:
    """Context manager in which new NumPy arrays reuse freed memory: `with reused(): ...`

    It affects the calling thread and the helper threads of its loops. The cache is emptied whenever a thread leaves, so
    that it cannot keep for ever what the largest of overlapping forward passes needed.
    """

    def __enter__(self):
        global n_passes, passes_of_this_thread
        self.previous = PyDataMem_SetHandler(capsule)
        n_passes += 1
        passes_of_this_thread += 1

    def __exit__(self, *error):
        global n_passes, passes_of_this_thread
        PyDataMem_SetHandler(self.previous)
        n_passes -= 1
        passes_of_this_thread -= 1
        empty_cache()


def cached_bytes():
    """Number of bytes in the cache."""
    return bytes_cached
