"""Precision of matrix products, where the processor has instructions for bfloat16.

Each float32 is split into parts, bfloat16 numbers whose sum it is (see tiles.h). The names are those of
`torch.set_float32_matmul_precision`.
"""

from contextvars import ContextVar

PARTS = {"highest": 3, "high": 2, "medium": 1}  # parts of a number: float32, about 16 bits, bfloat16
parts: ContextVar[int] = ContextVar("minigdino parts", default=PARTS["highest"])
