"""wkv7: RWKV-7's recurrence over the tokens of each segment; decode is segments of one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge import goose
from kernelforge.choices import ADDRESS, addressing
from kernelforge.family import Arrays, KernelFamily
from kernelforge.segments import random_segments
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType

MAX_STATE_FLOATS = 128
"""State values that one invocation may keep; more than that is sure to spill."""


def _rows(p: Mapping[str, Any]) -> int:
    """Value rows of one workgroup."""
    return int(p["WORKGROUP"] // p["LANES"] * p["ROWS"])


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    whole = p["LANES"] == p["WORKGROUP"]
    features: tuple[str, ...] = ()
    if p["LANES"] > 1:
        features = ("subgroup_arithmetic",) if whole else ("subgroup_clustered",)
    return Signature(
        bindings=(
            Binding("in_s", F32, (6, "T", "H", "N")),
            Binding("state", F32, ("B", "H", "N", "N"), "readwrite"),
            Binding("segment", U32, ("B", 4)),
            Binding("out_y", F32, ("T", "H", "N"), "readwrite"),
        ),
        push_constants=(PushConstant("T"), PushConstant("H")),
        grid=Grid(x=(CeilDiv("H"), CeilDiv("N", _rows(p))), y=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if whole and p["LANES"] > 1 else 0,
        addressing=addressing(p),
        features=features,
        fixed=(("N", p["HEAD"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Decays over their whole range; as in the model kk has unit length, a = -kk, b = kk * rate."""
    t, h, n = (problem[d] for d in "THN")
    r, k, v, kk = rng.standard_normal((4, t, h, n)).astype(np.float32)
    w = np.exp(-0.6065306597 * rng.random((t, h, n))).astype(np.float32)
    kk /= np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
    rate = rng.random((t, h, n), dtype=np.float32)
    return {
        "in_s": np.stack([r, w, k, v, -kk, kk * rate]),
        "state": rng.standard_normal((problem["B"], h, n, n), dtype=np.float32),
        "segment": random_segments(problem["B"], t, rng),
        "out_y": rng.standard_normal((t, h, n), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """See `kernelforge.goose.recurrence`."""
    out, states = goose.recurrence(given["in_s"], given["state"], given["segment"], given["out_y"])
    return {"out_y": out, "state": states}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): each state in and out once, six vectors in, one out."""
    t, h, n, b = (problem[d] for d in "THNB")
    return 10.0 * t * h * n * n, 4.0 * (2 * b * h * n * n + 7 * t * h * n)


WKV7 = KernelFamily(
    name="wkv7",
    template="wkv7.comp.j2",
    dims=("T", "H", "N", "B"),
    precisions=(F32,),
    space=Space(
        Choice("HEAD", (16, 32, 64, 128), default=64),
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128), default=64),
        Choice("LANES", (1, 2, 4, 8, 16), default=1),
        Choice("ROWS", (1, 2, 4, 8, 16), default=1),
        ADDRESS,
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
            lambda p, d: (
                p["ROWS"] * p["HEAD"] // p["LANES"]
                # Checked access through descriptors doubles the code, and the compile time more.
                <= (MAX_STATE_FLOATS if p["ADDRESS"] else MAX_STATE_FLOATS // 2)
            ),
        ),
        ProblemConstraint(
            "compiled for this head size", lambda p, d, problem: p["HEAD"] == problem["N"]
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, H=1, N=64, B=1),
        Problem(T=17, H=3, N=64, B=3),
        Problem(T=9, H=1, N=64, B=1),
        Problem(T=2, H=1, N=32, B=5),
        Problem(T=5, H=2, N=16, B=2),
        Problem(T=4, H=2, N=32, B=4),
    ),
    default_problems=(
        Problem(T=1, H=12, N=64, B=1),
        Problem(T=256, H=12, N=64, B=1),
        *(Problem(T=1, H=8, N=n, B=1) for n in (16, 32)),
    ),
    tolerance=4.0,
    problem_rule=lambda p: (
        None if p["N"] in (16, 32, 64, 128) else f"head sizes are 16, 32, 64 or 128, found {p['N']}"
    ),
)
