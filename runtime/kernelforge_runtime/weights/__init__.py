"""Model files: reading `.pth` and `.safetensors` without torch, and packing weights for kernels."""

from kernelforge_runtime.weights.checkpoint import Checkpoint, check_finite, open_checkpoint

__all__ = ["Checkpoint", "check_finite", "open_checkpoint"]
