"""wkv6: the recurrence of RWKV-5 and RWKV-6 over the tokens of each segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import addressing
from kernelforge.family import Arrays, KernelFamily
from kernelforge.segments import filled_segments, random_segments
from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType

MAX_STATE_FLOATS = 128
"""State values that one invocation may keep; more than that is sure to spill."""


def _rows(p: Mapping[str, Any]) -> int:
    """Value rows of one workgroup."""
    return int(p["WORKGROUP"] // p["LANES"] * p["ROWS"])


def _kept(p: Mapping[str, Any]) -> int:
    """State values of one invocation."""
    return int(p["ROWS"] * p["HEAD"] // p["LANES"])


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    whole = p["LANES"] == p["WORKGROUP"]
    features: tuple[str, ...] = ()
    if p["LANES"] > 1:
        features = ("subgroup_arithmetic",) if whole else ("subgroup_clustered",)
    return Signature(
        bindings=(
            Binding("in_p", F32, ("T", "P")),
            Binding("decay", F32, ("D", "H", "N")),
            Binding("bonus", F32, ("H", "N")),
            Binding("state", F32, ("B", "H", "N", "N"), "readwrite"),
            Binding("segment", U32, ("B", 4)),
            Binding("out_y", F32, ("T", "H", "N"), "readwrite"),
        ),
        push_constants=tuple(PushConstant(name) for name in "THPD"),
        grid=Grid(x=(CeilDiv("H"), CeilDiv("N", _rows(p))), y=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if whole and p["LANES"] > 1 else 0,
        addressing=addressing(p),
        features=features,
        fixed=(("N", p["HEAD"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Raw decays as in trained models, -6 to 2: factors from 0.998 down to 0.0006."""
    t, h, n, b, p, d = (problem[name] for name in "THNBPD")
    return {
        "in_p": rng.standard_normal((t, p), dtype=np.float32),
        "decay": rng.uniform(-6, 2, (d, h, n)).astype(np.float32),
        "bonus": rng.standard_normal((h, n), dtype=np.float32),
        "state": rng.standard_normal((b, h, n, n), dtype=np.float32),
        "segment": random_segments(b, t, rng),
        "out_y": rng.standard_normal((t, h, n), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The recurrence in float64, segment by segment, token by token; read before the update.

    Source: RWKV-5 and RWKV-6, "Eagle and Finch" (arXiv 2404.05892), with the state transposed.
    """
    t, h, n, d = (problem[name] for name in "THND")
    rows = given["in_p"][:, : 3 * h * n].astype(np.float64).reshape(t, 3, h, n)
    factor = np.exp(-np.exp(given["decay"].astype(np.float64)))
    bonus = given["bonus"].astype(np.float64)
    states = given["state"].astype(np.float64)
    out = given["out_y"].astype(np.float64)
    for _, first, count, slot in filled_segments(given["segment"]):
        for token in range(first, first + count):
            r, k, v = rows[token]
            w = factor[token if d > 1 else 0]
            new = v[:, :, None] * k[:, None, :]
            out[token] = ((bonus[:, None, :] * new + states[slot]) * r[:, None, :]).sum(-1)
            states[slot] = w[:, None, :] * states[slot] + new
    return {"out_y": out, "state": states}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): each state in and out once; r, k, v, decays and bonus in, y out."""
    t, h, n, b, d = (problem[name] for name in "THNBD")
    return 5.0 * t * h * n * n, 4.0 * h * n * (2 * b * n + 4 * t + d + 1)


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot work on this problem; None where it can."""
    t, h, n, p, d = (problem[name] for name in "THNPD")
    if n not in (8, 16, 32, 64, 128):
        return f"head sizes are 8, 16, 32, 64 or 128, found {n}"
    if p < 3 * h * n or p % 4:
        return f"rows of in_p hold r, k and v ({3 * h * n}) in whole vectors of 4, found P={p}"
    if d not in (1, t):
        return f"decays are for all tokens (D=1) or for each (D={t}), found D={d}"
    return None


WKV6 = KernelFamily(
    name="wkv6",
    template="wkv6.comp.j2",
    dims=("T", "H", "N", "B", "P", "D"),
    precisions=(F32,),
    space=Space(
        Choice("HEAD", (8, 16, 32, 64, 128), default=64),
        # Largest first: the default of a smaller head is then the widest workgroup that divides it.
        Choice("WORKGROUP", (128, 64, 32, 16, 8, 4), default=64),
        Choice("LANES", (1, 2, 4, 8, 16), default=1),
        Choice("ROWS", (1, 2, 4, 8, 16), default=1),
        Choice("STAGE", (0, 1, 4, 16), default=0),
        # llvmpipe compiles in one second with addresses what takes it 16 through descriptors.
        Flag("ADDRESS", default=True, needs="buffer_device_address"),
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint("lanes hold whole vectors", lambda p, d: p["HEAD"] % (4 * p["LANES"]) == 0),
        # More than that in one invocation: software drivers need minutes to compile it.
        Constraint("a lane keeps 64 keys at most", lambda p, d: p["HEAD"] // p["LANES"] <= 64),
        Constraint("workgroups divide a head", lambda p, d: p["HEAD"] % _rows(p) == 0),
        Constraint(
            "lanes stay inside a subgroup",
            lambda p, d: (
                p["LANES"] == 1
                or (p["LANES"] < p["WORKGROUP"] and p["LANES"] <= d.subgroup_min)
                or d.subgroup_min <= p["LANES"] == p["WORKGROUP"] <= d.subgroup_max
            ),
        ),
        Constraint(
            "the state fits the registers",
            lambda p, d: _kept(p) <= (MAX_STATE_FLOATS if p["ADDRESS"] and not p["STAGE"] else 64),
        ),
        # Checked access multiplies what llvmpipe takes to compile, and more beside barriers: 16
        # CPU seconds for one row of a head of 64. So only where there is no other way.
        Constraint(
            "through descriptors no stage, and many registers only on devices without addresses",
            lambda p, d: (
                p["ADDRESS"]
                or (
                    p["STAGE"] == 0
                    and (_kept(p) <= 16 or "buffer_device_address" not in d.features)
                )
            ),
        ),
        Constraint("the stage fits 16 KiB", lambda p, d: p["STAGE"] * p["HEAD"] <= 1024),
        ProblemConstraint(
            "compiled for this head size", lambda p, d, problem: p["HEAD"] == problem["N"]
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, H=1, N=64, B=1, P=192, D=1),
        Problem(T=17, H=3, N=64, B=3, P=596, D=17),
        Problem(T=9, H=1, N=64, B=1, P=256, D=9),
        Problem(T=2, H=1, N=32, B=5, P=96, D=1),
        Problem(T=5, H=2, N=16, B=2, P=128, D=5),
        Problem(T=4, H=2, N=32, B=4, P=192, D=1),
        Problem(T=3, H=5, N=8, B=1, P=128, D=3),
    ),
    default_problems=(
        Problem(T=1, H=12, N=64, B=1, P=3072, D=1),
        Problem(T=256, H=12, N=64, B=1, P=3072, D=256),
        *(Problem(T=1, H=8, N=n, B=1, P=32 * n, D=1) for n in (8, 16, 32)),
    ),
    tolerance=4.0,
    problem_rule=refuses,
)
