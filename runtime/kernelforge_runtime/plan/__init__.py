"""Dispatches recorded once into a plan that is submitted as often as wanted."""

from kernelforge_runtime.plan.arena import Arena
from kernelforge_runtime.plan.dispatch import BufferLike, Dispatch
from kernelforge_runtime.plan.plan import Plan

__all__ = ["Arena", "BufferLike", "Dispatch", "Plan"]
