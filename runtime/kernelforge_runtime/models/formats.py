"""Weight and activation formats by the names that users write."""

from __future__ import annotations

from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig

WEIGHT_FORMATS: dict[str, DType] = {d.name: d for d in (F32, BF16, F16, Q8, NF4)}
ACTIVATION_FORMATS: dict[str, DType] = {d.name: d for d in (F32, F16)}


def weight_format(name: str) -> DType:
    """The format of this name.

    Raises:
        ModelError: there is none.
    """
    if name not in WEIGHT_FORMATS:
        raise ModelError(f"weight format {name!r}: there are {', '.join(WEIGHT_FORMATS)}")
    return WEIGHT_FORMATS[name]


def usual_weights(config: ModelConfig, otherwise: str = "f16") -> str:
    """What a model's weights are kept in where nobody says; a quantised file's as they are."""
    if config.dtype in (Q8.name, NF4.name):
        return config.dtype
    return "f32" if config.f32_only else otherwise


def activation_format(name: str, config: ModelConfig) -> DType:
    """The format of this name, if the model may be run in it.

    Raises:
        ModelError: there is none, or the model's signs decide and must not be rounded.
    """
    if name not in ACTIVATION_FORMATS:
        raise ModelError(f"activation format {name!r}: there are {', '.join(ACTIVATION_FORMATS)}")
    if config.f32_only and name != "f32":
        raise ModelError(
            f"{config.version} runs with f32 activations only, asked for {name}: ROSA reads the "
            "sign of every value, and a rounded one may have another"
        )
    return ACTIVATION_FORMATS[name]
