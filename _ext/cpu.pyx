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
    """
    bint HAS_AVX2
    bint HAS_AVX512


def levels():
    """Folders with compiled twins that this CPU can run, best first; "" has the twins for any CPU."""
    return (["avx512"] if HAS_AVX512 else []) + (["avx2"] if HAS_AVX2 else []) + [""]
