"""Keeps a good variant for every layout of the operands, and for all sizes, beside the fastest.

A matrix is kept in one layout, though several families read it: which one that is shows only when
all of them are measured. And what is fastest may be right for multiples of a tile only: then
something must do the rest.

A search measures most where it is fast, and of another layout often nothing but a random draw. So
what it found fastest is tried in every layout, and then what lies beside the best of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import Measurement
from kernelforge.tune.encoded import Encoded, Floats, Ints
from kernelforge.variant import Variant
from kernelforge_runtime.abi.signature import Layouts, Signature
from kernelforge_runtime.dtypes import DType

ORIGIN = "layout"
"""Of the trials made for this; see `Measurement`."""
TRIES = 2
"""Of a layout in which the winner's parameters fail, so many of the configurations next to them."""
SPARE = 10
"""Of so many trials one, for the neighbours of what is best in the other layouts."""
PART = 4
"""Of so many trials one at the most is kept for all of this."""
SHARE = 0.15
"""Of a problem's seconds, kept for the layouts that the search did not choose."""

Kind = tuple[Layouts, bool]


def layouts_of(family: KernelFamily, precision: DType, measured: Measurement) -> Layouts:
    """How the measured variant wants its operands to lie in memory."""
    return signature_of(family, precision, measured).layouts


def kind_of(signature: Signature) -> Kind:
    """What only one of is needed: a layout, and whether it serves some sizes only."""
    return signature.layouts, signature.is_limited


def with_every_layout(
    family: KernelFamily,
    precision: DType,
    finalists: Sequence[Measurement],
    found: Sequence[Measurement],
) -> list[Measurement]:
    """The finalists, and behind them the best of each layout that serves all sizes."""
    chosen = list(finalists)
    signatures = [signature_of(family, precision, m) for m in chosen]
    have = {s.layouts for s in signatures if not s.is_limited}
    for measurement in sorted((m for m in found if m.ok), key=lambda m: m.time_ns):
        signature = signature_of(family, precision, measurement)
        if signature.layouts not in have and not signature.is_limited:
            have.add(signature.layouts)
            chosen.append(measurement)
    return chosen


def signature_of(family: KernelFamily, precision: DType, measured: Measurement) -> Signature:
    """The measured variant's signature."""
    params = family.space.normalise(Variant.parse(measured.variant).values)
    return family.signature(precision, params)


class LayoutTrials:
    """Which configurations to try so that every layout has a good one, for all sizes.

    A function of what was tried alone, so that a resumed search or a second worker comes to the
    same decision.

    Args:
        family: what is tuned.
        precision: in which precision.
        configs: the valid ones; numbers below are of these.
    """

    def __init__(
        self, family: KernelFamily, precision: DType, configs: Sequence[Mapping[str, Any]]
    ) -> None:
        self._encoded = Encoded(configs)
        self._kinds = [kind_of(family.signature(precision, params)) for params in configs]
        members: dict[Kind, list[int]] = {}
        for index, kind in enumerate(self._kinds):
            if not kind[1]:
                members.setdefault(kind, []).append(index)
        self._members = {kind: np.array(found) for kind, found in sorted(members.items())}

    @property
    def several(self) -> bool:
        """Whether there is more than one layout."""
        return len({*self._kinds}) > 1 and bool(self._members)

    @property
    def others(self) -> int:
        """How many layouts there are beside the winner's, at least."""
        return max(0, len(self._members) - 1)

    @property
    def most(self) -> int:
        """Trials that `missing` asks for at the most, as long as the winner stays the same."""
        return TRIES * len(self._members)

    def kept(self, trials: int) -> int:
        """How many of a study's trials the search leaves for this; none where it tries them all."""
        if not self.several or trials >= len(self._kinds):
            return 0
        return min(max(1, self.others) + trials // SPARE, trials // PART)

    def missing(self, seen: Mapping[int, float | None]) -> int | None:
        """The winner in a layout in which it was not tried, or what is nearest to it there.

        Args:
            seen: index -> time of everything tried; inf for a failure, None while running.

        Returns:
            None where every layout has it, or nothing was right yet.
        """
        winner = _fastest(seen)
        if winner is None:
            return None
        for kind, members in self._members.items():
            if kind == self._kinds[winner]:
                continue
            for index in self._nearest(members, winner)[:TRIES]:
                if index not in seen:
                    return index
                time = seen[index]
                if time is None or math.isfinite(time):
                    break
        return None

    def neighbour(self, seen: Mapping[int, float | None]) -> int | None:
        """What differs in one parameter, by a step if it is ordered, from the best of a layout.

        Of the layouts other than the winner's, which the search looked at; that first of which the
        fewest neighbours were tried, of such the fastest.
        """
        winner = _fastest(seen)
        found: list[tuple[int, float, int]] = []
        for kind, members in self._members.items():
            best = _fastest({i: seen[i] for i in members.tolist() if i in seen})
            if best is None or winner is None or kind == self._kinds[winner]:
                continue
            beside = self._beside(members, best)
            left = [index for index in beside if index not in seen]
            if left:
                found.append((len(beside) - len(left), seen[best] or 0.0, left[0]))
        return min(found)[2] if found else None

    def _nearest(self, members: Ints, to: int) -> list[int]:
        changes, apart = self._encoded.changes(members, to), self._apart(members, to)
        return [int(i) for i in members[np.lexsort((members, apart, changes))]]

    def _beside(self, members: Ints, to: int) -> list[int]:
        codes = self._encoded.codes
        steps = np.abs(codes[members] - codes[to])
        ordinal = np.array(self._encoded.ordinal, np.bool_)
        near = ((steps > 0).sum(axis=1) == 1) & (np.where(ordinal, steps, 0).max(axis=1) <= 1)
        beside = members[near]
        return [int(i) for i in beside[np.lexsort((beside, self._apart(beside, to)))]]

    def _apart(self, members: Ints, to: int) -> Floats:
        apart: Floats = self._encoded.distances(members, np.array([to])).sum(axis=(0, 2))
        return apart


def _fastest(seen: Mapping[int, float | None]) -> int | None:
    good = {i: t for i, t in seen.items() if t is not None and math.isfinite(t)}
    return min(good, key=lambda i: (good[i], i), default=None)
