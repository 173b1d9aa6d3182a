"""Adapters: LoRA, PiSSA and DiSHA files that are merged into a model while it is read."""

from kernelforge_runtime.weights.adapters.asked import Adapter, as_adapters, parse_adapter
from kernelforge_runtime.weights.adapters.merged import MergedCheckpoint, open_model

__all__ = ["Adapter", "MergedCheckpoint", "as_adapters", "open_model", "parse_adapter"]
