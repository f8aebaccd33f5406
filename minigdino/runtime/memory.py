"""Reuse of the memory of temporary arrays during a forward pass; see _ext/memory.pyx."""

from __future__ import annotations

try:
    from .._ext.memory import reused
except ImportError:  # not compiled: use NumPy's default allocator
    from contextlib import nullcontext as reused

__all__ = ["reused"]
