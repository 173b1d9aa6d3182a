"""rwkv7_mix: RWKV-7's gates, recurrence and read-out in one dispatch, for few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge.traits import goose
from kernelforge.traits.choices import (
    ADDRESS,
    WORD,
    WORD_BY_ADDRESS,
    addressing,
    reduction_features,
    reduction_subgroup,
    word_features,
    workgroup_reduction,
)
from kernelforge.traits.segments import filled_segments, random_segments
from kernelforge.traits.state_rows import LANES_TOGETHER
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def _fits_registers(p: Mapping[str, Any]) -> bool:
    """Code that is written out for every vector is slow to compile on software devices.

    Checked access through descriptors makes twice as much of it.
    """
    rows, vectors = int(p["ROWS"]), int(p["HEAD"] // p["LANES"] // 4)
    if p["KEEP"] == "memory":
        return rows <= 2
    most = 4 if p["ADDRESS"] else 2
    return vectors <= most and vectors * rows <= 2 * most


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    whole = p["LANES"] == p["WORKGROUP"]
    needed = {*reduction_features(p), *word_features(p)}
    if p["LANES"] > 1:
        needed.add("subgroup_arithmetic" if whole else "subgroup_clustered")
    return Signature(
        bindings=(
            Binding("proj", F32, ("T", "P")),
            Binding("lora", F32, ("T", 4, "H", "N")),
            Binding("gate_param", F32, (5, "H", "N")),
            Binding("read_param", F32, (3, "H", "N")),
            Binding("segment", U32, ("B", 4)),
            Binding("v_first", F32, ("T", "H", "N"), "readwrite"),
            Binding("state", F32, ("B", "H", "N", "N"), "readwrite"),
            Binding("out_y", F32, ("T", "H", "N"), "readwrite"),
        ),
        push_constants=(
            *(PushConstant(n) for n in ("T", "H", "P", "first")),
            PushConstant("eps", F32),
        ),
        grid=Grid(x=(CeilDiv("H"),), y=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if whole and p["LANES"] > 1 else reduction_subgroup(p),
        addressing=addressing(p),
        features=tuple(sorted(needed)),
        fixed=(("N", p["HEAD"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Projections, LoRA outputs and parameters of a trained model's size, a state in use."""
    t, h, n, b = (problem[d] for d in "THNB")
    gate_param = rng.standard_normal((5, h, n), dtype=np.float32)
    gate_param[0] -= 3
    read_param = rng.standard_normal((3, h, n), dtype=np.float32)
    read_param[1] = 1 + 0.1 * read_param[1]
    return {
        "proj": rng.standard_normal((t, problem["P"]), dtype=np.float32),
        "lora": rng.standard_normal((t, 4, h, n), dtype=np.float32),
        "gate_param": gate_param,
        "read_param": read_param,
        "segment": random_segments(b, t, rng),
        "v_first": rng.standard_normal((t, h, n), dtype=np.float32),
        "state": rng.standard_normal((b, h, n, n), dtype=np.float32),
        "out_y": rng.standard_normal((t, h, n), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The three steps of `kernelforge.traits.goose`, for tokens that a segment has."""
    lora, segment = given["lora"], given["segment"]
    owned = np.zeros(problem["T"], bool)
    for _, start, count, _ in filled_segments(segment):
        owned[start : start + count] = True
    s, v_first = goose.gates(
        given["proj"], lora, given["gate_param"], given["v_first"], bool(constants["first"])
    )
    y, state = goose.recurrence(s, given["state"], segment, np.zeros_like(given["out_y"]))
    read = goose.readout(y, s, lora, given["read_param"], constants["eps"])
    mine = owned[:, None, None]
    return {
        "v_first": np.where(mine, v_first, given["v_first"]),
        "state": state,
        "out_y": np.where(mine, read, given["out_y"]),
    }


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): each state in and out once; three projections, four LoRAs, v_first, out."""
    t, h, n, b = (problem[d] for d in "THNB")
    size = h * n
    return (45.0 + 10.0 * n) * t * size, 4.0 * size * (2 * b * n + 9 * t + 8)


def _refuses(problem: Problem) -> str | None:
    if problem["N"] not in (16, 32, 64, 128):
        return f"head sizes are 16, 32, 64 or 128, found {problem['N']}"
    if problem["P"] % 4 or problem["P"] < 3 * problem["H"] * problem["N"]:
        return f"P must be a multiple of 4 and at least 3 H N, found {problem['P']}"
    return None


RWKV7_MIX = KernelFamily(
    name="rwkv7_mix",
    template="rwkv7_mix.comp.j2",
    dims=("T", "H", "N", "P", "B"),
    precisions=(F32,),
    space=Space(
        *workgroup_reduction(),
        Choice("HEAD", (16, 32, 64, 128), default=64),
        Choice("LANES", (1, 2, 4, 8, 16, 32), default=1),
        Choice("ROWS", (1, 2, 4), default=1),
        Choice("KEEP", ("memory", "state", "all"), default="memory"),
        ADDRESS,
        WORD,
        WORD_BY_ADDRESS,
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint("lanes hold whole vectors", lambda p, d: p["HEAD"] % (4 * p["LANES"]) == 0),
        Constraint(
            # In small workgroups a few idle groups do no harm; gates and norm use them too.
            "passes divide a head, or all of it is one pass of a small workgroup",
            lambda p, d: (
                p["WORKGROUP"] <= 64 or p["HEAD"] % (p["WORKGROUP"] // p["LANES"] * p["ROWS"]) == 0
            ),
        ),
        Constraint(
            # For groups without one the software device of Mesa 26.1 reads through no descriptor.
            "every group has rows where the state is read from memory",
            lambda p, d: (
                p["KEEP"] != "memory" or p["WORKGROUP"] // p["LANES"] * p["ROWS"] <= p["HEAD"]
            ),
        ),
        LANES_TOGETHER,
        Constraint("what is kept fits the registers", lambda p, d: _fits_registers(p)),
        ProblemConstraint(
            "compiled for this head size", lambda p, d, problem: p["HEAD"] == problem["N"]
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    # Both branches of `first` get verified.
    constants=lambda problem: {"first": problem["T"] % 2, "eps": 64e-5},
    corner_problems=(
        Problem(T=1, H=1, N=64, P=192, B=1),
        Problem(T=6, H=3, N=64, P=704, B=3),
        Problem(T=5, H=2, N=16, P=128, B=5),
        Problem(T=4, H=2, N=32, P=224, B=4),
        Problem(T=1, H=31, N=16, P=1488, B=1),
        Problem(T=37, H=1, N=16, P=52, B=7),
        Problem(T=2, H=1, N=128, P=384, B=1),
    ),
    default_problems=(
        Problem(T=1, H=12, N=64, P=2592, B=1),
        Problem(T=8, H=12, N=64, P=2592, B=8),
        *(Problem(T=1, H=8, N=n, P=24 * n + 96, B=1) for n in (16, 32, 128)),
    ),
    problem_rule=_refuses,
)
