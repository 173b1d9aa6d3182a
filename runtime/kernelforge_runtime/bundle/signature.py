"""Reads a kernel's problem and signature from a manifest, with a cap on every number.

`abi` says what a signature means; here it is only asked whether a stranger's one is sane.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from kernelforge_runtime.abi.grid import Grid
from kernelforge_runtime.abi.problem import MAX_DIMENSION, Problem
from kernelforge_runtime.abi.signature import (
    Binding,
    PushConstant,
    Signature,
    push_constants_from_json,
)
from kernelforge_runtime.abi.windows import MOST_BUFFERS
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
MOST_KEPT = 1024
"""Bindings, grids and so on that are remembered: most kernels have the same ones."""
LONGEST_KEPT = 256
SUBGROUPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)

_LAYOUT = re.compile(r"[A-Z0-9/%+ ]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIM = re.compile(r"[A-Z]")
_TERM = re.compile(r"[A-Z](/[1-9][0-9]{0,6})?")
T = TypeVar("T")
_BINDINGS: dict[str, Binding] = {}
"""What was read and checked before, by its text; so are those below."""
_CONSTANTS: dict[str, tuple[PushConstant, ...]] = {}
_GRIDS: dict[str, Grid] = {}


def problem_from_json(data: Any) -> Problem:
    """Reads `{"K": 4096, "M": 1024}`; a wrong form raises BundleError."""
    if not isinstance(data, dict) or not 1 <= len(data) <= MAX_DIMS:
        raise BundleError(f"problem: expected 1 to {MAX_DIMS} dimensions, found {show(data)}")
    for name, size in data.items():
        if _DIM.fullmatch(name) is None or type(size) is not int or not 1 <= size <= MAX_DIMENSION:
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
        ("multiples", "windowed"),
    )
    names = set()
    for binding in listed(data["bindings"], "bindings", MAX_BINDINGS, 1):
        names.add(binding[0] if repr(binding) in _BINDINGS else _checked_name(binding))
    if len(names) != len(data["bindings"]):
        raise BundleError("bindings: a name is there twice")
    constants = _kept(_CONSTANTS, data["push_constants"], _constants)
    grid = _kept(_GRIDS, data["grid"], _grid)
    for feature in listed(data["features"], "features", MAX_FEATURES):
        matching(feature, "feature", FEATURE)
    for key, what in (("fixed", "fixed"), ("multiples", "multiple of")):
        sizes = data.get(key, {})
        if not isinstance(sizes, dict) or (key == "multiples" and key in data and not sizes):
            raise BundleError(f"{key}: expected an object, found {show(sizes)}")
        for name, size in sizes.items():
            matching(name, f"{key} dimension", _DIM, 1)
            count(size, f"{what} {name}", MAX_DIMENSION, 1)
    _check_windowed(data)
    count(data["workgroup"], "workgroup", MAX_WORKGROUP, 1)
    if count(data["subgroup"], "subgroup") not in SUBGROUPS:
        raise BundleError(f"subgroup: expected one of {SUBGROUPS}, found {data['subgroup']}")
    _texts(data["addressing"])
    try:
        signature = Signature.from_json(data, _binding, lambda _: constants, lambda _: grid)
    except PlanError as error:
        raise BundleError(f"signature: {error}") from None
    if signature.push_constant_bytes > MAX_PUSH_CONSTANT_BYTES:
        raise BundleError(
            f"push constants take {signature.push_constant_bytes} bytes; "
            f"at most {MAX_PUSH_CONSTANT_BYTES} are allowed"
        )
    return signature


def _check_windowed(data: Any) -> None:
    if "windowed" not in data:
        return
    read = {binding[0] for binding in data["bindings"] if binding[3] == "read"}
    names = listed(data["windowed"], "windowed", MOST_BUFFERS, 1)
    for name in names:
        matching(name, "windowed binding", _NAME)
    if len(set(names)) < len(names) or not set(names) <= read or data["addressing"] != "address":
        raise BundleError(
            f"windowed: expected bindings that are only read, each once, of a kernel that takes "
            f"addresses; found {show(names)}"
        )
    if "uniform_windows" not in data["features"]:
        raise BundleError("windowed: the features do not list uniform_windows")


def _kept(known: dict[str, T], data: Any, read: Callable[[Any], T]) -> T:
    """What is read; what was read before, where that had the same text."""
    text = repr(data)
    found = known.get(text)
    if found is None:
        found = read(data)
        if len(text) <= LONGEST_KEPT and len(known) < MOST_KEPT:
            known[text] = found
    return found


def _constants(data: Any) -> tuple[PushConstant, ...]:
    names = set()
    for constant in listed(data, "push_constants", MAX_PUSH_CONSTANTS):
        name, dtype = listed(constant, "push constant", 2, 2)
        names.add(matching(name, "push constant name", _NAME))
        if dtype not in ("u32", "f32"):
            raise BundleError(f"push constant {name}: expected u32 or f32, found {show(dtype)}")
    if len(names) != len(data):
        raise BundleError("push_constants: a name is there twice")
    return push_constants_from_json(data)


def _grid(data: Any) -> Grid:
    for axis in listed(data, "grid", 3, 3):
        for term in listed(axis, "grid axis", MAX_GRID_TERMS):
            if not isinstance(term, list):
                count(term, "grid count", MAX_GRID_COUNT, 1)
                continue
            dim, divisor = listed(term, "grid term", 2, 2)
            matching(dim, "grid dimension", _DIM, 1)
            count(divisor, "grid divisor", MAX_GRID_DIVISOR, 1)
    return Grid.from_json(data)


def _checked_name(binding: Any) -> str:
    """The name of a binding that is sane."""
    # Row-major bindings have no fifth element: older manifests have none at all.
    name, dtype, shape, access, *layout = listed(binding, "binding", 5, 4)
    for text in layout:
        matching(text, "binding layout", _LAYOUT, MAX_NAME)
        if access != "read":
            raise BundleError(f"binding {name}: only what is read may have a layout")
    found = matching(name, "binding name", _NAME)
    _texts(dtype, access)
    for size in listed(shape, "binding shape", MAX_RANK):
        if isinstance(size, str):
            matching(size, "binding shape", _TERM, 9)
        else:
            count(size, "binding shape", MAX_DIMENSION, 1)
    return found


def _binding(data: Any) -> Binding:
    """A checked binding; one like it that was read before, where there is one."""
    return _kept(_BINDINGS, data, Binding.from_json)


def check_layouts(signature: Signature, problem: Problem) -> None:
    """Raises BundleError where a layout does not fit its binding in the entry's own problem."""
    for binding in signature.bindings if signature.layouts else ():
        if binding.layout:
            try:
                binding.memory(problem)
            except PlanError as error:
                raise BundleError(str(error)) from None


def _texts(*values: Any) -> None:
    """Words that are looked up later: a short text, so that a lookup cannot fail oddly."""
    for value in values:
        matching(value, "signature", _NAME, 32)
