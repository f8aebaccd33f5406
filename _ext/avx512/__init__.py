"""The twins as compiled for processors with AVX-512 (F, BW, CD, DQ, VL)."""
