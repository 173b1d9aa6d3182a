"""A family for tests of measuring and tuning: a small matrix times a vector, and its faults.

FAULT makes variants that do not compile, compute something else, write past the end or not
everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernelforge.compile import find_compiler
from kernelforge.errors import CompileError
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    return Signature(
        bindings=(
            Binding("weight", precision, ("M", "K")),
            Binding("vector", F32, ("K",)),
            Binding("result", F32, ("M",), "write"),
        ),
        push_constants=(PushConstant("M"), PushConstant("K")),
        grid=Grid(x=(CeilDiv("M", params["WORKGROUP"] * params["ROWS"]),)),
        workgroup=params["WORKGROUP"],
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    weight = rng.standard_normal((problem["M"], problem["K"]), dtype=np.float32)
    return {"weight": weight, "vector": rng.standard_normal(problem["K"], dtype=np.float32)}


def oracle(
    problem: Problem,
    precision: DType,
    arrays: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    return {"result": arrays["weight"].astype(np.float64) @ arrays["vector"].astype(np.float64)}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    m, k = problem["M"], problem["K"]
    return 2.0 * m * k, 4.0 * (m * k + k + m)


def small_family(faults: tuple[str, ...] = ("none",), **changes: Any) -> KernelFamily:
    """The family, with these faults in its space; the first is the default."""
    declared: dict[str, Any] = {
        "name": "small",
        "template": "small.comp.j2",
        "templates": Path(__file__).parent / "templates",
        "dims": ("M", "K"),
        "precisions": (F32,),
        "space": Space(
            Choice("WORKGROUP", (8, 16, 32, 64), default=16),
            Choice("ROWS", (1, 2, 4), default=1),
            Choice("FAULT", faults, default=faults[0]),
            Constraint("at most 128 rows", lambda p, device: p["WORKGROUP"] * p["ROWS"] <= 128),
        ),
        "signature": signature,
        "inputs": inputs,
        "oracle": oracle,
        "cost": cost,
    }
    if not changes:
        declared["source"] = (__name__, "small_family", (list(faults),))
    return KernelFamily(**{**declared, **changes})


def needs_compiler() -> None:
    """Skips the test, saying why, where there is no GLSL compiler."""
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")
