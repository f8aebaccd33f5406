"""Memory that the layers of a forward pass hand on to each other; _ext/memory.pyx says why."""

from __future__ import annotations

try:
    from .._ext.memory import reused
except ImportError:  # not compiled here: NumPy's own allocator does
    from contextlib import nullcontext as reused

__all__ = ["reused"]
