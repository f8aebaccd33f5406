"""Compiled twins of the formulas in minigdino/, by the same names."""
