"""Weight and activation formats by the names that users write."""

from __future__ import annotations

from kernelforge_runtime.dtypes import F16, F32, NF4, Q8, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.weight_formats import (
    WEIGHT_FORMATS,
    WeightFormats,
    parse_formats,
    weight_format,
)

__all__ = [
    "ACTIVATION_FORMATS",
    "WEIGHT_FORMATS",
    "activation_format",
    "formats_of",
    "usual_weights",
    "weight_format",
]
ACTIVATION_FORMATS: dict[str, DType] = {d.name: d for d in (F32, F16)}


def formats_of(
    config: ModelConfig, weights: str | None, quant: str | None, otherwise: str = "f16"
) -> WeightFormats:
    """The formats of a model's weights; see `weight_formats` for how they are written.

    Args:
        config: of the model.
        weights: a format for everything, or for each of its parts.
        quant: formats of parts, which go with it.
        otherwise: see `usual_weights`.

    Raises:
        ModelError: what is asked makes no sense, or not for this model.
    """
    usual = weight_format(usual_weights(config, otherwise))
    return parse_formats(weights or None, quant or None).of(config.layers, usual)


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
