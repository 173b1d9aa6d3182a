"""Whether a model bears inputs rounded to int8: a trial run with and without, and a bound.

A block of 32 inputs shares a step of a 127th of its largest; where one of them is far larger than
the others, these are lost. Whether that matters is a property of the model, so it is measured: the
same few tokens, one by one as in decode, by the exact kernels and by those that round.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.bundle.crossover import rounding_rivals
from kernelforge_runtime.dtypes import Q8
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.formats import formats_of
from kernelforge_runtime.models.int8_dot import Int8Dot, Int8Report
from kernelforge_runtime.models.model import Model
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.weights import Checkpoint

_log = logging.getLogger(__name__)

_GIVEN, _CHOSEN = 4, 12
"""Tokens of the trial: from all over the vocabulary, then what the exact model goes on with."""


def refuse_misfits(checkpoint: Checkpoint, weights: str | None, quant: str | None) -> None:
    """Says before anything is loaded that a model cannot do it.

    Raises:
        ModelError: none of its weights are q8, or signs decide in it.
    """
    config = recognise(checkpoint).read_config(checkpoint)
    formats = formats_of(config, weights, quant, file=checkpoint)
    if Q8 not in formats.asked:
        raise ModelError(
            f"int8 dot products are of q8 weights, found {formats}: ask for q8 weights"
        )
    if config.f32_only:
        raise ModelError(
            f"{config.version} takes no int8 dot products: ROSA reads the sign of every value, and "
            "a rounded one may have another"
        )


def pass_gate(model: Model, asked: Int8Dot) -> Int8Report:
    """Runs the trial; the model rounds from here on.

    Args:
        model: loaded with kernels that round.
        asked: what for.

    Raises:
        ModelError: the logits are further off than the bound, or "always" found no kernel.
    """
    products, of = count_products(model)
    if not products:
        if asked.use == "always":
            raise ModelError(
                "no int8 dot product was found for this model's matrices: its bundles were made "
                "before there were any; make one anew (kernelforge build --generic, or "
                "tune --int8-dot)"
            )
        report = Int8Report(0, of, 0.0)
        _log.warning("%s", report)
        return report
    rounding = model.kernels
    model.use(rounding.with_rounding("never"))
    tokens, exact = _exact(model)
    model.use(rounding)
    error = relative_error(_logits(model, tokens), exact)
    if not error <= asked.bound:
        raise ModelError(
            f"int8 dot products put this model's logits off by {100 * error:.2g} % of their "
            f"spread, more than the bound of {100 * asked.bound:.2g} %: its inputs do not bear "
            "int8; load it without, or give a larger bound"
        )
    return Int8Report(products, of, error)


def count_products(model: Model) -> tuple[int, int]:
    """(those that round their inputs, all) of the products of q8 weights in a decode step."""
    rounding = rounding_rivals("gemv")
    entries = [call.selection.entry for call in model.calls(1, "last")]
    families = [e.family for e in entries if e.precision == Q8.name]
    return sum(family in rounding for family in families), len(families)


def relative_error(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Root mean square of the differences, over that of `exact` around each row's mean.

    Args:
        found: logits [T, V].
        exact: logits [T, V].
    """
    off = np.square(found.astype(np.float64) - exact).sum()
    spread = np.square(exact - exact.mean(-1, keepdims=True, dtype=np.float64)).sum()
    return math.sqrt(off / spread) if spread > 0 else math.inf * off if off else 0.0


def _exact(model: Model) -> tuple[list[int], NDArray[np.float32]]:
    """The trial's tokens, and the logits [T, V] of the model as it is."""
    state, rows = model.new_state(), []
    tokens = [(2 * i + 1) * model.config.vocab // (2 * _GIVEN) for i in range(_GIVEN)]
    for i in range(_GIVEN + _CHOSEN):
        logits, _ = model.forward(tokens[i : i + 1], state)
        rows.append(logits)
        if len(tokens) == i + 1:
            tokens.append(int(np.argmax(logits)))
    return tokens[: len(rows)], np.stack(rows)


def _logits(model: Model, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Logits [T, V] of the tokens one by one."""
    state = model.new_state()
    return np.stack([model.forward([token], state)[0] for token in tokens])
