"""Comparing a model with published figures."""
