"""What the layers run on: kernels, devices, threads, memory; and what a machine makes of it."""
