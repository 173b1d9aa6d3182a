"""Which variant of each problem goes into a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kernelforge.errors import PackError
from kernelforge.measure.measurement import Measurement
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts


class Verification(Protocol):
    """What is kept of the last check against the oracle; `measure.verify` makes these."""

    @property
    def ok(self) -> bool:
        """Whether the result was right."""

    @property
    def seed(self) -> int:
        """Of the inputs."""

    @property
    def max_error(self) -> float:
        """Largest absolute error."""

    @property
    def tolerance(self) -> float:
        """Absolute error allowed where it was worst."""


@dataclass(frozen=True)
class Winner:
    """One measured variant on one problem. Times in ns per dispatch; 0 where not measured.

    Attributes:
        trials: how many variants were tried before this one was chosen.
        default_ns: time of the family's default variant on the same problem.
        verification: of this module on this device.
    """

    family: str
    precision: str
    problem: Problem
    module: ShaderModule
    median_ns: float
    spread_ns: float
    trials: int
    default_ns: float
    verification: Verification
    template_sha256: str
    glsl_sha256: str

    @property
    def key(self) -> tuple[str, str, Problem, Layouts]:
        """What the winner is the answer to: a problem, for operands that lie in memory so."""
        return self.family, self.precision, self.problem, self.module.signature.layouts


@dataclass(frozen=True)
class _Checked:
    ok: bool
    seed: int
    max_error: float
    tolerance: float


def winner(
    measurement: Measurement, module: ShaderModule, trials: int, default_ns: float
) -> Winner:
    """The winner that a measurement describes.

    Args:
        measurement: of `module`; its verification is taken over.
        module: what was measured.
        trials: how many variants were tried.
        default_ns: time of the default variant, 0 where it could not be measured.

    Raises:
        PackError: the measurement is of another module.
    """
    if measurement.spirv_sha256 != module.sha256:
        raise PackError(
            f"{module.name}: measured as {measurement.spirv_sha256[:12]} but compiled to "
            f"{module.sha256[:12]}; measure it again"
        )
    checked = _Checked(
        measurement.ok, measurement.seed, measurement.max_error, measurement.tolerance
    )
    return Winner(
        family=measurement.family,
        precision=measurement.precision,
        problem=Problem.parse(measurement.problem),
        module=module,
        median_ns=measurement.median_ns,
        spread_ns=measurement.spread_ns,
        trials=trials,
        default_ns=default_ns,
        verification=checked,
        template_sha256=measurement.template_sha256,
        glsl_sha256=measurement.glsl_sha256,
    )


def choose(candidates: Iterable[Winner], slack: float = 0.0) -> list[Winner]:
    """The fastest verified candidate of each problem and layout, in the order of these.

    One for each layout, since a matrix is kept in one layout for all families: which of them that
    is shows when all are measured, and the runtime chooses when it loads the matrix.

    Args:
        candidates: any number per problem; what is not verified is left out.
        slack: share of its own best time that a problem may lose where that lets it use a module
            another problem uses anyway. With 0.03 a bundle usually needs a few modules per
            family, and pipelines to match, at no loss that can be felt.
    """
    by_problem: dict[tuple[str, str, Problem, Layouts], dict[str, Winner]] = {}
    for candidate in candidates:
        if not candidate.verification.ok:
            continue
        variants = by_problem.setdefault(candidate.key, {})
        known = variants.get(candidate.module.name)
        if known is None or candidate.median_ns < known.median_ns:
            variants[candidate.module.name] = candidate
    good = {
        key: {
            name: candidate
            for name, candidate in variants.items()
            if candidate.median_ns <= min(c.median_ns for c in variants.values()) * (1.0 + slack)
        }
        for key, variants in by_problem.items()
    }
    chosen: dict[tuple[str, str, Problem, Layouts], Winner] = {}
    # Greedy cover: the variant that serves most open problems first, then the faster one.
    while len(chosen) < len(good):
        served: dict[str, list[Winner]] = {}
        for key, variants in good.items():
            if key not in chosen:
                for name, candidate in variants.items():
                    served.setdefault(name, []).append(candidate)
        best = min(served, key=lambda n: (-len(served[n]), sum(c.median_ns for c in served[n]), n))
        chosen.update((candidate.key, candidate) for candidate in served[best])
    return sorted(
        chosen.values(),
        key=lambda w: (*w.key[:2], tuple(sorted(w.problem.items())), w.key[3]),
    )
