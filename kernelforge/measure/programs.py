"""Variants of one problem before they are measured: described, compiled, and known by their SPIR-V.

Needs no device, only what is known of it; so it works beside one that is busy measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from kernelforge.compile import compile_rendered, missing_extensions
from kernelforge.errors import CompileError, RenderError, SpaceError
from kernelforge.family import KernelFamily, misfits, misfits_at
from kernelforge.measure.measurement import LOSSES, Measurement, Outcome
from kernelforge.render import render
from kernelforge.variant import Variant
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import SpirvError

SAME = "same SPIR-V as"
"""How the note of a measurement begins that was taken over from an equal program."""

_NOT_RECALLED = LOSSES | {Outcome.OUT_OF_MEMORY}


def original(measurement: Measurement) -> str:
    """The variant whose measurement this is: its own, or that of an equal program."""
    if measurement.note.startswith(SAME):
        return measurement.note.removeprefix(SAME).strip()
    return measurement.variant


class Programs:
    """Compiles variants of one family, and remembers what was measured of each program."""

    def __init__(
        self, info: DeviceInfo, family: KernelFamily, precision: DType, problem: Problem
    ) -> None:
        self._info, self._family = info, family
        self._precision, self._problem = precision, problem
        self._known: dict[tuple[str, Signature], Measurement] = {}

    def describe(self, params: Mapping[str, Any]) -> Measurement:
        """A measurement of this variant with nothing measured yet."""
        info = self._info
        return Measurement(
            family=self._family.name,
            precision=self._precision.name,
            problem=str(self._problem),
            variant=self._family.variant(self._precision, params).name,
            outcome=Outcome.OK,
            device=info.slug,
            driver=f"{info.driver_name} {info.driver_info}".strip(),
        )

    def prepare(self, params: Mapping[str, Any]) -> tuple[Measurement, ShaderModule | None]:
        """Renders and compiles a variant.

        Returns:
            Its measurement so far, hashes included, and the module; None where there is none,
            and the measurement says why.
        """
        blank = self.describe(params)
        try:
            rendered = render(self._family, self._precision, params)
            if reason := self._refusal(params):
                return replace(blank, outcome=Outcome.REJECTED, reason=reason), None
            module = compile_rendered(self._family, self._precision, params, rendered)
        except SpaceError as error:
            return replace(blank, outcome=Outcome.REJECTED, reason=first_line(error)), None
        except (CompileError, RenderError, SpirvError) as error:
            return replace(blank, outcome=Outcome.COMPILE_FAILED, reason=first_line(error)), None
        blank = replace(
            blank,
            glsl_sha256=rendered.sha256,
            template_sha256=rendered.template_sha256,
            spirv_sha256=module.sha256,
        )
        return blank, module

    def _refusal(self, params: Mapping[str, Any]) -> str | None:
        """Why the variant is not worth compiling here; None where it is."""
        family, info = self._family, self._info
        if missing := missing_extensions(family):
            return f"the GLSL compiler does not know {', '.join(missing)}"
        signature = family.signature(self._precision, family.space.normalise(params))
        beyond = chain(misfits(signature, info), misfits_at(signature, info, self._problem))
        return next((why for _, why in beyond), None)

    def known(self, blank: Measurement, module: ShaderModule) -> Measurement | None:
        """What was measured of an equal program under another name; None where nothing was."""
        known = self._known.get((module.sha256, module.signature))
        if known is None or known.variant == blank.variant:
            return None
        return replace(known, variant=blank.variant, note=f"{SAME} {original(known)}")

    def recall(self, measured: Iterable[Measurement]) -> None:
        """Takes over what other sessions and workers measured on this problem, device and driver.

        Not what was lost or found no memory: that need not be the program's fault.
        """
        for measurement in measured:
            if not measurement.spirv_sha256 or measurement.outcome in _NOT_RECALLED:
                continue
            try:
                params = self._family.space.normalise(Variant.parse(measurement.variant).values)
                signature = self._family.signature(self._precision, params)
            except SpaceError:  # of another version of the family
                continue
            self._known.setdefault((measurement.spirv_sha256, signature), measurement)

    def keep(self, module: ShaderModule, result: Measurement) -> None:
        """Remembers what became of a program."""
        self._known[module.sha256, module.signature] = result


def first_line(error: BaseException) -> str:
    """The first line that says something, of an error that may have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
