"""Times every configuration of a space, so that searches can be replayed on it for ever.

Configurations are visited in an order that has nothing to do with their parameters, with the
family's default between them: what the device's speed does meanwhile then looks like no parameter,
and is taken out. Every measurement goes to a journal as it is made, so a killed recording goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kernelforge.compile import buildable
from kernelforge.errors import TuneError
from kernelforge.family import KernelFamily
from kernelforge.measure import statistics
from kernelforge.measure.isolated import Patience
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.programs import SAME
from kernelforge.measure.timed_problem import Effort
from kernelforge.render import template_sha256
from kernelforge.space import Choice
from kernelforge.tune.drift import EVERY, Drift
from kernelforge.tune.journal import Journal
from kernelforge.tune.recorded import RecordedSpace
from kernelforge.variant import params_name
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import DeviceLostError

EFFORT = Effort(sample_ns=1e6, longest_sample_ns=10e6, samples=7, total_ns=60e6, setup_s=60.0)
"""Of one configuration: less than a search spends, for there are many, but no early stop."""
ONCE = Effort(sample_ns=1, most_dispatches=1, samples=1, total_ns=1, quick=1, setup_s=60.0)
"""Of a warm-up: what makes the driver compile it, and keep it in its own cache."""
PATIENCE = Patience(floor_s=75.0, ceiling_s=120.0)
"""Drivers that compile on the processor take long for some, and a search leaves those out."""
WARM_UP, REFERENCE = "warm-up", "drift"
"""Phases of journalled measurements that are no member of the space."""

_WORDS = {
    Outcome.OK: "correct",
    Outcome.REJECTED: "constraints",
    Outcome.COMPILE_FAILED: "compile",
    Outcome.WRONG_RESULT: "correctness",
    Outcome.TIMED_OUT: "timeout",
    Outcome.HUNG: "timeout",
}
"""In the T4 schema's words; all other outcomes are "runtime"."""


@dataclass(frozen=True)
class SubSpace:
    """What is recorded: one problem, and all its configurations or those with some values.

    Attributes:
        configs: each with a value for every parameter; none twice.
        default: the family's own, whether or not it is one of them.
        fixed: what was asked for, parameter -> values; empty for the whole space.
    """

    family: KernelFamily
    precision: DType
    problem: Problem
    configs: tuple[dict[str, Any], ...]
    default: dict[str, Any]
    fixed: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(
        cls,
        info: DeviceInfo,
        family: KernelFamily,
        precision: DType,
        problem: Problem,
        only: Mapping[str, Sequence[str]],
    ) -> SubSpace:
        """The configurations that are valid on a device and have these values.

        Args:
            info: of the device.
            family: what.
            precision: of the weights.
            problem: the dimensions.
            only: parameter -> values as they are written in variant names.

        Raises:
            TuneError: a parameter or value that the space does not have, or nothing is left.
            SpaceError: no variant can run at all.
        """
        if why := family.refuses(problem):
            raise TuneError(f"--record {family.name} at {problem}: {why}")
        target = buildable(info)
        choices = {choice.name: choice for choice in family.space.choices}
        fixed: dict[str, tuple[Any, ...]] = {}
        for name, words in only.items():
            if name not in choices:
                raise TuneError(
                    f"--only {name}: no parameter of {family.name}; it has {', '.join(choices)}"
                )
            fixed[name] = tuple(_value(choices[name], word) for word in words)
        configs = tuple(
            params
            for params in family.valid(precision, target, problem)
            if all(params[name] in values for name, values in fixed.items())
        )
        if not configs:
            raise TuneError(
                f"--only leaves none of the configurations of {family.name} {precision} at "
                f"{problem} that {info.name} can run; allow more values"
            )
        default = family.default(precision, target, problem)
        return cls(family, precision, problem, configs, default, fixed)

    def ordered(self) -> list[dict[str, Any]]:
        """The configurations in the order of their names' hashes: the same on every run."""
        return sorted(self.configs, key=lambda p: hashlib.sha256(self.name_of(p).encode()).digest())

    def name_of(self, params: Mapping[str, Any]) -> str:
        """A configuration's variant name."""
        return self.family.variant(self.precision, params).name


def _value(choice: Choice, word: str) -> Any:
    for value in choice.values:
        if word == (value if isinstance(value, str) else str(int(value))):
            return value
    have = ", ".join(v if isinstance(v, str) else str(int(v)) for v in choice.values)
    raise TuneError(f"--only {choice.name}={word}: {choice.name} is one of {have}")


class Recording:
    """One recording, begun or gone on with.

    Attributes:
        drift: how the device's speed moved, earlier sessions included.
    """

    def __init__(self, sub: SubSpace, journal: Journal, known: Iterable[Measurement]) -> None:
        """Takes over what an earlier session measured of the same programs.

        Args:
            sub: what to record.
            journal: takes every measurement.
            known: what it holds already; of another problem, driver or template, it is left aside.
        """
        self._sub, self._journal = sub, journal
        self._known = tuple(known)
        self._names = {sub.name_of(params) for params in sub.configs}
        self._timed: dict[str, tuple[int, Measurement]] = {}
        self._programs: dict[str, int] = {}
        self._warm: set[str] = set()
        self.drift = Drift()

    def __len__(self) -> int:
        return len(self._timed)

    @property
    def warmed(self) -> int:
        """How many were run once ahead of their timing."""
        return len(self._warm)

    def warm_up(self, bench: Measurer, told: Callable[[Measurement], None]) -> None:
        """Compiles and runs each configuration once, with no regard to time: under load, too.

        Raises:
            DeviceLostError: the device does not come back.
        """
        self._take_over(bench)
        for params in self._sub.ordered():
            name = self._sub.name_of(params)
            if name in self._warm or name in self._timed:
                continue
            found = replace(bench.measure(params), phase=WARM_UP)
            self._journal.append(found)
            self._warm.add(name)
            told(found)

    def run(self, bench: Measurer, told: Callable[[Measurement], None]) -> None:
        """Times what is left to time.

        Raises:
            TuneError: the default itself gives no right result, so drift cannot be told.
            DeviceLostError: the device does not come back.
        """
        self._take_over(bench)
        here = 0
        for params in self._sub.ordered():
            name = self._sub.name_of(params)
            if name in self._timed:
                continue
            if here % EVERY == 0:
                self._reference(bench)
            found = bench.measure(params)
            self._journal.append(found)
            self._keep(found)
            here += 1
            told(found)
            if found.outcome is Outcome.DEVICE_LOST and not bench.isolated:
                raise DeviceLostError(f"{found.variant}: {found.reason}")
        if here:
            self._reference(bench)

    def space(self, name: str) -> RecordedSpace:
        """What was recorded so far; times with drift and slow outliers taken out.

        Raises:
            TuneError: nothing was.
        """
        if not self._timed:
            raise TuneError(f"--record {name}: nothing was measured yet")
        configs, runtimes, reasons = [], [], []
        smoothed = _smoothed(self.drift)
        for params in self._sub.configs:
            if (kept := self._timed.get(self._sub.name_of(params))) is None:
                continue
            number, found = kept
            values = {n: v if isinstance(v, str) else int(v) for n, v in params.items()}
            configs.append(values)
            runtimes.append(self._runtimes(smoothed, number, found) if found.ok else ())
            reasons.append("correct" if found.ok else _WORDS.get(found.outcome, "runtime"))
        return RecordedSpace(
            name, tuple(configs), tuple(runtimes), tuple(reasons), self._metadata()
        )

    @staticmethod
    def _runtimes(smoothed: Drift, number: int, found: Measurement) -> tuple[float, ...]:
        slowdown = smoothed.slowdown_at(number)
        slow = set(statistics.outliers(found.samples_ns))
        kept = [ns for i, ns in enumerate(found.samples_ns) if i not in slow]
        return tuple(round(ns / slowdown / 1e6, 6) for ns in kept)

    def _metadata(self) -> dict[str, str]:
        sub = self._sub
        any_of = next(found for _, found in self._timed.values())
        fixed = " ".join(
            params_name([(name, value)]) for name, many in sub.fixed.items() for value in many
        )
        return {
            "device": any_of.device,
            "driver": any_of.driver,
            "family": sub.family.name,
            "precision": sub.precision.name,
            "problem": str(sub.problem),
            "template_sha256": template_sha256(sub.family),
            "fixed": fixed,
            "default": sub.name_of(sub.default),
            "default_ms": ", ".join(f"{ns / 1e6:.4f}" for ns in self.drift.times_ns),
        }

    def _reference(self, bench: Measurer) -> None:
        found = replace(bench.measure_again(self._sub.default), phase=REFERENCE)
        self._journal.append(found)
        if not found.ok:
            raise TuneError(
                f"{found.variant}: the default, against which drift is told, gives no time: "
                f"{found.outcome.value}: {found.reason}"
            )
        self.drift.add(len(self._timed), found)

    def _keep(self, found: Measurement) -> None:
        """Adds one, with the place where its time was taken, perhaps as an equal program's."""
        place = len(self._timed)
        if found.samples_ns and found.note.startswith(SAME):
            place = self._programs.get(found.spirv_sha256, place)
        self._programs.setdefault(found.spirv_sha256, place)
        self._timed.setdefault(found.variant, (place, found))

    def _take_over(self, bench: Measurer) -> None:
        """Reads the journal as it was written, once it is known for which device and driver."""
        if not self._known:
            return
        like = bench.describe(self._sub.default)
        template = template_sha256(self._sub.family)
        for m in self._known:
            same = (m.device, m.driver, m.problem) == (like.device, like.driver, like.problem)
            if not same or m.template_sha256 != template:
                continue
            if m.phase == REFERENCE and m.variant == like.variant and m.ok:
                self.drift.add(len(self._timed), m)
            elif m.variant in self._names and m.phase == WARM_UP:
                self._warm.add(m.variant)
            elif m.variant in self._names and m.phase == "trial":
                self._keep(m)
        self._known = ()


def _smoothed(drift: Drift) -> Drift:
    """Each reference with the median of itself and its neighbours: one disturbed one is no drift.

    Ten configurations would be divided by it, and the fastest of a space would be an accident.
    """
    known = drift.to_json()
    if len(known) < 3:
        return drift
    times = [ns for _, ns, _ in known]
    last = len(known) - 3
    starts = [min(max(i - 1, 0), last) for i in range(len(known))]
    return Drift(
        [(n, sorted(times[i : i + 3])[1], e) for i, (n, _, e) in zip(starts, known, strict=True)]
    )
