"""How a matrix is to lie in memory: what its kernels want, and what can be had for it.

A matrix is kept once, though gemv and gemm both read it: kernels that want it otherwise are not
selected for it. Row-major can always be had, as the generic bundle holds nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.crossover import contenders, rounding_rivals
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.dtypes import F16, QUANTIZED, DType
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.layout import Layout, LayoutError, Moves, transform

ROW_MAJOR: Layouts = ()
MAX_GROWTH = 1.25
"""A layout may make a matrix this many times larger; a stranger's bundle may ask for more."""
SLACK = 1.03
"""Costs that are within this factor are as good as equal: prefill decides then."""
_PREFILL_TOKENS = 256
"""Of the prompt step that is looked at."""


def choose_layouts(
    kernels: KernelSet, form: DType, rows: int, k: int, activations: DType
) -> Layouts:
    """The layout of a matrix by the tuned medians: of a token of prompt for each that is decoded.

    It counts only if there is a kernel of either family for every type of activations that a step
    may bring, so that the choice never leaves a product without one.

    Args:
        kernels: which will read it.
        form: of the weights.
        rows: M, padded.
        k: K, padded.
        activations: of the model; with float16 some inputs and outputs are float32 still.

    Returns:
        As in Signature.layouts; row-major where nothing else is better or possible.
    """
    bits = (16, 32) if activations == F16 else (32,)
    steps = {
        family: [Problem(M=rows, K=k, S=1, T=tokens, X=x, Y=y) for x in bits for y in bits]
        for family, tokens in (("gemv", 1), ("gemm", _PREFILL_TOKENS))
    }
    offered = {o for b in kernels.bundles for f in steps for o in b.layouts(f, form.name)}
    possible = [ROW_MAJOR]
    for layouts in sorted(offered - {ROW_MAJOR}):
        served = all(
            _is_served(kernels, family, form, problem, layouts)
            for family, problems in steps.items()
            for problem in problems
        )
        if served and _fits(layouts, form, rows, k):
            possible.append(layouts)
    if kernels.rounding == "always":  # what is to be used must be able to read it
        wanted = [o for o in possible if _rounds(kernels, form, steps["gemv"], o)]
        possible = wanted or possible
    if len(possible) == 1:
        return possible[0]
    decode, prefill = (
        dict(zip(possible, map(sum, zip(*times, strict=True)), strict=True))
        for times in (
            [_times(kernels, family, form, problem, possible) for problem in problems]
            for family, problems in steps.items()
        )
    )
    cost = {o: decode[o] + prefill[o] / _PREFILL_TOKENS for o in possible}
    most = SLACK * min(cost.values())
    return min((o for o in possible if cost[o] <= most), key=lambda o: (prefill[o], decode[o], o))


def packed(weight: NDArray[np.generic], form: DType, layouts: Layouts) -> NDArray[np.generic]:
    """A row-major matrix in its layout; of q8 and nf4 its words, of which the layout knows nothing.

    Raises:
        LayoutError: the layout does not fit the matrix.
    """
    rows, columns = weight.shape
    target = _target(rows, columns * _per_element(form), form, layouts)
    if target is None:
        return weight
    return transform(weight, Layout.row_major(weight.shape), target)


@lru_cache(maxsize=64)
def row_moves(rows: int, k: int, form: DType, layouts: Layouts) -> Moves:
    """What `packed` does with so many rows, for one memory after the other; not of row-major.

    Raises:
        LayoutError: the layout does not fit.
    """
    target = _target(rows, k, form, layouts)
    if target is None:
        raise LayoutError("row-major rows are moved as they are")
    return Moves(Layout.row_major(target.shape), target, form.np.itemsize)


def row_pitch(rows: int, k: int, form: DType, layouts: Layouts) -> tuple[int, int]:
    """(rows whose memory is one piece, elements of memory that each of them takes).

    All rows are one piece where the layout does not begin with them.
    """
    target = _target(rows, k, form, layouts)
    if target is None:
        return 1, k
    found = re.match(r"M(?:/([0-9]+))? ", layouts[0][1])
    tall = int(found[1] or 1) if found else rows
    if found is None or rows % tall:
        return rows, -(-target.cosize // rows)
    return tall, target.axes[0][0].stride // tall


def packed_nbytes(rows: int, k: int, form: DType, layouts: Layouts) -> int:
    """Bytes of a matrix in its layout, gaps included.

    Raises:
        LayoutError: the layout does not fit the matrix.
    """
    target = _target(rows, k, form, layouts)
    return form.nbytes(rows * k if target is None else target.cosize * _per_element(form))


def _target(rows: int, k: int, form: DType, layouts: Layouts) -> Layout | None:
    """The layout of what is packed: weights, or words of q8 and nf4; None for row-major."""
    name = dict(layouts).get("weight")
    if name is None:
        return None
    return Layout.from_name(name, {"M": rows, "K": k}).words(1, _per_element(form))


def _per_element(form: DType) -> int:
    """Weights in one element of a packed array."""
    return 32 // form.bits if form in QUANTIZED else 1


def _fits(layouts: Layouts, form: DType, rows: int, k: int) -> bool:
    """Whether the loader can pack it so, without wasting memory."""
    if [binding for binding, _ in layouts] != ["weight"]:
        return False
    try:
        layout = Layout.from_name(layouts[0][1], {"M": rows, "K": k})
        layout.words(1, 32 // form.bits if form in QUANTIZED else 1)
    except LayoutError:
        return False
    return layout.cosize <= MAX_GROWTH * rows * k


def _is_served(
    kernels: KernelSet, family: str, form: DType, problem: Problem, layouts: Layouts
) -> bool:
    try:
        kernels.select(family, form.name, problem, layouts)
    except BundleError:
        return False
    return True


def _rounds(kernels: KernelSet, form: DType, problems: Sequence[Problem], layouts: Layouts) -> bool:
    """Whether all of decode's products are done by kernels that round their inputs."""
    chosen = (kernels.select("gemv", form.name, p, layouts).entry.family for p in problems)
    return {*chosen} <= {*rounding_rivals("gemv")}


def _times(
    kernels: KernelSet, family: str, form: DType, problem: Problem, possible: Sequence[Layouts]
) -> list[float]:
    """Ns in each layout at the nearest problem that was tuned in any of them; infinite if not here.

    0 where no kernel for such activations was tuned, which then says nothing of any layout.
    """
    for bundle in kernels.bundles:
        tuned = dict.fromkeys(
            found
            for other in bundle.layouts(family, form.name)
            for found, entry in bundle.problems(family, form.name, other, problem).items()
            if entry.median_ns
        )
        nearest = _nearest(problem, list(tuned))
        if nearest is None:
            continue
        rivals = contenders(family, problem, kernels.rounding != "never")
        times = []
        for layouts in possible:
            entries = (
                bundle.problems(name, form.name, layouts, problem).get(nearest) for name in rivals
            )
            known = [e.median_ns for e in entries if e and e.median_ns]
            times.append(float(min(known, default=math.inf)))
        return times
    return [0.0] * len(possible)


def _nearest(problem: Problem, tuned: Sequence[Problem]) -> Problem | None:
    found = min(tuned, key=problem.distance, default=None)
    return found if found is not None and math.isfinite(problem.distance(found)) else None
