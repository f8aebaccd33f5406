"""How the embedded checkpoint was made: the drawn world, the loss, the training, the figures."""
