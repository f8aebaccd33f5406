# cython: language_level=3
"""Vector instruction sets that this CPU and its operating system support."""

cdef extern from *:
    """
    #if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
    #define HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    #define HAS_AVX512 (HAS_AVX2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") \
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") \
        && __builtin_cpu_supports("avx512vl"))
    #else
    #define HAS_AVX2 0
    #define HAS_AVX512 0
    #endif

    #if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
    #include <cpuid.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int may_use_tiles(void) {
        enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
        unsigned a, b, c, d;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE)
            && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
    }
    static int has_pairs(void) {
        enum { AVX512_BF16 = 1 << 5 };
        unsigned a, b, c, d;
        return HAS_AVX512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX512_BF16);
    }
    static int is_from_amd(void) { return __builtin_cpu_is("amd"); }
    #else
    static int may_use_tiles(void) { return 0; }
    static int has_pairs(void) { return 0; }
    static int is_from_amd(void) { return 0; }
    #endif
    """
    bint HAS_AVX2
    bint HAS_AVX512
    bint may_use_tiles()
    bint has_pairs()
    bint is_from_amd()


def levels():
    """Folders with compiled twins that this CPU can run, best first; "" has the twins for any CPU."""
    return (["avx512"] if HAS_AVX512 else []) + (["avx2"] if HAS_AVX2 else []) + [""]


def tiles():
    """Whether this process may use tile instructions (AMX).

    Linux gives a process the permission when it asks for it here, because tiles add 8 KB to the state of each thread
    that uses them. Later threads and children of the process have the permission, too.
    """
    return may_use_tiles()


def pairs(even_if_slow=False):
    """Whether this CPU has dot products of pairs (AVX512-BF16) that are faster than float32.

    On AMD's CPUs, they do twice the multiplications of float32 per cycle; on Intel's CPUs with AMX, half as many.
    """
    return has_pairs() and (even_if_slow or is_from_amd())
