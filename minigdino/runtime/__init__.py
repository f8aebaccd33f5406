"""The execution environment (kernels, devices, threads, memory), and tools that report and measure it."""
