"""Comparison of checkpoints with published results."""
