"""Compiled twins of the NumPy functions in minigdino/network, under the same names."""
