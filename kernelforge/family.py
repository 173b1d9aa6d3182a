"""A kernel family: what one template can become, what it computes, and what that costs.

A family is a declaration. It does not render, compile or run: see `kernelforge.render`,
`kernelforge.compile` and `kernelforge.measure`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import SpaceError
from kernelforge.space import Space
from kernelforge.variant import Value, Variant
from kernelforge_runtime.abi.device_info import FEATURES, DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.abi.windows import MOST_WINDOWS, WINDOW_STEP
from kernelforge_runtime.dtypes import DType

Arrays = dict[str, NDArray[Any]]
MAX_BINDINGS = 16
"""Buffers of one kernel bound as descriptors; every driver that matters takes as many."""


def _no_constants(problem: Problem) -> Mapping[str, int | float]:
    return {}


def _always(precision: DType, params: Mapping[str, Any]) -> bool:
    return True


def _any_problem(problem: Problem) -> str | None:
    return None


@dataclass(frozen=True)
class KernelFamily:
    """One template with everything that is needed to tune, verify and pack it.

    Attributes:
        name: of the family; lower-case, the same as in variant names.
        template: file below `templates/`.
        dims: names of the dimensions of its problems, in the order in which they are printed.
        precisions: element types that it comes in, the default first.
        space: what may vary.
        signature: (precision, parameters) -> bindings, push constants, grid, workgroup.
        inputs: (problem, precision, generator) -> an array in host form for every binding that is
            read; both "read" and "readwrite".
        oracle: (problem, precision, inputs, constants) -> the expected array of every binding that
            is written, as float32, float64 or uint32.
        cost: (problem, precision) -> (floating-point operations, bytes that must move).
        constants: problem -> push constants that are no dimensions.
        corner_problems: small and awkward; every variant is verified on them.
        default_problems: what is tuned where no model says better.
        defaults: dimensions that a person may leave out, and their values then.
        tolerance: factor on the tolerance of the precision.
        requires: GLSL extensions that the compiler must accept, e.g. `GL_KHR_cooperative_matrix`.
        problem_rule: says why a problem is not possible, None where it is.
        matters: whether these parameters make a kernel of their own in this precision; where a
            parameter changes nothing, all but one of its values are left out of the search.
        templates: folder of the template where that is not the installation's; `lib/` still is.
        source: how another process makes this family where it is not in `families/`: a module, a
            function in it, and the function's arguments, plain data.
    """

    name: str
    template: str
    dims: tuple[str, ...]
    precisions: tuple[DType, ...]
    space: Space
    signature: Callable[[DType, Mapping[str, Any]], Signature]
    inputs: Callable[[Problem, DType, np.random.Generator], Arrays]
    oracle: Callable[[Problem, DType, Mapping[str, NDArray[Any]], Mapping[str, float]], Arrays]
    cost: Callable[[Problem, DType], tuple[float, float]]
    constants: Callable[[Problem], Mapping[str, int | float]] = _no_constants
    corner_problems: tuple[Problem, ...] = ()
    default_problems: tuple[Problem, ...] = ()
    defaults: Mapping[str, int] = field(default_factory=dict)
    tolerance: float = 1.0
    requires: tuple[str, ...] = ()
    problem_rule: Callable[[Problem], str | None] = _any_problem
    matters: Callable[[DType, Mapping[str, Any]], bool] = _always
    templates: Traversable | None = None
    source: tuple[str, str, tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise SpaceError(f"family {self.name!r}: use lower-case letters, digits, underscores")
        if not self.precisions:
            raise SpaceError(f"family {self.name} names no precision: give at least one")
        if unknown := sorted(set(self.defaults) - set(self.dims)):
            raise SpaceError(f"family {self.name} has no dimension {', '.join(unknown)} to default")
        for problem in (*self.corner_problems, *self.default_problems):
            if reason := self.refuses(problem):
                raise SpaceError(f"family {self.name} lists problem {problem}, but {reason}")

    def __hash__(self) -> int:
        return hash(self.name)

    def precision(self, name: str | DType) -> DType:
        """The family's element type of this name.

        Raises:
            SpaceError: it does not come in that precision.
        """
        for dtype in self.precisions:
            if name in (dtype, dtype.name):
                return dtype
        have = ", ".join(p.name for p in self.precisions)
        raise SpaceError(f"family {self.name} has no precision {name}; it has {have}")

    def variant(self, precision: str | DType, params: Mapping[str, Value]) -> Variant:
        """The variant with these parameters, whose name is its identity."""
        return Variant.of(self.name, self.precision(precision).name, params)

    def completed(self, problem: Problem) -> Problem:
        """The problem with the defaults of what it leaves out; dimensions in their order."""
        dims = {**self.defaults, **problem}
        order = [name for name in self.dims if name in dims]
        return Problem(**{name: dims[name] for name in (*order, *problem)})

    def refuses(self, problem: Problem) -> str | None:
        """Why the family cannot work on this problem; None where it can."""
        if set(problem) != set(self.dims):
            return f"{self.name} needs the dimensions {', '.join(self.dims)}"
        return self.problem_rule(problem)

    def fits(
        self, precision: str | DType, params: Mapping[str, Any], device: DeviceInfo
    ) -> str | None:
        """Why the device cannot run this variant; None where it can.

        Asks the signature for what every kernel needs of a device; what only this family needs
        are constraints of its space.
        """
        return unfit(self.signature(self.precision(precision), params), device)

    def valid(
        self, precision: str | DType, device: DeviceInfo, problem: Problem | None = None
    ) -> list[dict[str, Any]]:
        """Every configuration that the space and the device allow, in the space's order."""
        dtype = self.precision(precision)
        found = self.space.valid(device, problem)
        return [p for p in found if self.matters(dtype, p) and self.fits(dtype, p, device) is None]

    def default(
        self, precision: str | DType, device: DeviceInfo, problem: Problem | None = None
    ) -> dict[str, Any]:
        """The declared default, or the valid configuration nearest to it.

        Raises:
            SpaceError: the device can run none; says which limits leave none.
        """
        beyond: dict[str, list[str]] = {}

        def fits(params: Mapping[str, Any]) -> bool:
            found = next(misfits(self.signature(self.precision(precision), params), device), None)
            if found is not None:
                beyond.setdefault(found[0], []).append(found[1])
            return found is None

        try:
            return self.space.default(device, problem, accept=fits)
        except SpaceError as error:
            told = [
                name if name == why[0] else f"{name} ({why[0]})" for name, why in beyond.items()
            ]
            raise SpaceError(f"{error}{': ' * bool(told)}{', '.join(told)}") from None


def family_from(source: tuple[str, str, tuple[Any, ...]]) -> KernelFamily:
    """The family of a `KernelFamily.source`.

    Raises:
        SpaceError: it makes no family.
    """
    module, function, arguments = source
    try:
        family = getattr(importlib.import_module(module), function)(*arguments)
    except (ImportError, AttributeError) as error:
        raise SpaceError(f"family source {module}:{function}: {error}") from error
    if not isinstance(family, KernelFamily):
        raise SpaceError(f"family source {module}:{function} gives no KernelFamily")
    return family


def unfit(signature: Signature, device: DeviceInfo) -> str | None:
    """Why the device cannot run a kernel with this signature; None where it can."""
    return next((why for _, why in misfits(signature, device)), None)


def misfits(signature: Signature, device: DeviceInfo) -> Iterator[tuple[str, str]]:
    """Everything of a signature that is beyond a device: the limit's name, and why."""
    needed = set(signature.features)
    if signature.addressing == "address":
        needed.add("buffer_device_address")
    if 0 < signature.subgroup != device.subgroup_size:
        needed.add("subgroup_size_control")
    if unknown := needed - set(FEATURES):
        yield "features", f"feature {', '.join(sorted(unknown))} is not known"
    if missing := needed - device.features - unknown:
        why = f"needs {', '.join(sorted(missing))}"
        yield why, why
    most = min(device.max_workgroup_invocations, device.max_workgroup_size[0])
    if not 1 <= signature.workgroup <= most:
        yield "workgroup invocations", f"workgroup of {signature.workgroup}, at most {most}"
    if signature.push_constant_bytes > device.max_push_constants:
        why = (
            f"{signature.push_constant_bytes} bytes of push constants, "
            f"at most {device.max_push_constants}"
        )
        yield "push constant bytes", why
    low, high = device.subgroup_min, device.subgroup_max
    if signature.subgroup and not low <= signature.subgroup <= high:
        yield "subgroup size", f"subgroup of {signature.subgroup}, {low} to {high} possible"
    if signature.addressing == "descriptor" and len(signature.bindings) > MAX_BINDINGS:
        yield "descriptors", f"{len(signature.bindings)} bindings, at most {MAX_BINDINGS}"


def misfits_at(
    signature: Signature, device: DeviceInfo, problem: Problem
) -> Iterator[tuple[str, str]]:
    """Everything by which a problem is too large for this kernel on a device.

    Another variant may do: one of larger workgroups, or with buffer addresses, which have no range.
    """
    counts = signature.grid.evaluate(problem)
    for axis, found, most in zip("xyz", counts, device.max_workgroup_count, strict=True):
        if found > most:
            yield f"workgroups in {axis}", f"{found} workgroups in {axis}, at most {most}"
    for binding in signature.bindings:
        most = MOST_WINDOWS * WINDOW_STEP
        if binding.name in signature.windowed and binding.nbytes(problem) > most:
            what = f"{binding.name} has {binding.nbytes(problem)} bytes, at most {most}"
            yield "bytes in windows", what
    if signature.addressing == "descriptor":
        for binding in signature.bindings:
            if (nbytes := binding.nbytes(problem)) > device.max_storage_buffer:
                most = device.max_storage_buffer
                yield "bytes of a binding", f"{binding.name} has {nbytes} bytes, at most {most}"
                break
