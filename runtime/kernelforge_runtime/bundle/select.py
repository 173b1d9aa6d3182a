"""Chooses the kernel for a problem: an exact entry, the nearest one, or the next bundle's."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from importlib.resources.abc import Traversable
from typing import Literal

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.bundle import Bundle, open_bundle
from kernelforge_runtime.bundle.crossover import contenders, fastest, rounding_rivals
from kernelforge_runtime.bundle.entry import Entry
from kernelforge_runtime.bundle.fingerprint import BundleMatch
from kernelforge_runtime.bundle.locate import Judge, Located, locate, locate_generic
from kernelforge_runtime.errors import BundleError, KernelForgeError, SpirvError
from kernelforge_runtime.turns import taking_turns

_log = logging.getLogger(__name__)


Rounding = Literal["never", "faster", "always"]
"""When a kernel may take another's place that rounds its inputs: where it was measured faster, or
wherever there is one."""


class Match(Enum):
    """How well a selected kernel fits, best first."""

    EXACT = "tuned for this problem on this device"
    NEAREST_PROBLEM = "tuned for the nearest problem on this device"
    SIMILAR_DEVICE = "tuned on another device"
    GENERIC = "generic"


@dataclass(frozen=True)
class Selection:
    """The kernel for a problem.

    Attributes:
        bundle: where the entry is from.
        distance: between the problem asked for and the entry's; see Problem.distance.
    """

    entry: Entry
    match: Match
    bundle: Bundle
    distance: float

    @property
    def module(self) -> ShaderModule:
        """The checked module; raises as Bundle.module does."""
        return self.bundle.module(self.entry)


def select(
    bundles: Sequence[Bundle],
    family: str,
    precision: str,
    problem: Problem,
    layouts: Layouts = (),
) -> Selection:
    """The kernel for a problem; any that serves it is right, a near one is also fast.

    Args:
        bundles: best first, the generic one last.
        family: e.g. `gemv`.
        precision: e.g. `f16`.
        problem: what is to be computed.
        layouts: how its operands lie in memory; kernels for other layouts are passed over.

    Raises:
        BundleError: no bundle has this family and precision with these dimensions and layouts.
    """
    for bundle in bundles:
        while (found := _nearest(bundle, family, precision, problem, layouts)) is not None:
            entry, distance = found
            if bundle.is_usable(entry):
                return Selection(entry, _match(bundle, distance), bundle, distance)
    raise BundleError(_nothing(bundles, family, precision, problem, layouts))


def _nearest(
    bundle: Bundle, family: str, precision: str, problem: Problem, layouts: Layouts
) -> tuple[Entry, float] | None:
    """The entry for the nearest problem, and how far that is."""
    # A kernel may have dimensions compiled in, or be right for multiples of a tile only.
    problems = bundle.problems(family, precision, layouts, problem)
    if problem in problems:
        return problems[problem], 0.0
    # Entries ascend by problem, so of two that are equally near the first one is taken.
    nearest = min(problems, key=problem.distance, default=None)
    distance = math.inf if nearest is None else problem.distance(nearest)
    if nearest is None or not math.isfinite(distance):
        return None
    return problems[nearest], distance


def _match(bundle: Bundle, distance: float) -> Match:
    if bundle.manifest.device.generic:
        return Match.GENERIC
    if bundle.match in (BundleMatch.SIMILAR_DEVICE, BundleMatch.OTHER_DEVICE):
        return Match.SIMILAR_DEVICE
    return Match.NEAREST_PROBLEM if distance else Match.EXACT


def _nothing(
    bundles: Sequence[Bundle], family: str, precision: str, problem: Problem, layouts: Layouts
) -> str:
    asked = f"no kernel for {family} {precision} {problem}"
    asked += "".join(f", {name} laid out as {layout!r}" for name, layout in layouts)
    for bundle in bundles:
        for entry, reason in bundle.skipped:
            if (entry.family, entry.precision) == (family, precision):
                return (
                    f"{asked}: {bundle.path} has one that cannot run here ({reason}); "
                    "use another precision"
                )
    found = sorted({e.precision for b in bundles for e in b.entries if e.family == family})
    where = ", ".join(str(bundle.path) for bundle in bundles) or "no bundle"
    has = f"{where} has {family} in {', '.join(found)}" if found else f"{where} has no {family}"
    terms = ",".join(f"{name}={size}" for name, size in problem.items())
    return f"{asked}: {has}; tune it: kernelforge tune --family {family} --problem {terms}"


def _generic(
    device: DeviceInfo, search: Iterable[Traversable] | None
) -> tuple[Located, Bundle] | KernelForgeError:
    """The generic bundle, or why it is not there.

    What only its SPIR-V tells is left for later: most of it is never asked for, as what stands
    before it has nearly all kernels.
    """
    try:
        located = locate_generic(device, search)
        return located, open_bundle(located.bundle_path, device, spirv=False)
    except (BundleError, SpirvError) as error:
        return error


class KernelSet:
    """The kernels of one device: its best bundle first, the generic one behind it.

    Attributes:
        bundles: best first.
        located: how the first one was found; None where bundles were handed in.
        rounding: when kernels that round their inputs are selected.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        located: Located | None = None,
        rounding: Rounding = "never",
    ) -> None:
        self.bundles = tuple(bundles)
        self.located = located
        self.rounding = rounding
        self._selected: dict[tuple[str, str, Problem, Layouts], Selection] = {}
        self._lost: dict[tuple[str, str, Problem, Layouts], bool] = {}

    @classmethod
    def open(
        cls,
        device: DeviceInfo,
        path: str | os.PathLike[str] | None = None,
        search: Iterable[Traversable] | None = None,
        judge: Judge | None = None,
    ) -> KernelSet:
        """Opens the best bundle for a device and, behind it, the generic one if there is one.

        A damaged bundle that was found by searching is passed over with a warning; one that was
        asked for by `path` is an error.

        Args:
            device: the device to be used.
            path: see `locate`.
            search: see `locate`.
            judge: see `locate`; `plan.open_kernels` has one.

        Raises:
            BundleError: no bundle can be used.
        """
        search = None if search is None else tuple(search)
        located = locate(device, path, search, judge)
        bundles = []
        with taking_turns(), ThreadPoolExecutor(1, "bundle") as pool:
            # Its modules are hashed, which does not hold the interpreter.
            first = pool.submit(open_bundle, located.bundle_path, device)
            behind: tuple[Located, Bundle] | KernelForgeError | None = None
            if located.match is not BundleMatch.GENERIC:
                behind = _generic(device, search)
            try:
                bundles.append(first.result())
            except (BundleError, SpirvError) as error:
                if path is not None or located.match is BundleMatch.GENERIC:
                    raise
                _log.warning("bundle passed over: %s", error)
        if isinstance(behind, KernelForgeError):
            if not bundles:
                raise behind
            _log.info("no generic bundle: %s", behind)
        elif behind is not None:
            if not bundles:
                located = behind[0]
                behind[1].skip_unusable(device)
            bundles.append(behind[1])
        return cls(bundles, located)

    def tell(self) -> KernelSet:
        """Logs, as a warning, what keeps the located bundle from being exact; gives itself."""
        if self.located is not None and self.located.match is not BundleMatch.EXACT:
            _log.warning("%s", self.located.reason)
        return self

    def with_rounding(self, rounding: Rounding) -> KernelSet:
        """The same kernels, otherwise selected."""
        return KernelSet(self.bundles, self.located, rounding)

    @property
    def sha256(self) -> str:
        """Names the kernels: the hashes of all bundles, for caches that depend on them."""
        return "-".join(bundle.sha256[:16] for bundle in self.bundles)

    def select(
        self, family: str, precision: str, problem: Problem, layouts: Layouts = ()
    ) -> Selection:
        """As `select`, or a rival's kernel that was measured faster (see `crossover`).

        Asking again for the same costs nothing.
        """
        key = (family, precision, problem, layouts)
        selection = self._selected.get(key)
        if selection is None:
            selection = self._rounded(family, precision, problem, layouts)
        if selection is None:
            families = contenders(family, problem, self.rounding != "never")
            chosen = fastest(self.bundles, families, precision, problem, layouts)
            selection = select(self.bundles, chosen, precision, problem, layouts)
        self._selected[key] = selection
        return selection

    def _rounded(
        self, family: str, precision: str, problem: Problem, layouts: Layouts
    ) -> Selection | None:
        """The kernel of a rival that rounds its inputs, where that is to be taken in any case."""
        for rival in rounding_rivals(family) if self.rounding == "always" else ():
            try:
                return select(self.bundles, rival, precision, problem, layouts)
            except BundleError as error:
                _log.info("%s", error)
        return None

    def find(
        self, family: str, precision: str, problem: Problem, layouts: Layouts = ()
    ) -> Selection | None:
        """As `select`, but None where no bundle has one: older bundles lack newer families."""
        try:
            return self.select(family, precision, problem, layouts)
        except BundleError:
            return None

    def is_beaten(
        self, family: str, precision: str, problem: Problem, layouts: Layouts = ()
    ) -> bool:
        """Whether the kernel that would be selected is not kept, because others are faster."""
        key = (family, precision, problem, layouts)
        if key not in self._lost:
            self._lost[key] = self._is_beaten(*key)
        return self._lost[key]

    def _is_beaten(self, family: str, precision: str, problem: Problem, layouts: Layouts) -> bool:
        for bundle in self.bundles:
            kept = bundle.problems(family, precision, layouts, problem)
            lost = bundle.beaten(family, precision, layouts, problem)
            near = [p for p in {**kept, **lost} if math.isfinite(problem.distance(p))]
            if near:
                first = min(near, key=lambda p: (problem.distance(p), tuple(sorted(p.items()))))
                return first not in kept
        return False

    def describe(self) -> str:
        """One line per bundle: where, how exact, how many kernels, how many cannot be run."""
        lines = [self.located.reason] if self.located else []
        for bundle in self.bundles:
            kind = bundle.match.value if bundle.match else "opened without a device"
            line = f"{bundle.path}: {len(bundle.entries)} kernels, {kind}"
            if bundle.skipped:
                entry, reason = bundle.skipped[0]
                line += f"; {len(bundle.skipped)} skipped ({entry.variant}: {reason})"
            lines.append(line)
        return "\n".join(lines)
