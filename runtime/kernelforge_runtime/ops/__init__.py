"""The vocabulary that models are written in, and the two op sets that speak it."""

from kernelforge_runtime.ops.numpy_ops import NumpyOps
from kernelforge_runtime.ops.vocabulary import Activation, OpSet, Part, TensorName, Weight
from kernelforge_runtime.ops.vulkan_ops import VulkanOps

__all__ = ["Activation", "NumpyOps", "OpSet", "Part", "TensorName", "VulkanOps", "Weight"]
