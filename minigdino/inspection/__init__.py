"""Looking into a forward pass from outside."""
