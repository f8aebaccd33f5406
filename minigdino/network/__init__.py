"""The paper: every stage of the network as a pure function over arrays. Imports NumPy and `runtime.kernels` only."""

# In reading order: the model on one page, the stages as the paper introduces them, each with the parts it is made of.
LAYERS = ("model", "swin", "bert", "phrases", "enhancer", "fusion", "deformable", "queries", "decoder", "boxes", "ops")
