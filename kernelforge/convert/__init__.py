"""Model files in, safetensors out."""

from kernelforge.convert.checkpoint import Converted, convert_checkpoint

__all__ = ["Converted", "convert_checkpoint"]
