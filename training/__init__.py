"""Training of the embedded checkpoint: synthetic scenes, loss, schedule and evaluation."""
