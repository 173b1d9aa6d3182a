"""A set of configurations as numbers, for the models that choose among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Encoded:
    """What differs between configurations, parameter by parameter.

    Attributes:
        codes: [n, p] index of each value among the parameter's sorted values.
        apart: of each parameter, [values, values] how far two values are from each other, 0..1:
            along a line for numbers (log scale where they span a factor of four), 1 between any
            two different words.
        ordinal: [p] whether the values have an order.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]]) -> None:
        self.apart: list[Floats] = []
        self.ordinal: list[bool] = []
        codes = []
        for name in configs[0]:
            raw = [config[name] for config in configs]
            distinct = {_key(value): value for value in set(raw)}
            if len(distinct) == 1:
                continue
            numeric = all(isinstance(value, int | float) for value in distinct.values())
            values = sorted(distinct.values(), key=None if numeric else str)
            place = {_key(value): i for i, value in enumerate(values)}
            # By value first: to ask for the kind of every single one is what would take long.
            index = {value: place[_key(value)] for value in set(raw)}
            codes.append(np.fromiter(map(index.__getitem__, raw), np.int64, len(raw)))
            self.ordinal.append(numeric)
            if numeric:
                along = _scaled([float(value) for value in values])
                self.apart.append(np.abs(along[:, None] - along[None, :]))
            else:
                self.apart.append(1.0 - np.eye(len(values)))
        self.size = len(configs)
        self.codes: Ints = np.stack(codes, 1) if codes else np.zeros((self.size, 0), np.int64)

    @property
    def counts(self) -> list[int]:
        """[p] number of values of each parameter."""
        return [len(table) for table in self.apart]

    def distances(self, a: Ints, b: Ints) -> Floats:
        """[p, len(a), len(b)] distance per parameter between configurations a and b."""
        out = np.empty((len(self.apart), len(a), len(b)))
        for p, table in enumerate(self.apart):
            out[p] = table[np.ix_(self.codes[a, p], self.codes[b, p])]
        return out

    def changes(self, a: Ints, b: int) -> Ints:
        """[len(a)] in how many parameters each configuration differs from configuration b."""
        return np.asarray((self.codes[a] != self.codes[b]).sum(axis=1), np.int64)


def _key(value: Any) -> tuple[str, Any]:
    return ("n" if isinstance(value, int | float) else "s"), value


def _scaled(values: Sequence[float]) -> Floats:
    array = np.asarray(values, np.float64)
    if array.min() > 0 and array.max() >= 4 * array.min():
        array = np.log2(array)
    elif array.min() == 0 and array.max() > 4:
        array = np.log2(1.0 + array)
    return np.asarray((array - array.min()) / max(float(np.ptp(array)), 1e-12), np.float64)
