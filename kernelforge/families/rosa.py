"""rosa: for each token and stream, the symbol that followed the longest repeated suffix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge.traits.segments import filled_segments, owners, random_segments
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.rosa import NO_MATCH, SYMBOL_BITS, symbols_per_word
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType

PACKED, LAGS = "packed", "lags"
LANES, TOKENS = 8, 32


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    if p["FORM"] == PACKED:
        grid = Grid(x=(CeilDiv("S", p["WORKGROUP"] // p["LANES"]),), y=(CeilDiv("T"),))
        features: tuple[str, ...] = ("subgroup_clustered",)
    else:
        grid = Grid(x=(CeilDiv("S"),), y=(CeilDiv("T", p["TOKENS"]),))
        features = ("subgroup_arithmetic",)
    return Signature(
        bindings=(
            Binding("history", U32, ("B", "R", "S", "W")),
            Binding("segment", U32, ("B", 4)),
            Binding("owner", U32, ("T",)),
            Binding("out_symbol", U32, ("T", "S"), "readwrite"),
        ),
        push_constants=tuple(PushConstant(name) for name in "TRSW"),
        grid=grid,
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
        features=features if p["REDUCE"] == "subgroup" else (),
        fixed=(("Q", p["Q"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Random symbols; the histories are nearly full after this step."""
    t, s, r, w, b, q = (problem[d] for d in "TSRWBQ")
    segment = random_segments(b, t, rng)
    room = w * symbols_per_word(q) - segment[:, 1].astype(np.int64)
    segment[:, 3] = np.maximum(room - rng.integers(0, 3, b), 0)
    history = rng.integers(0, 2**32, (b, r, s, w), dtype=np.uint32)
    if q == 32:  # so that some of them repeat
        history %= np.uint32(7)
    return {
        "history": history,
        "segment": segment,
        "owner": owners(segment, t),
        "out_symbol": rng.integers(0, 2**32, (t, s), dtype=np.uint32),
    }


class _Ends:
    """Where each symbol stands in a stream, as sets: bit e of a whole number is position e."""

    def __init__(self, symbols: NDArray[np.uint32]) -> None:
        self._symbols, self._sets = symbols, dict[int, int]()

    def of(self, symbol: int) -> int:
        if symbol not in self._sets:
            packed = np.packbits(self._symbols == symbol, bitorder="little")
            self._sets[symbol] = int.from_bytes(packed.tobytes(), "little")
        return self._sets[symbol]

    def last_match(self, queries: list[int], i: int) -> int:
        """The latest end before i of the longest suffix of queries 0 to i; -1 where there is none.

        Straight from the definition: the ends that agree in one more symbol, until none is left.
        """
        found, longer, length = 0, self.of(queries[i]) & (1 << i) - 1, 1
        while longer:
            found = longer
            if length > i:
                break
            longer = found & self.of(queries[i - length]) << length
            length += 1
        return found.bit_length() - 1


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """For each token by the definition, which can begin anywhere in a stream."""
    s, r, q = (problem[d] for d in "SRQ")
    shifts = np.arange(symbols_per_word(q), dtype=np.uint32) * np.uint32(q)
    out = given["out_symbol"].copy()
    for index, first, count, slot in filled_segments(given["segment"]):
        position = int(given["segment"][index, 3])
        parts = given["history"][slot][..., None] >> shifts & np.uint32((1 << q) - 1)
        symbols = parts.reshape(r, s, -1)
        for stream in range(s):
            queries = symbols[0, stream].tolist()
            ends, values = _Ends(symbols[min(1, r - 1), stream]), symbols[r - 1, stream]
            for t in range(count):
                end = ends.last_match(queries, position + t)
                out[first + t, stream] = NO_MATCH if end < 0 else values[end + 1]
    return {"out_symbol": out}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(operations, bytes): a compare for each pair of token and end; each history once."""
    t, s, r, w, b, q = (problem[d] for d in "TSRWBQ")
    return float(t) * s * w * symbols_per_word(q), 4.0 * (b * r * s * w + t * s)


def refuses(problem: Problem) -> str | None:
    """Symbols have 1, 4 or 32 bits, and a history has room for the step."""
    if problem["Q"] not in SYMBOL_BITS:
        return f"symbols have one of {SYMBOL_BITS} bits, found {problem['Q']}"
    room = problem["W"] * symbols_per_word(problem["Q"])
    if room > 2**24:
        return f"{room} tokens in a history, at most 2^24: keys of the lags form hold no longer run"
    return None if problem["T"] <= room else f"{problem['T']} tokens, {room} fit in W words"


def _is_one_of_its_kind(p: Mapping[str, Any]) -> bool:
    """Whether no parameter that its form does not look at differs from the default."""
    if p["FORM"] == LAGS:
        return bool(p["LANES"] == LANES)
    return bool(p["TOKENS"] == TOKENS and (p["LANES"] > 1 or p["REDUCE"] == "shared"))


ROSA = KernelFamily(
    name="rosa",
    template="rosa.comp.j2",
    dims=("T", "S", "R", "W", "B", "Q"),
    precisions=(F32,),
    space=Space(
        Choice("Q", SYMBOL_BITS, default=1),
        Choice("FORM", (PACKED, LAGS), default=PACKED),
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64),
        Choice("LANES", (1, 2, 4, 8, 16, 32, 64), default=LANES),
        Choice("TOKENS", (1, 8, 32, 128, 256), default=TOKENS),
        Choice("REDUCE", ("subgroup", "shared"), default="shared"),
        ADDRESS,
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint(
            "lanes stay inside a subgroup",
            lambda p, d: (
                p["REDUCE"] == "shared" or p["FORM"] == LAGS or p["LANES"] <= d.subgroup_min
            ),
        ),
        ProblemConstraint(
            "compiled for this symbol size", lambda p, d, problem: p["Q"] == problem["Q"]
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, S=5, R=3, W=3, B=1, Q=1),
        Problem(T=77, S=3, R=1, W=4, B=3, Q=1),
        Problem(T=33, S=9, R=3, W=9, B=4, Q=4),
        Problem(T=70, S=2, R=1, W=300, B=2, Q=32),
        Problem(T=31, S=65, R=3, W=2, B=1, Q=1),
        Problem(T=37, S=1, R=1, W=37, B=7, Q=1),
        Problem(T=5, S=3, R=3, W=40, B=5, Q=32),
    ),
    default_problems=(
        Problem(T=1, S=768, R=3, W=128, B=1, Q=1),
        Problem(T=256, S=768, R=3, W=128, B=1, Q=1),
        Problem(T=1, S=192, R=3, W=512, B=1, Q=4),
        Problem(T=256, S=192, R=3, W=512, B=1, Q=4),
        Problem(T=1, S=1, R=1, W=4096, B=1, Q=32),
    ),
    problem_rule=refuses,
    matters=lambda precision, p: _is_one_of_its_kind(p),
)
