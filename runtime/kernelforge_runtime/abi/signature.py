"""What a kernel takes: ordered bindings, push constants, and how it is launched."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from kernelforge_runtime.abi.grid import Grid
from kernelforge_runtime.abi.windows import ROOMS, count_windows
from kernelforge_runtime.dtypes import DTYPES, F32, U32, DType
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.layout import Layout, LayoutError

Access = Literal["read", "write", "readwrite", "scratch", "zeroed"]
"""What a kernel does with a buffer. The last two are memory of its own, which the plan provides: of
"scratch" neither what it holds before a run nor after it matters; "zeroed" is zero before, and the
kernel leaves it so."""
Addressing = Literal["descriptor", "address"]

Layouts = tuple[tuple[str, str], ...]
"""(binding, layout) of every binding that is not row-major; none: all are."""

ADDRESS_BYTES = 8
MAX_SCRATCH_BYTES = 16 << 20
"""Of one binding: a kernel that would want more serves smaller problems only."""
_TERM = re.compile(r"[A-Z](/[1-9][0-9]{0,6})?")


@dataclass(frozen=True)
class Binding:
    """One buffer of a kernel.

    Attributes:
        name: GLSL name of the buffer's array.
        dtype: element type on the host.
        shape: numbers, dimension names (single capitals), or `M/32` for ceil(M / 32); row-major.
        access: what the kernel does with it, see `Access`.
        layout: how its elements lie in memory, see `kernelforge_runtime.layout`; row-major
            where it says nothing. Axes are called by the capitals of `shape`. Of q8 and nf4 it
            counts weights, and the fastest digit of K fills whole words.
    """

    name: str
    dtype: DType
    shape: tuple[str | int, ...]
    access: Access = "read"
    layout: str = ""

    @classmethod
    def from_json(cls, data: Any) -> Binding:
        """Reads `["weight", "f16", ["M", "K"], "read"]`, perhaps with a layout behind it."""
        name, dtype, shape, access, *rest = data
        return cls(str(name), DTYPES[dtype], _shape(shape), _access(access), *map(str, rest))

    @property
    def is_own(self) -> bool:
        """Whether it is memory of the kernel's own, of which nobody else needs to know."""
        return self.access in ("scratch", "zeroed")

    def extent(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers for these dimensions."""
        try:
            return tuple(_size(s, dims) if isinstance(s, str) else s for s in self.shape)
        except KeyError as error:
            raise PlanError(
                f"binding {self.name} needs dimension {error}; have {sorted(dims)}"
            ) from None

    def nbytes(self, dims: Mapping[str, int]) -> int:
        """Bytes the buffer must have for these dimensions."""
        if self.layout:
            return self.dtype.nbytes(self.memory(dims).cosize)
        return self.dtype.nbytes(math.prod(self.extent(dims)))

    def memory(self, dims: Mapping[str, int]) -> Layout:
        """Where each element lies, for these dimensions.

        Raises:
            PlanError: the layout does not fit the shape.
        """
        extent = self.extent(dims)
        if not self.layout:
            return Layout.row_major(extent)
        letters = [term[0] if isinstance(term, str) else "" for term in self.shape]
        if len(set(letters)) != len(letters) or "" in letters:
            raise PlanError(f"binding {self.name}: a layout takes axes such as M or K/64")
        try:
            return Layout.from_name(self.layout, dict(zip(letters, extent, strict=True)))
        except LayoutError as error:
            raise PlanError(f"binding {self.name}: {error}") from None


@dataclass(frozen=True)
class PushConstant:
    """A 32-bit push constant. A single capital is filled from the problem, others by the op."""

    name: str
    dtype: DType = U32


def push_constants_from_json(data: Any) -> tuple[PushConstant, ...]:
    """Reads `[["M", "u32"], ["eps", "f32"]]`."""
    return tuple(PushConstant(str(name), DTYPES[dtype]) for name, dtype in data)


@dataclass(frozen=True)
class Signature:
    """Bindings in order, push constants in order, grid and workgroup of one compiled kernel.

    With `addressing="descriptor"`, binding i is set 0, binding i. With `"address"` the push
    constant block starts with one 64-bit buffer address per binding, in order, and the 32-bit
    push constants follow. What is `windowed` has windows besides: of the i-th, they are the array
    of uniform buffers at set i, binding 0 (see `abi.windows`).
    """

    bindings: tuple[Binding, ...]
    push_constants: tuple[PushConstant, ...]
    grid: Grid
    workgroup: int
    subgroup: int = 0
    """Required subgroup size; 0 means that any will do."""
    addressing: Addressing = "descriptor"
    features: tuple[str, ...] = ()
    """Device features that the kernel needs, spelled as in DeviceInfo.features."""
    fixed: tuple[tuple[str, int], ...] = ()
    """Dimensions that are compiled in: the kernel serves only problems that have these values."""
    multiples: tuple[tuple[str, int], ...] = ()
    """Dimensions that must be multiples of a number: the kernel checks no bounds there."""
    windowed: tuple[str, ...] = ()
    """Bindings, only read, that are seen through windows; with addresses only."""

    @cached_property
    def own(self) -> tuple[Binding, ...]:
        """Bindings that are memory of the kernel's own."""
        return tuple(b for b in self.bindings if b.is_own)

    @cached_property
    def layouts(self) -> Layouts:
        """Of the bindings that are not row-major, by name: their buffers must be packed so."""
        return tuple((b.name, b.layout) for b in self.bindings if b.layout)

    def window_room(self, dims: Mapping[str, int]) -> int:
        """The windows that a pipeline for these dimensions has room for; 0 where it has none."""
        counts = [count_windows(b.nbytes(dims)) for b in self.bindings if b.name in self.windowed]
        return next((r for r in ROOMS if r >= max(counts)), ROOMS[-1]) if counts else 0

    @property
    def push_constant_bytes(self) -> int:
        """Size of the push constant block, in bytes."""
        addresses = len(self.bindings) if self.addressing == "address" else 0
        return ADDRESS_BYTES * addresses + 4 * len(self.push_constants)

    @property
    def is_limited(self) -> bool:
        """Whether it serves some sizes only, and needs another kernel beside it for the others."""
        return bool(self.multiples or self.own)

    @property
    def limits(self) -> str:
        """Which dimensions it serves, for messages: `compiled for {'X': 32}`."""
        text = f"compiled for {dict(self.fixed)}"
        if self.multiples:
            text += f" and multiples of {dict(self.multiples)}"
        if self.own:
            text += f", with at most {MAX_SCRATCH_BYTES >> 20} MiB per buffer of its own"
        return text

    def serves(self, dims: Mapping[str, int]) -> bool:
        """Whether the kernel is right for these dimensions, and takes no undue memory of its own.

        What is compiled in must agree, what goes unchecked must divide.
        """
        for name, value in self.fixed:
            if dims.get(name) != value:
                return False
        for name, size in self.multiples:
            if name not in dims or dims[name] % size:
                return False
        try:
            return all(b.nbytes(dims) <= MAX_SCRATCH_BYTES for b in self.own)
        except PlanError:  # a dimension of its scratch is missing
            return False

    def pack_constants(self, values: Mapping[str, int | float]) -> bytes:
        """The 32-bit push constants as bytes, little endian (addresses not included).

        Raises:
            PlanError: a constant has no value, or one that is out of range.
        """
        out = bytearray()
        for constant in self.push_constants:
            if constant.name not in values:
                raise PlanError(
                    f"push constant {constant.name} has no value; have {sorted(values)}"
                )
            value = values[constant.name]
            if constant.dtype == F32:
                out += _float(constant.name, value)
            elif isinstance(value, int) and 0 <= value < 2**32:
                out += struct.pack("<I", value)
            else:
                raise PlanError(f"push constant {constant.name}={value!r}: expected 0 to 2^32-1")
        return bytes(out)

    def to_json(self) -> dict[str, Any]:
        """Form kept in manifests."""
        return {
            "addressing": self.addressing,
            "bindings": [
                [b.name, b.dtype.name, list(b.shape), b.access, *([b.layout] if b.layout else [])]
                for b in self.bindings
            ],
            "features": list(self.features),
            "fixed": dict(self.fixed),
            "grid": self.grid.to_json(),
            **({"multiples": dict(self.multiples)} if self.multiples else {}),
            "push_constants": [[c.name, c.dtype.name] for c in self.push_constants],
            "subgroup": self.subgroup,
            **({"windowed": list(self.windowed)} if self.windowed else {}),
            "workgroup": self.workgroup,
        }

    @classmethod
    def from_json(cls, data: Any) -> Signature:
        """Reads what `to_json` wrote; a wrong form raises PlanError."""
        try:
            if data["addressing"] not in ("descriptor", "address"):
                raise PlanError(
                    f"addressing {data['addressing']!r}: expected descriptor or address"
                )
            return cls(
                bindings=tuple(map(Binding.from_json, data["bindings"])),
                push_constants=push_constants_from_json(data["push_constants"]),
                grid=Grid.from_json(data["grid"]),
                workgroup=_count(data["workgroup"]),
                subgroup=_count(data["subgroup"]),
                addressing=data["addressing"],
                features=tuple(str(f) for f in data["features"]),
                fixed=_named_counts(data["fixed"]),
                multiples=_named_counts(data.get("multiples", {})),
                windowed=tuple(str(name) for name in data.get("windowed", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"signature has a wrong form: {type(error).__name__}: {error}"
            ) from error


def _float(name: str, value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except (OverflowError, struct.error):
        raise PlanError(f"push constant {name}={value!r}: expected a float32") from None


def _size(term: str, dims: Mapping[str, int]) -> int:
    if len(term) == 1:
        return dims[term]
    name, _, divisor = term.partition("/")
    return -(-dims[name] // int(divisor)) if divisor else dims[name]


def _shape(shape: Any) -> tuple[str | int, ...]:
    for term in shape:
        number = isinstance(term, int) and not isinstance(term, bool) and term > 0
        if not number and not (isinstance(term, str) and _TERM.fullmatch(term)):
            raise PlanError(
                f"binding shape {shape!r}: expected sizes and dimensions like M or M/32"
            )
    return tuple(shape)


def _access(access: Any) -> Access:
    if access not in get_args(Access):
        raise PlanError(f"binding access {access!r}: expected {', '.join(get_args(Access))}")
    result: Access = access
    return result


def _named_counts(data: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((str(name), _count(value)) for name, value in data.items()))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise PlanError(f"expected a count, found {value!r}")
    return value
