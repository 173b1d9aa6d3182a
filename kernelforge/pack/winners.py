"""Which variant of each problem goes into a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kernelforge.errors import PackError
from kernelforge.measure.measurement import Measurement
from kernelforge.pack.cover import smallest_cover
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts

Key = tuple[str, str, Problem, Layouts, bool]
"""Family, precision, problem, how its operands lie in memory, and whether it is for some sizes."""


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
    def key(self) -> Key:
        """What the winner is the answer to: a problem, for operands that lie in memory so.

        A kernel that serves some sizes only stands beside one that serves them all.
        """
        signature = self.module.signature
        return (
            self.family, self.precision, self.problem, signature.layouts, signature.is_limited,
        )  # fmt: skip


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
    """The verified winner of each problem and layout, from as few modules as the slack allows.

    Two where the fastest does not serve all sizes: it, and the fastest that does.

    One for each layout, since a matrix is kept in one layout for all families: which of them that
    is shows when all are measured, and the runtime chooses when it loads the matrix.

    Args:
        candidates: any number per problem; what is not verified is left out.
        slack: share of its own best time that a problem may lose where that lets it use a module
            another problem uses anyway. With 0.03 a bundle usually needs a few modules per
            family, and pipelines to match, at no loss that can be felt.
    """
    found = _by_problem(candidates)
    good = {
        key: {
            name: candidate
            for name, candidate in variants.items()
            if candidate.median_ns <= _least(variants) * (1.0 + slack)
        }
        for key, variants in found.items()
        if _is_worth_it(key, found)
    }
    groups: dict[tuple[str, str], list[Key]] = {}
    for key in good:
        groups.setdefault(key[:2], []).append(key)
    chosen: list[Winner] = []
    for keys in groups.values():
        kept = smallest_cover([_ratios(good[key]) for key in keys])
        for key in keys:
            able = [good[key][name] for name in kept if name in good[key]]
            chosen.append(min(able, key=lambda c: (c.median_ns, c.module.name)))
    return sorted(
        chosen,
        key=lambda w: (*w.key[:2], tuple(sorted(w.problem.items())), *w.key[3:]),
    )


@dataclass(frozen=True)
class Sharing:
    """What it saves, and costs, that problems share modules.

    Attributes:
        problems: with their layouts, each counted once.
        before: modules if each took its own fastest.
        after: modules that are kept.
        worst_loss: the most that one of them loses, as a share of its best time.
        worst: which one, in words; empty where none loses anything.
    """

    problems: int
    before: int
    after: int
    worst_loss: float
    worst: str

    def line(self) -> str:
        """One line."""
        text = f"{self.after} modules serve {self.problems} problems; {self.before} would be best"
        if not self.worst:
            return f"{text}, and none loses time"
        return f"{text}; {self.worst} loses most, {100 * self.worst_loss:.1f} %"


def sharing(candidates: Iterable[Winner], chosen: Sequence[Winner]) -> Sharing:
    """Compares what `choose` made of candidates with the fastest of each."""
    found = _by_problem(candidates)
    fastest = {
        min(variants.values(), key=lambda c: (c.median_ns, c.module.name)).module.sha256
        for variants in found.values()
    }
    worst, where = 0.0, ""
    for winner in chosen:
        least = _least(found[winner.key])
        lost = winner.median_ns / least - 1.0 if least > 0 else 0.0
        if lost > worst:
            worst, where = lost, f"{winner.family} {winner.precision} {winner.problem}"
    kept = {winner.module.sha256 for winner in chosen}
    return Sharing(len(chosen), len(fastest), len(kept), worst, where)


def _by_problem(candidates: Iterable[Winner]) -> dict[Key, dict[str, Winner]]:
    """The verified ones by what they answer and by name, of doubles the faster."""
    found: dict[Key, dict[str, Winner]] = {}
    for candidate in candidates:
        if not candidate.verification.ok:
            continue
        variants = found.setdefault(candidate.key, {})
        known = variants.get(candidate.module.name)
        if known is None or candidate.median_ns < known.median_ns:
            variants[candidate.module.name] = candidate
    return found


def _is_worth_it(key: Key, found: Mapping[Key, Mapping[str, Winner]]) -> bool:
    """Whether a kernel for some sizes is faster than the one beside it that serves them all."""
    beside = found.get((*key[:4], False))
    return not key[4] or beside is None or _least(found[key]) < _least(beside)


def _least(variants: Mapping[str, Winner]) -> float:
    return min(c.median_ns for c in variants.values())


def _ratios(variants: Mapping[str, Winner]) -> dict[str, float]:
    """Times over the best one's; of what was never timed, all are equal."""
    least = _least(variants)
    return {name: c.median_ns / least if least > 0 else 1.0 for name, c in variants.items()}
