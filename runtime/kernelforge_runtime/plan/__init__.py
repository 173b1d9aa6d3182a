"""Dispatches recorded once into a plan that is submitted as often as wanted."""

from kernelforge_runtime.plan.arena import Arena
from kernelforge_runtime.plan.dispatch import BufferLike, Dispatch
from kernelforge_runtime.plan.plan import Plan
from kernelforge_runtime.plan.trial import open_kernels

__all__ = ["Arena", "BufferLike", "Dispatch", "Plan", "open_kernels"]
