"""What weight formats cost and save: one text, one model, each format in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kernelforge.cli.evaluation.text import TextScore, score_text
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.int8_dot import Int8Report
from kernelforge_runtime.models.survey import Survey
from kernelforge_runtime.ops.weight_layout import choose_layouts
from kernelforge_runtime.text import Tokenizer
from kernelforge_runtime.weights import open_checkpoint

ROUNDED = "+int8"
"""Behind a format's name: with inputs of products rounded to int8."""


@dataclass(frozen=True)
class FormatScore:
    """One format.

    Attributes:
        weights: its name.
        score: of the text.
        held_bytes: of the weights, as uploaded; on the cpu as NumPy holds them.
        computed_bytes: the same from the file's shapes and the format alone; None on the cpu, where
            NumPy keeps some matrices in float32.
        int8: what came of int8 dot products, where they were asked for.
    """

    weights: str
    score: TextScore
    held_bytes: int
    computed_bytes: int | None
    int8: Int8Report | None = None

    def worse_percent(self, than: FormatScore) -> float:
        """By how much the perplexity is above another's."""
        return 100 * (self.score.perplexity / than.score.perplexity - 1)


def score_formats(
    path: str,
    load: Callable[[str], Model | Reference],
    formats: Sequence[str],
    tokenizer_of: Callable[[int], Tokenizer],
    data: bytes,
    chunk: int | None = None,
) -> list[FormatScore]:
    """Scores a text in each format; one model is loaded at a time.

    Args:
        path: of the model.
        load: loads it in a format.
        formats: names.
        tokenizer_of: the tokenizer for a vocabulary's size.
        data: the text.
        chunk: tokens per step; what is usual where None.

    Raises:
        ModelError: the text is too short, or there is no such format.
    """
    found = []
    for name in formats:
        with load(name) as model:
            label = model.formats.name + (ROUNDED if name.endswith(ROUNDED) else "")
            held, computed = model.weight_bytes, _computed(path, model)
            score = score_text(model, tokenizer_of(model.config.vocab), data, chunk)
            int8 = model.int8 if isinstance(model, Model) else None
        found.append(FormatScore(label, score, held, computed, int8))
    return found


def _computed(path: str, model: Model | Reference) -> int | None:
    if not isinstance(model, Model):
        return None
    kernels, activations = model.kernels, model.activations

    def layouts_of(form: DType, rows: int, k: int) -> Layouts:
        return choose_layouts(kernels, form, rows, k, activations)

    with open_checkpoint(path) as checkpoint:
        survey = Survey(checkpoint)
    limit = model.device.info.max_storage_buffer
    return survey.device_nbytes(model.formats, limit, layouts_of)


HEADS = ("weights", "perplexity", "change %", "bits per byte", "MB held", "MB computed", "tok/s")


def rows(found: Sequence[FormatScore]) -> list[list[str]]:
    """A row of each format, changes in relation to the first."""
    return [
        [
            one.weights,
            f"{one.score.perplexity:.4f}",
            f"{one.worse_percent(found[0]):+.2f}",
            f"{one.score.bits_per_byte:.4f}",
            f"{one.held_bytes / 1e6:.3f}",
            "-" if one.computed_bytes is None else f"{one.computed_bytes / 1e6:.3f}",
            f"{one.score.tokens / one.score.seconds:.0f}",
        ]
        for one in found
    ]


def documents(found: Sequence[FormatScore]) -> list[dict[str, Any]]:
    """The same for --json."""
    return [
        {
            "weights": one.weights,
            **vars(one.score),
            "bits_per_byte": one.score.bits_per_byte,
            "perplexity": one.score.perplexity,
            "worse_percent": one.worse_percent(found[0]),
            "weight_bytes": one.held_bytes,
            "computed_weight_bytes": one.computed_bytes,
            **({} if one.int8 is None else {"int8_dot": vars(one.int8)}),
        }
        for one in found
    ]
