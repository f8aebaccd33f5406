"""The twins as compiled for processors with AVX2 and FMA."""
