"""Is a kernel's result right? Fresh random inputs, poisoned outputs, guard words, an oracle.

After a run, no guard word on either side of any buffer may have changed, nor any input. Memory of
the kernel's own starts as poison too, or as zeros where it must be left as zeros.

Speed is measured elsewhere; a variant that fails here is never timed, and never packed.

Tolerance. Weights are exact in the form they are stored in, because the oracle is given the same
rounded weights; what remains is float32 accumulation in another order. A sum of K products with
random signs has a rounding error that grows like eps * sqrt(K) * rms(result)
(Source: N. Higham, Accuracy and Stability of Numerical Algorithms, section 4.2, the statistical
form of the bound). So the allowed absolute error of each element is

    factor * SAFETY * eps32 * sqrt(K) * (rms(expected) + |expected|)  +  ulp(dtype) * |expected|

with K the reduction length, `factor` from the family (1 for a plain sum, more where the kernel
uses exp or tanh, whose precision Vulkan leaves loose), and one unit in the last place of the type
that the result is stored in. Integer results must be equal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.compile import compile_variant
from kernelforge.errors import MeasureError
from kernelforge.family import KernelFamily
from kernelforge.measure.watch import Watch
from kernelforge.measure.workspace import POISON, Held, Workspace, dimension_names, host_bytes
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, Signature
from kernelforge_runtime.dtypes import BF16, F16, F32, DType, decode
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import Device

SAFETY = 16.0
EPS32 = 2.0**-23
_STORED_ULP = {F32.name: 0.0, F16.name: 2.0**-10, BF16.name: 2.0**-7}
VERIFY_TIMEOUT_S = 60.0
ELEMENT_BITS = frozenset("XY")
"""Dimensions that say how wide an activation's elements are: no number of anything summed."""


@dataclass(frozen=True)
class Verification:
    """What one check found.

    Attributes:
        ok: the result may be used.
        max_error: largest absolute error over all outputs (inf where NaN met a number).
        tolerance: what was allowed where the error was worst in relation to it.
        where: binding and index of that place, e.g. `y[0, 17]`.
        seed: of the inputs: the check can be repeated with it.
        reason: one line; empty where ok.
        run_s: seconds the run took, what the driver compiles at a first run included.
    """

    ok: bool
    max_error: float
    tolerance: float
    where: str
    seed: int
    reason: str = ""
    run_s: float = 0.0


def reduction_length(problem: Mapping[str, int], shape: tuple[str | int, ...]) -> int:
    """How many terms are summed into one element of an output of this shape, at most.

    The product of the dimensions that the output does not have; where it has them all (a norm, a
    recurrence), the longest dimension. At least 64, so that short sums get a useful margin.
    ELEMENT_BITS count nothing.
    """
    kept = dimension_names(shape)
    sizes = {name: size for name, size in problem.items() if name not in ELEMENT_BITS}
    summed = [size for name, size in sizes.items() if name not in kept]
    longest = math.prod(summed) if summed else max(sizes.values(), default=1)
    return max(64, longest)


def allowed_error(
    expected: NDArray[Any], dtype: DType, reduction: int, factor: float = 1.0
) -> NDArray[np.float64]:
    """Allowed absolute error of each element (module docstring has the formula).

    Args:
        expected: what the oracle says, any shape.
        dtype: the type the result is stored in; integer types allow nothing.
        reduction: how many terms go into one element.
        factor: the family's own factor.
    """
    if dtype.name not in _STORED_ULP:
        return np.zeros(expected.shape)
    size = np.abs(expected.astype(np.float64))
    size[~np.isfinite(size)] = 0.0
    rms = math.sqrt(float(np.mean(np.square(size)))) if size.size else 0.0
    accumulation = factor * SAFETY * EPS32 * math.sqrt(reduction)
    return accumulation * (rms + size) + _STORED_ULP[dtype.name] * size


def compare(
    name: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    dtype: DType,
    reduction: int,
    factor: float = 1.0,
    seed: int = 0,
) -> Verification:
    """Compares one output with the oracle's.

    NaN equals NaN and an infinity equals itself; either against a number is an infinite error.

    Args:
        name: of the binding, for the message.
        found: as stored on the host (bf16 as raw bits), any shape of the right size.
        expected: the oracle's values, with the output's shape.
        dtype: of the binding.
        reduction: see `reduction_length`.
        factor: the family's tolerance factor.
        seed: handed on into the result.
    """
    found = found.reshape(expected.shape)
    allowed = allowed_error(expected, dtype, reduction, factor)
    value = (decode(found, dtype) if dtype.name in _STORED_ULP else found).astype(np.float64)
    wanted = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(value - wanted)
    same = (value == wanted) | (np.isnan(value) & np.isnan(wanted))
    error = np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))
    if error.size == 0:
        return Verification(True, 0.0, 0.0, f"{name}[]", seed)
    excess = np.where(error > allowed, np.inf, 0.0)
    ratio = np.divide(error, allowed, out=excess, where=(allowed > 0) & np.isfinite(error))
    flat = int(np.argmax(ratio))
    index = np.unravel_index(flat, expected.shape) if expected.shape else ()
    where = f"{name}[{', '.join(str(int(i)) for i in index)}]"
    worst, limit = float(error.max()), float(allowed.flat[flat])
    wrong = int(np.count_nonzero(error > allowed))
    if not wrong:
        return Verification(True, worst, limit, where, seed)
    reason = (
        f"{where} is {value.flat[flat]:.7g}, expected {wanted.flat[flat]:.7g} "
        f"(allowed error {limit:.2g}; {wrong} of {error.size} elements wrong; seed {seed})"
    )
    return Verification(False, worst, limit, where, seed, reason)


class Verifier:
    """Checks variants of one family on one problem; keeps its buffers between checks.

    Close it, or use it as a context manager: it owns device memory.
    """

    def __init__(
        self,
        device: Device,
        family: KernelFamily,
        precision: DType,
        problem: Problem,
        watch: Watch | None = None,
    ) -> None:
        self._device, self._family, self._watch = device, family, watch or Watch()
        self._precision, self.problem = precision, problem
        self._constants = dict(family.constants(problem))
        self._workspace = Workspace(device, f"verify {family.name}")
        self._seed: int | None = None
        self._inputs: dict[str, NDArray[Any]] = {}
        self._expected: dict[str, NDArray[Any]] = {}

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the device memory."""
        self._workspace.close()

    def verify(
        self, module: ShaderModule, seed: int, timeout_s: float = VERIFY_TIMEOUT_S
    ) -> Verification:
        """Runs `module` once on inputs drawn from `seed` and compares every output.

        Raises:
            DeviceLostError: the device did not answer in time.
            MeasureError: the family's inputs or oracle do not fit its signature.
        """
        self._draw(seed)
        signature = module.signature
        buffers = self._workspace.load(signature, self.problem, self._inputs)
        dispatch = Dispatch(module, self.problem, buffers, self._constants)
        started = time.monotonic()
        with Plan(self._device, [dispatch], name=module.name) as plan:
            self._watch.run(plan, timeout_s)
        run_s = time.monotonic() - started
        return replace(self._judge(signature, seed), run_s=run_s)

    def _draw(self, seed: int) -> None:
        if seed == self._seed:
            return
        rng = np.random.default_rng(seed)
        self._inputs = self._family.inputs(self.problem, self._precision, rng)
        self._expected = self._family.oracle(
            self.problem, self._precision, self._inputs, self._constants
        )
        self._seed = seed

    def _judge(self, signature: Signature, seed: int) -> Verification:
        held = {b.name: self._workspace.read_back(b, self.problem) for b in signature.bindings}
        for binding in signature.bindings:
            if fault := self._trespass(binding, held[binding.name]):
                where, reason = fault
                return Verification(False, math.inf, 0.0, where, seed, f"{reason} (seed {seed})")
        worst: Verification | None = None
        for binding in signature.bindings:
            if binding.access == "read" or binding.is_own:
                continue
            if binding.name not in self._expected:
                raise MeasureError(
                    f"{self._family.name}: the oracle gives {sorted(self._expected)} but not "
                    f"{binding.name}, which the kernel writes; add it to the oracle"
                )
            raw = held[binding.name].data
            expected = np.asarray(self._expected[binding.name])
            found = raw.view(binding.dtype.np)[: expected.size]
            if found.size != expected.size:
                raise MeasureError(
                    f"{self._family.name}: the oracle gives {expected.shape} for {binding.name}, "
                    f"the signature says {binding.extent(self.problem)}; make them agree"
                )
            left = _unwritten(raw, expected, binding.dtype)
            if left:
                where = f"{binding.name}"
                reason = f"{left} words of {binding.name} were never written (seed {seed})"
                return Verification(False, math.inf, 0.0, where, seed, reason)
            reduction = reduction_length(self.problem, binding.shape)
            factor = self._family.tolerance
            result = compare(binding.name, found, expected, binding.dtype, reduction, factor, seed)
            if not result.ok:
                return result
            if worst is None or result.max_error > worst.max_error:
                worst = result
        return worst or Verification(True, 0.0, 0.0, "", seed)

    def _trespass(self, binding: Binding, held: Held) -> tuple[str, str] | None:
        """(where, why) if something was written that is not the kernel's to write."""
        name = binding.name
        if place := held.touched():
            side = "past the end" if place.startswith("end") else "before the start"
            return f"{name}[{place}]", f"wrote {side} of {name}: {name}[{place}]"
        if binding.access == "zeroed" and (left := np.flatnonzero(held.data)).size:
            where = f"{name}[word {int(left[0])}]"
            return where, f"did not leave {name} zero, as the next run needs it: {where}"
        if binding.access == "read":
            given = host_bytes(binding, self.problem, self._inputs).view(np.uint32)
            changed = np.flatnonzero(held.data != given)
            if changed.size:
                where = f"{name}[word {int(changed[0])}]"
                return where, f"wrote to {name}, which is only read: {where}"
        return None


def _unwritten(raw: NDArray[np.uint32], expected: NDArray[Any], dtype: DType) -> int:
    """Words that still hold the poison, where the oracle does not happen to want that very word."""
    left = int(np.count_nonzero(raw == POISON))
    if left and dtype.bits == 32 and np.issubdtype(expected.dtype, np.integer):
        wanted = expected.astype(np.uint64).astype(np.uint32)
        left -= int(np.count_nonzero(wanted == POISON))
    return max(left, 0)


def verify(
    device: Device,
    family: KernelFamily,
    precision: DType,
    params: Mapping[str, Any] | ShaderModule,
    problem: Problem,
    seed: int = 0,
) -> Verification:
    """Checks one variant (its parameters, or its compiled module) once.

    Raises:
        CompileError: it does not compile.
        DeviceLostError: the device did not answer in time.
        MeasureError: the family's declarations contradict each other.
    """
    if isinstance(params, ShaderModule):
        module = params
    else:
        module = compile_variant(family, precision, params)
    with Verifier(device, family, precision, problem) as verifier:
        return verifier.verify(module, seed)
