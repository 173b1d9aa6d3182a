"""Reads a kernel's problem and signature from a manifest, with a cap on every number.

`abi` says what a signature means; here it is only asked whether a stranger's one is sane.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

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
from kernelforge_runtime.bundle.strict_json import (
    check_lines,
    count,
    decode,
    listed,
    matching,
    record,
    show,
)
from kernelforge_runtime.dtypes import DTYPES
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
"""Bindings, grids and so on that are remembered."""
LONGEST_KEPT = 4096
SUBGROUPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)

_LAYOUT = re.compile(r"[A-Z0-9/%+ ]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIM = re.compile(r"[A-Z]")
_TERM = re.compile(r"[A-Z](/[1-9][0-9]{0,6})?")
_START = b'\n      "signature": {'
_END = b"\n      }"
_KEY = b'\n        "'
_PARTS: dict[bytes, tuple[str, Any]] = {}
"""What was read and checked before, by its text."""


def problem_from_json(data: Any) -> Problem:
    """Reads `{"K": 4096, "M": 1024}`; a wrong form raises BundleError."""
    if not isinstance(data, dict) or not 1 <= len(data) <= MAX_DIMS:
        raise BundleError(f"problem: expected 1 to {MAX_DIMS} dimensions, found {show(data)}")
    for name, size in data.items():
        if _DIM.fullmatch(name) is None or type(size) is not int or not 1 <= size <= MAX_DIMENSION:
            matching(name, "problem", _DIM, 1)
            count(size, f"problem {name}", MAX_DIMENSION, 1)
    return Problem(**data)


def signature_from_lines(text: bytes) -> Signature:
    """Reads the lines of an entry that hold its signature, from the break before its key on.

    Keys and their values are remembered by their text, as most kernels have the same ones. That
    takes lines as the writer lays them out; others go through JSON as a whole.

    Raises:
        BundleError: a wrong form, an absurd size, or lines that hold more than one value.
    """
    values: dict[str, Any] = {}
    parts = text[len(_START) : -len(_END)].split(_KEY)
    for number, part in enumerate(parts[1:], 2):
        ended = part.endswith(b",")
        found = _part(part[:-1] if ended else part)
        if ended == (number == len(parts)) or found is None or found[0] in values:
            break
        values[found[0]] = found[1]
    plain = parts[0] == b"" and len(values) == len(parts) - 1
    if plain and text.startswith(_START) and text.endswith(_END):
        record(values, _KEYS, _OPTIONAL)
        return _whole(values)
    check_lines(text)
    return signature_from_json(decode(b"{" + text + b"}")["signature"])


def signature_from_json(data: Any) -> Signature:
    """Reads what `Signature.to_json` wrote; a wrong form or an absurd size raises BundleError."""
    record(data, _KEYS, _OPTIONAL)
    return _whole({key: _READERS[key](value) for key, value in data.items()})


def _part(text: bytes) -> tuple[str, Any] | None:
    """A key, whose first quote is cut off, and its value, read and checked; None if not one."""
    known = _PARTS.get(text)
    if known is not None:
        return known
    try:
        check_lines(text)
        data = decode(b'{"' + text + b"}")
    except BundleError:  # cut at a line that is no key's: the whole may be right
        return None
    key = next(iter(data), "")
    if len(data) != 1 or key not in _READERS:
        return None
    found = key, _READERS[key](data[key])
    if len(text) <= LONGEST_KEPT and len(_PARTS) < MOST_KEPT:
        _PARTS[text] = found
    return found


def _whole(values: dict[str, Any]) -> Signature:
    """A signature of checked values, which must go together."""
    signature = Signature(**values)
    if "windowed" in values:
        _check_windowed(signature)
    if signature.push_constant_bytes > MAX_PUSH_CONSTANT_BYTES:
        raise BundleError(
            f"push constants take {signature.push_constant_bytes} bytes; "
            f"at most {MAX_PUSH_CONSTANT_BYTES} are allowed"
        )
    return signature


def _check_windowed(signature: Signature) -> None:
    read = {binding.name for binding in signature.bindings if binding.access == "read"}
    names = signature.windowed
    distinct = len(set(names)) == len(names)
    if not distinct or not set(names) <= read or signature.addressing != "address":
        raise BundleError(
            f"windowed: expected bindings that are only read, each once, of a kernel that takes "
            f"addresses; found {show(list(names))}"
        )
    if "uniform_windows" not in signature.features:
        raise BundleError("windowed: the features do not list uniform_windows")


def _addressing(data: Any) -> str:
    if _word(data) not in ("descriptor", "address"):
        raise BundleError(f"addressing {data}: expected descriptor or address")
    return str(data)


def _bindings(data: Any) -> tuple[Binding, ...]:
    found = tuple(map(_binding, listed(data, "bindings", MAX_BINDINGS, 1)))
    if len({binding.name for binding in found}) != len(found):
        raise BundleError("bindings: a name is there twice")
    return found


def _binding(data: Any) -> Binding:
    # Row-major bindings have no fifth element: older manifests have none at all.
    name, dtype, shape, access, *layout = listed(data, "binding", 5, 4)
    for text in layout:
        matching(text, "binding layout", _LAYOUT, MAX_NAME)
        if access != "read":
            raise BundleError(f"binding {name}: only what is read may have a layout")
    matching(name, "binding name", _NAME)
    if _word(dtype) not in DTYPES:
        raise BundleError(f"binding {name}: element type {dtype} is not known")
    _word(access)
    for size in listed(shape, "binding shape", MAX_RANK):
        if isinstance(size, str):
            matching(size, "binding shape", _TERM, 9)
        else:
            count(size, "binding shape", MAX_DIMENSION, 1)
    try:
        return Binding.from_json(data)
    except PlanError as error:
        raise BundleError(f"signature: {error}") from None


def _features(data: Any) -> tuple[str, ...]:
    found = listed(data, "features", MAX_FEATURES)
    return tuple(matching(feature, "feature", FEATURE) for feature in found)


def _sizes(key: str, what: str, data: Any) -> tuple[tuple[str, int], ...]:
    """Dimensions and a number for each, by name; of "multiples" there are some if it is there."""
    if not isinstance(data, dict) or (key == "multiples" and not data):
        raise BundleError(f"{key}: expected an object, found {show(data)}")
    for name, size in data.items():
        matching(name, f"{key} dimension", _DIM, 1)
        count(size, f"{what} {name}", MAX_DIMENSION, 1)
    return tuple(sorted(data.items()))


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


def _subgroup(data: Any) -> int:
    if count(data, "subgroup") not in SUBGROUPS:
        raise BundleError(f"subgroup: expected one of {SUBGROUPS}, found {data}")
    return int(data)


def _windowed(data: Any) -> tuple[str, ...]:
    found = listed(data, "windowed", MOST_BUFFERS, 1)
    return tuple(matching(name, "windowed binding", _NAME) for name in found)


def _workgroup(data: Any) -> int:
    return count(data, "workgroup", MAX_WORKGROUP, 1)


def _word(value: Any) -> str:
    """A word that is looked up later: a short text, so that a lookup cannot fail oddly."""
    return matching(value, "signature", _NAME, 32)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "addressing": _addressing,
    "bindings": _bindings,
    "features": _features,
    "fixed": partial(_sizes, "fixed", "fixed"),
    "grid": _grid,
    "multiples": partial(_sizes, "multiples", "multiple of"),
    "push_constants": _constants,
    "subgroup": _subgroup,
    "windowed": _windowed,
    "workgroup": _workgroup,
}
_OPTIONAL: Final = ("multiples", "windowed")
_KEYS: Final = tuple(key for key in _READERS if key not in _OPTIONAL)


def check_layouts(signature: Signature, problem: Problem) -> None:
    """Raises BundleError where a layout does not fit its binding in the entry's own problem."""
    for binding in signature.bindings if signature.layouts else ():
        if binding.layout:
            try:
                binding.memory(problem)
            except PlanError as error:
                raise BundleError(str(error)) from None
