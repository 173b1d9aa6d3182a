"""KernelForge: the toolkit that renders, compiles, tunes and packs Vulkan kernels."""

__version__ = "0.1.0"
