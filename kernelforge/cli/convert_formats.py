"""Which format each tensor of a converted file is in, so that the file loads as `--quant` would.

What a model is asked to keep in a format is written in it; what nothing names stays as the source
has it, for the formats that are usual where the file will be run. So do tensors that a model does
not keep as they are: vectors, low-rank factors, tables that stay in the file.
"""

from __future__ import annotations

from collections.abc import Iterable

from kernelforge_runtime.dtypes import F32, NF4, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.formats import own_formats
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.survey import Survey
from kernelforge_runtime.weight_formats import EMBEDDING, HEAD, WeightFormats, parse_formats
from kernelforge_runtime.weights import Checkpoint


def asked_formats(
    checkpoint: Checkpoint, texts: Iterable[str | None], stays: bool = True
) -> tuple[dict[str, str], str]:
    """What formats ask of a file's tensors.

    Args:
        checkpoint: the source.
        texts: what they ask together; see `weight_formats`.
        stays: whether a file that was converted so before stays in its formats elsewhere.

    Returns:
        Format by name of what is not kept as the source has it, and the same as the new file's
        metadata is to say it.

    Raises:
        ModelError: they make no sense, or not for this model.
    """
    config = recognise(checkpoint).read_config(checkpoint)
    spec, survey, layers = parse_formats(*texts), Survey(checkpoint), config.layers
    own = own_formats(checkpoint, config) if stays else parse_formats()
    # What nobody names follows the usual format: it is what differs between these two.
    fine, coarse = (spec.of(layers, usual, own.of(layers, usual)) for usual in (F32, NF4))
    other = survey.formats(coarse)
    wanted = {n: form.name for n, form in survey.formats(fine).items() if other[n] == form}
    if not wanted and spec.entries:
        raise ModelError(
            f"{checkpoint.path}: no tensor of it is kept in a format as {spec.text!r} asks"
        )
    return wanted, _note(fine, coarse, layers)


def _note(fine: WeightFormats, coarse: WeightFormats, layers: int) -> str:
    """The formats that both have, as users write them."""
    if fine.name == coarse.name:
        return fine.name
    runs: list[tuple[int, int, DType]] = []
    for i in range(layers):
        form = fine.matrix(i)
        if form != coarse.matrix(i):
            continue
        if runs and runs[-1][1:] == (i - 1, form):
            runs[-1] = runs[-1][0], i, form
        else:
            runs.append((i, i, form))
    entries = [f"{a}:{form}" if a == b else f"{a}-{b}:{form}" for a, b, form in runs]
    if fine.matrix(None) == coarse.matrix(None):
        entries.append(f"{HEAD}:{fine.matrix(None)}")
    if fine.table == coarse.table:
        entries.append(f"{EMBEDDING}:{fine.table}")
    return ",".join(entries)
