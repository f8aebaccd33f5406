"""Detection in many images: parts of a list, processes, and files that are put together."""
