"""Published checkpoints: geometry, tensor names and shapes, weight files, downloads from the Hugging Face hub."""
