"""Evaluation by the published protocols, and comparison of checkpoints with published results."""
