"""Scripts run by a peer's own Python, by their path: nothing here may import KernelForge."""
