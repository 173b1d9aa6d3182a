"""Weight and activation formats by the names that users write."""

from __future__ import annotations

from kernelforge_runtime.dtypes import F16, F32, NF4, Q8, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.weight_formats import (
    FORMATS_KEY,
    WEIGHT_FORMATS,
    FormatSpec,
    WeightFormats,
    parse_formats,
    weight_format,
)
from kernelforge_runtime.weights import Checkpoint

__all__ = [
    "ACTIVATION_FORMATS",
    "WEIGHT_FORMATS",
    "activation_format",
    "formats_of",
    "own_formats",
    "weight_format",
]
ACTIVATION_FORMATS: dict[str, DType] = {d.name: d for d in (F32, F16)}


def formats_of(
    config: ModelConfig,
    weights: str | None,
    quant: str | None,
    otherwise: str = "f16",
    file: Checkpoint | None = None,
) -> WeightFormats:
    """The formats of a model's weights; see `weight_formats` for how they are written.

    Args:
        config: of the model.
        weights: a format for everything, or for each of its parts.
        quant: formats of parts, which go with it.
        otherwise: what everything is in where neither the file nor anybody says.
        file: that the weights are in; see `own_formats`.

    Raises:
        ModelError: what is asked makes no sense, or not for this model.
    """
    usual = F32 if config.f32_only else weight_format(otherwise)
    under = own_formats(file, config).of(config.layers, usual) if file is not None else None
    return parse_formats(weights or None, quant or None).of(config.layers, usual, under)


def own_formats(checkpoint: Checkpoint, config: ModelConfig) -> FormatSpec:
    """What a file's parts are kept in where nobody says: what it was converted to.

    A file of quantised matrices that says nothing is all in the format of its head.

    Raises:
        ModelError: what the file says makes no sense, or not for this model.
    """
    noted = checkpoint.metadata.get(FORMATS_KEY)
    if noted is None:
        quantised = config.dtype in (Q8.name, NF4.name)
        return parse_formats(config.dtype if quantised else None)
    try:
        spec = parse_formats(noted)
        spec.of(config.layers, F32)
    except ModelError as error:
        raise ModelError(
            f"{checkpoint.path}: its metadata {FORMATS_KEY} is damaged: {error}"
        ) from None
    return spec


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
