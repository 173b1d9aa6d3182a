"""How kernels that multiply a head's state by cooperative matrices divide it, and what that needs.

Parameters: HEAD, CHUNK (tokens), SHAPE (m, n, k of the device's matrices), SUBGROUP (invocations),
SUBGROUPS (of a workgroup), ROWS (value rows of a workgroup).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge.traits.choices import addressing
from kernelforge.traits.state_rows import chunk_shared_bytes
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature

MATRIX_EXTENSION = "GL_KHR_cooperative_matrix"


def _matrix(p: Mapping[str, Any]) -> tuple[int, int, int]:
    m, n, k = (int(size) for size in p["SHAPE"].split("x"))
    return m, n, k


def _is_offered(p: Mapping[str, Any], device: DeviceInfo) -> bool:
    return (*_matrix(p), "f16", "f16", "f32", "f32") in device.cooperative_shapes


def _divides(p: Mapping[str, Any]) -> bool:
    """Tokens are m and k of the two products, keys k and n, rows n and m."""
    m, n, k = _matrix(p)
    tokens = p["CHUNK"] % m or p["CHUNK"] % k
    keys = p["HEAD"] % k or p["HEAD"] % n
    return not (tokens or keys or p["ROWS"] % n or p["ROWS"] % m)


def _shared_bytes(p: Mapping[str, Any], lefts: int, rights: int) -> int:
    """Shared memory of lib/chunks and of lib/chunk_matrices."""
    chunk = chunk_shared_bytes({**p, "WORKGROUP": 1, "LANES": 1}, lefts, rights)
    return int(chunk + 4 * p["HEAD"] * (2 * p["ROWS"] + 1) + 4 * (lefts + 2 * rights + 1))


def _share(p: Mapping[str, Any]) -> int:
    """Matrices of the state: more subgroups than that would have nothing to do."""
    m, n, _ = _matrix(p)
    return int(p["ROWS"] // m * (p["HEAD"] // n))


def matrix_signature(
    bindings: tuple[Binding, ...], constants: str, p: Mapping[str, Any]
) -> Signature:
    """Of a kernel with a workgroup for ROWS rows of a head in x, and for a segment in y.

    Args:
        bindings: of the family.
        constants: dimensions that are push constants, a letter each.
        p: parameters of the variant.
    """
    return Signature(
        bindings=bindings,
        push_constants=tuple(PushConstant(name) for name in constants),
        grid=Grid(x=(CeilDiv("H"), CeilDiv("N", p["ROWS"])), y=(CeilDiv("B"),)),
        workgroup=p["SUBGROUPS"] * p["SUBGROUP"],
        subgroup=p["SUBGROUP"],
        addressing=addressing(p),
        features=("cooperative_matrix", "float16"),
        fixed=(("N", p["HEAD"]),),
    )


def matrix_space(lefts: int, rights: int) -> Space:
    """All that may vary.

    Args:
        lefts: kinds of vectors that ask the state.
        rights: kinds of vectors that change it.
    """
    return Space(
        Choice("HEAD", (16, 32, 64, 128), default=64),
        Choice("CHUNK", (8, 16, 32, 64), default=16),
        Choice(
            "SHAPE",
            ("8x8x8", "8x8x16", "8x16x16", "16x8x16", "16x16x16", "16x8x8"),
            default="16x16x16",
        ),
        Choice("SUBGROUP", (8, 16, 32, 64), default=32),
        Choice("SUBGROUPS", (1, 2, 4, 8), default=4),
        Choice("ROWS", (8, 16, 32, 64), default=32),
        Flag("ADDRESS", default=True, needs="buffer_device_address"),
        Constraint("the device multiplies matrices of this shape", _is_offered),
        Constraint(
            "the device has subgroups of this size",
            lambda p, d: d.subgroup_min <= p["SUBGROUP"] <= d.subgroup_max,
        ),
        Constraint("matrices divide a chunk, a head, and its rows", lambda p, d: _divides(p)),
        Constraint("workgroups divide a head", lambda p, d: p["HEAD"] % p["ROWS"] == 0),
        Constraint("every subgroup has a matrix", lambda p, d: p["SUBGROUPS"] <= _share(p)),
        Constraint(
            "the chunk and the state fit the shared memory",
            lambda p, d: _shared_bytes(p, lefts, rights) <= d.max_shared_memory,
        ),
        ProblemConstraint(
            "compiled for this head size", lambda p, d, problem: p["HEAD"] == problem["N"]
        ),
    )
