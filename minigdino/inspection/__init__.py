"""Inspection of a forward pass, without hooks in the network."""
