"""Reuse of the memory of temporary arrays during a forward pass; see _ext/memory.pyx."""

from __future__ import annotations

from contextlib import nullcontext

from .._ext.instruction_sets import load

__all__ = ["reused"]

reused = load("minigdino._ext.memory:reused") or nullcontext  # not compiled: NumPy's default allocator
