# cython: language_level=3
"""Large arrays from memory that other large arrays have just left.

Every layer makes temporaries of megabytes and drops them. The system's allocator gives such memory back and takes fresh
pages the next time, and a page costs more to obtain than to compute on. NumPy lets a thread name its allocator: this one
keeps what is freed while a forward pass runs, and gives it all back at the end.
"""

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
    /* Ask for pages of 2 MB where a block has room for whole ones: one to obtain instead of 512. A refusal is no error. */
    static void prefer_large_pages(void *start, size_t size) {
        const uintptr_t page = (uintptr_t)1 << 21, first = ((uintptr_t)start + page - 1) & ~(page - 1);
        const uintptr_t last = ((uintptr_t)start + size) & ~(page - 1);
        if (last > first)
            madvise((void *)first, last - first, MADV_HUGEPAGE);
    }
    #else
    static void prefer_large_pages(void *start, size_t size) {}
    #endif
    """
    void prefer_large_pages(void *start, size_t size) noexcept

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept
        void *(*calloc)(void *ctx, size_t n, size_t size) noexcept
        void *(*realloc)(void *ctx, void *pointer, size_t size) noexcept
        void (*free)(void *ctx, void *pointer, size_t size) noexcept
    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object handler)

cdef enum:
    LINE = 64  # bytes of a cache line; arrays begin at one, which suits vector loads
    SLOTS = 32  # free blocks kept
    SMALL = 1 << 18  # bytes; below, the system's allocator keeps memory by itself
    MOST = 40 << 20  # bytes kept free at any time

cdef struct Block:
    char *start  # as malloc returned it
    size_t size

# NumPy calls an allocator with the interpreter held, so one thread at a time is here.
cdef Block kept[SLOTS]
cdef int n_kept = 0, n_users = 0
cdef size_t bytes_kept = 0


cdef void forget(int slot) noexcept:
    """Close the gap at a slot; the oldest block is in the first."""
    global n_kept, bytes_kept
    bytes_kept -= kept[slot].size
    n_kept -= 1
    for i in range(slot, n_kept):
        kept[i] = kept[i + 1]


cdef void *obtain(void *ctx, size_t size) noexcept:
    """The smallest kept block that is large enough, and not more than half too large; else a new one."""
    cdef int best = -1
    cdef char *start
    cdef char *array
    if size >= SMALL:
        for i in range(n_kept):
            if size <= kept[i].size <= size + size // 2 and (best < 0 or kept[i].size < kept[best].size):
                best = i
    if best >= 0:
        start, size = kept[best].start, kept[best].size
        forget(best)
    else:
        start = <char *> malloc(size + 2 * LINE)
        if start == NULL:
            return NULL
        prefer_large_pages(start, size)
    # the line before the array holds its block
    array = <char *> ((<size_t> start // LINE + 2) * LINE)
    (<Block *> (array - LINE))[0] = Block(start, size)
    return array


cdef void *obtain_zeros(void *ctx, size_t n, size_t size) noexcept:
    cdef void *array
    if size and n > (<size_t> -1 - 2 * LINE) // size:
        return NULL
    array = obtain(ctx, n * size)
    if array != NULL:
        memset(array, 0, n * size)
    return array


cdef void release(void *ctx, void *array, size_t size) noexcept:
    global n_kept, bytes_kept
    cdef Block block
    if array == NULL:
        return
    block = (<Block *> (<char *> array - LINE))[0]
    if n_users == 0 or block.size < SMALL or block.size > MOST:
        free(block.start)
        return
    while n_kept == SLOTS or bytes_kept + block.size > MOST:
        free(kept[0].start)
        forget(0)
    kept[n_kept] = block
    n_kept += 1
    bytes_kept += block.size


cdef void *resize(void *ctx, void *array, size_t size) noexcept:
    cdef void *larger = obtain(ctx, size)
    if larger != NULL and array != NULL:
        memcpy(larger, array, min(size, (<Block *> (<char *> array - LINE)).size))
        release(ctx, array, 0)
    return larger


cdef PyDataMem_Handler handler
strcpy(handler.name, b"minigdino")
handler.version = 1
handler.allocator = PyDataMemAllocator(NULL, obtain, obtain_zeros, resize, release)
cdef object capsule = PyCapsule_New(&handler, "mem_handler", NULL)


class reused:
    """`with reused(): ...` gives this thread's NumPy arrays, and those of the threads that help it with a loop, memory that
    is used again inside."""

    def __enter__(self):
        global n_users
        self.usual = PyDataMem_SetHandler(capsule)
        n_users += 1

    def __exit__(self, *error):
        global n_users
        PyDataMem_SetHandler(self.usual)
        n_users -= 1
        if n_users == 0:
            while n_kept:
                free(kept[0].start)
                forget(0)


def kept_bytes():
    """Free memory that is kept now."""
    return bytes_kept
