"""How kernels that keep a head's state in registers divide its rows and keys among invocations.

Parameters: HEAD, WORKGROUP, LANES (invocations that share a row), ROWS (of each group of lanes);
for chunked forms CHUNK, in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.space import Constraint, ProblemConstraint
from kernelforge.traits.choices import addressing, word_features
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature

MAX_STATE_FLOATS = 128
"""State values that one invocation may keep; more than that is sure to spill."""


def rows_of(p: Mapping[str, Any]) -> int:
    """Value rows of one workgroup."""
    return int(p["WORKGROUP"] // p["LANES"] * p["ROWS"])


def kept(p: Mapping[str, Any]) -> int:
    """State values of one invocation."""
    return int(p["ROWS"] * p["HEAD"] // p["LANES"])


def state_signature(
    bindings: tuple[Binding, ...], constants: str, p: Mapping[str, Any]
) -> Signature:
    """Of a kernel with a workgroup for some rows of a head in x, and for a segment in y.

    Args:
        bindings: of the family.
        constants: dimensions that are push constants, a letter each.
        p: parameters of the variant.
    """
    whole = p["LANES"] == p["WORKGROUP"] > 1
    features: tuple[str, ...] = ()
    if p["LANES"] > 1:
        features = ("subgroup_arithmetic",) if whole else ("subgroup_clustered",)
    return Signature(
        bindings=bindings,
        push_constants=tuple(PushConstant(name) for name in constants),
        grid=Grid(x=(CeilDiv("H"), CeilDiv("N", rows_of(p))), y=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if whole else 0,
        addressing=addressing(p),
        features=features + word_features(p),
        fixed=(("N", p["HEAD"]),),
    )


LANES_TOGETHER = Constraint(
    "lanes stay inside a subgroup",
    lambda p, d: (
        p["LANES"] == 1
        or (p["LANES"] < p["WORKGROUP"] and p["LANES"] <= d.subgroup_min)
        or d.subgroup_min <= p["LANES"] == p["WORKGROUP"] <= d.subgroup_max
    ),
)
"""LANES of WORKGROUP add up by subgroup operations, whatever size the device's subgroups have."""


def row_constraints() -> tuple[Constraint | ProblemConstraint, ...]:
    """Rules on HEAD, WORKGROUP, LANES and ROWS."""
    return (
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint("lanes hold whole vectors", lambda p, d: p["HEAD"] % (4 * p["LANES"]) == 0),
        # More than that in one invocation: software drivers need minutes to compile it.
        Constraint("a lane keeps 64 keys at most", lambda p, d: p["HEAD"] // p["LANES"] <= 64),
        Constraint("workgroups divide a head", lambda p, d: p["HEAD"] % rows_of(p) == 0),
        LANES_TOGETHER,
        ProblemConstraint(
            "compiled for this head size", lambda p, d, problem: p["HEAD"] == problem["N"]
        ),
    )


def chunk_shared_bytes(p: Mapping[str, Any], lefts: int, rights: int) -> int:
    """Shared memory of lib/chunks, in bytes.

    Args:
        p: parameters of the variant.
        lefts: kinds of vectors that ask the state.
        rights: kinds of vectors that change it.
    """
    tiles, planes = p["CHUNK"] // 4, p["HEAD"] // 4
    staged = (lefts + rights) * p["CHUNK"] * planes + tiles * planes
    weights = lefts * rights * p["CHUNK"] * tiles
    return int(16 * (staged + weights + lefts * tiles * rows_of(p)))


def chunk_constraints(lefts: int, rights: int) -> tuple[Constraint | ProblemConstraint, ...]:
    """Rules of a chunked form, those of `row_constraints` among them; kinds as above."""
    return (
        *row_constraints(),
        Constraint(
            "the chunk fits the shared memory",
            lambda p, d: chunk_shared_bytes(p, lefts, rights) <= d.max_shared_memory,
        ),
        Constraint("the state fits the registers", lambda p, d: kept(p) <= MAX_STATE_FLOATS // 2),
        # llvmpipe compiles 64 keys in 12 CPU seconds, 8 keys of four rows in 4.
        Constraint(
            "a lane keeps 16 keys at most where lanes can share a row",
            lambda p, d: p["HEAD"] // p["LANES"] <= 16 or "subgroup_clustered" not in d.features,
        ),
        Constraint(
            "through descriptors few registers, or a device without addresses",
            lambda p, d: p["ADDRESS"] or kept(p) <= 16 or "buffer_device_address" not in d.features,
        ),
    )
