"""Reads a kernel's problem and signature from a manifest, with a cap on every number.

`abi` says what a signature means; here it is only asked whether a stranger's one is sane.
"""

from __future__ import annotations

import re
from typing import Any

from kernelforge_runtime.abi.problem import MAX_DIMENSION, Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.bundle.fingerprint import FEATURE, MAX_FEATURES
from kernelforge_runtime.bundle.strict_json import count, listed, matching, record, show
from kernelforge_runtime.errors import BundleError, PlanError
from kernelforge_runtime.layout.names import MAX_NAME

MAX_BINDINGS = 32
MAX_PUSH_CONSTANTS = 64
MAX_PUSH_CONSTANT_BYTES = 256
MAX_RANK = 8
MAX_DIMS = 16
MAX_GRID_TERMS = 4
MAX_GRID_DIVISOR = 1 << 20
MAX_GRID_COUNT = 1 << 10
MAX_WORKGROUP = 4096
SUBGROUPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)

_LAYOUT = re.compile(r"[A-Z0-9/%+ ]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIM = re.compile(r"[A-Z]")
_TERM = re.compile(r"[A-Z](/[1-9][0-9]{0,6})?")


def problem_from_json(data: Any) -> Problem:
    """Reads `{"K": 4096, "M": 1024}`; a wrong form raises BundleError."""
    if not isinstance(data, dict) or not 1 <= len(data) <= MAX_DIMS:
        raise BundleError(f"problem: expected 1 to {MAX_DIMS} dimensions, found {show(data)}")
    for name, size in data.items():
        matching(name, "problem", _DIM, 1)
        count(size, f"problem {name}", MAX_DIMENSION, 1)
    return Problem(**data)


def signature_from_json(data: Any) -> Signature:
    """Reads what `Signature.to_json` wrote; a wrong form or an absurd size raises BundleError."""
    record(
        data,
        (
            "addressing",
            "bindings",
            "features",
            "fixed",
            "grid",
            "push_constants",
            "subgroup",
            "workgroup",
        ),
        ("multiples",),
    )
    names = set()
    for binding in listed(data["bindings"], "bindings", MAX_BINDINGS, 1):
        # Row-major bindings have no fifth element: older manifests have none at all.
        name, dtype, shape, access, *layout = listed(binding, "binding", 5, 4)
        for text in layout:
            matching(text, "binding layout", _LAYOUT, MAX_NAME)
            if access != "read":
                raise BundleError(f"binding {name}: only what is read may have a layout")
        names.add(matching(name, "binding name", _NAME))
        _texts(dtype, access)
        for size in listed(shape, "binding shape", MAX_RANK):
            if isinstance(size, str):
                matching(size, "binding shape", _TERM, 9)
            else:
                count(size, "binding shape", MAX_DIMENSION, 1)
    if len(names) != len(data["bindings"]):
        raise BundleError("bindings: a name is there twice")
    constants = set()
    for constant in listed(data["push_constants"], "push_constants", MAX_PUSH_CONSTANTS):
        name, dtype = listed(constant, "push constant", 2, 2)
        constants.add(matching(name, "push constant name", _NAME))
        if dtype not in ("u32", "f32"):
            raise BundleError(f"push constant {name}: expected u32 or f32, found {show(dtype)}")
    if len(constants) != len(data["push_constants"]):
        raise BundleError("push_constants: a name is there twice")
    for axis in listed(data["grid"], "grid", 3, 3):
        for term in listed(axis, "grid axis", MAX_GRID_TERMS):
            if not isinstance(term, list):
                count(term, "grid count", MAX_GRID_COUNT, 1)
                continue
            dim, divisor = listed(term, "grid term", 2, 2)
            matching(dim, "grid dimension", _DIM, 1)
            count(divisor, "grid divisor", MAX_GRID_DIVISOR, 1)
    for feature in listed(data["features"], "features", MAX_FEATURES):
        matching(feature, "feature", FEATURE)
    for key, what in (("fixed", "fixed"), ("multiples", "multiple of")):
        sizes = data.get(key, {})
        if not isinstance(sizes, dict) or (key == "multiples" and key in data and not sizes):
            raise BundleError(f"{key}: expected an object, found {show(sizes)}")
        for name, size in sizes.items():
            matching(name, f"{key} dimension", _DIM, 1)
            count(size, f"{what} {name}", MAX_DIMENSION, 1)
    count(data["workgroup"], "workgroup", MAX_WORKGROUP, 1)
    if count(data["subgroup"], "subgroup") not in SUBGROUPS:
        raise BundleError(f"subgroup: expected one of {SUBGROUPS}, found {data['subgroup']}")
    _texts(data["addressing"])
    try:
        signature = Signature.from_json(data)
    except PlanError as error:
        raise BundleError(f"signature: {error}") from None
    if signature.push_constant_bytes > MAX_PUSH_CONSTANT_BYTES:
        raise BundleError(
            f"push constants take {signature.push_constant_bytes} bytes; "
            f"at most {MAX_PUSH_CONSTANT_BYTES} are allowed"
        )
    return signature


def check_layouts(signature: Signature, problem: Problem) -> None:
    """Raises BundleError where a layout does not fit its binding in the entry's own problem."""
    for binding in signature.bindings:
        if binding.layout:
            try:
                binding.memory(problem)
            except PlanError as error:
                raise BundleError(str(error)) from None


def _texts(*values: Any) -> None:
    """Words that are looked up later: a short text, so that a lookup cannot fail oddly."""
    for value in values:
        matching(value, "signature", _NAME, 32)
