"""RWKV models: one file per version, found by name; the one that knows a checkpoint runs it."""

from kernelforge_runtime.models.base import ModelConfig, ModelFile
from kernelforge_runtime.models.hidden import Hidden, Magnitudes
from kernelforge_runtime.models.load_model import load_model
from kernelforge_runtime.models.model import Model
from kernelforge_runtime.models.reference import Reference, load_reference
from kernelforge_runtime.models.registry import recognise

__all__ = [
    "Hidden",
    "Magnitudes",
    "Model",
    "ModelConfig",
    "ModelFile",
    "Reference",
    "load_model",
    "load_reference",
    "recognise",
]
