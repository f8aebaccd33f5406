"""The paper: every stage of the network as a pure function over arrays. Imports NumPy and `runtime.kernels` only.

Docstrings list the inputs of a function. All other arguments are tensors of the checkpoint, under their names in the
tree of `checkpoints.names`, or values of its config.
"""

# Modules in reading order: the model, the stages in the paper's order, each before its parts, then the
# losses and what several modules use.
LAYERS = ("model", "swin", "bert", "phrases", "enhancer", "fusion", "deformable", "queries", "decoder", "losses",
          "matching", "boxes", "ops")
