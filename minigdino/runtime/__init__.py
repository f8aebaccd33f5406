"""The execution environment: kernels, devices, threads and memory; and tools that report and measure it."""
