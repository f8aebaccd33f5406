"""How the models learn: gradients through the functions of `minigdino.network`."""
