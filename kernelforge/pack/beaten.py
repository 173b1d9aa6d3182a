"""Which kernels of a bundle are never taken: they keep their figures there, not their modules.

Several families may do the same thing: a rival takes another one's calls where it was measured
faster, a fused kernel those of its parts. All are tuned, as only figures tell which it is; of what
lost, the runtime needs to know no more than that. See `bundle.crossover` and `bundle.fusion`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle import Bundle, Entry, KernelSet, Manifest
from kernelforge_runtime.bundle.crossover import RIVALS
from kernelforge_runtime.bundle.fusion import FUSED, LaidOut
from kernelforge_runtime.dtypes import DTYPES, F16, F32
from kernelforge_runtime.ops.weight_layout import choose_layouts

_log = logging.getLogger(__name__)

Make = Callable[[Entry], bytes | None]
"""The SPIR-V of an entry, made anew; None where it cannot be."""

_USUAL = {
    r.family: usual
    for usual, rivals in RIVALS.items()
    for r in rivals
    if not r.rounds and r.family not in RIVALS
}
"""By the rival's name. One that rounds its inputs, or has calls of its own, is wanted anyway."""


def with_beaten(manifest: Manifest) -> tuple[Entry, ...]:
    """The entries, each marked as beaten or not by the figures of them all, and nothing else.

    A mark that an entry has already does not count: what beat it may be gone, or slower by now.

    Args:
        manifest: of one device; where nothing was measured nothing is beaten.
    """
    bare = tuple(replace(entry, beaten=False) for entry in manifest.entries)
    judge = _Judge(replace(manifest, entries=bare))
    return tuple(replace(entry, beaten=judge.beats(entry)) for entry in bare)


def settled(manifest: Manifest, modules: dict[str, bytes], make: Make) -> tuple[Entry, ...]:
    """As `with_beaten`, with a module for each entry that is not beaten.

    One that was beaten by what has changed since is made again; where that gives another module,
    or none, the entry is left out: its figures would be of a kernel that nobody has.

    Args:
        manifest: of one device.
        modules: SPIR-V by its hash; those that are made again are added.
        make: gives the module of an entry, or None where today's toolkit makes another one.
    """
    entries = manifest.entries
    while True:
        entries = with_beaten(replace(manifest, entries=entries))
        lost = []
        for entry in entries:
            if entry.beaten or entry.module_sha256 in modules:
                continue
            spirv = make(entry)
            if spirv is None:
                lost.append(entry)
            else:
                _log.info("%s on %s: no longer beaten, made again", entry.variant, entry.problem)
                modules[entry.module_sha256] = spirv
        if not lost:
            return entries
        first = lost[0]
        _log.warning(
            "no longer beaten, but today's toolkit makes another kernel of it: "
            "%s %s %s%s left out; tune again what the model needs",
            first.family, first.precision, first.problem,
            f" and {len(lost) - 1} more" * (len(lost) > 1),
        )  # fmt: skip
        # Without them another layout may be the best one, and others beaten.
        entries = tuple(entry for entry in entries if entry not in lost)


class _Judge:
    def __init__(self, manifest: Manifest) -> None:
        self._groups: dict[LaidOut, list[Entry]] = {}
        for entry in manifest.entries:
            self._groups.setdefault(_what(entry), []).append(entry)
        # Of its figures only; no module is asked for.
        bundle = Bundle(Path(), manifest, "", None, {})
        plain = KernelSet([bundle])
        # Where inputs are always rounded, nothing that does not is fused.
        self._sets = [plain, plain.with_rounding("faster")]
        self._laid_out: dict[tuple[str, int, int], set[Layouts]] = {}

    def beats(self, entry: Entry) -> bool:
        """Whether others always do the entry's problem.

        Its whole group is looked at: which of two the runtime takes depends on what else it does.
        """
        what = _what(entry)
        least = self._least(what)
        if least is None:
            return False
        family, precision, problem, layouts = what
        if family in _USUAL:
            other = self._most((_USUAL[family], precision, problem, layouts))
            return other is not None and other <= least
        return family in FUSED and self._parts_beat(what, least)

    def _parts_beat(self, what: LaidOut, least: float) -> bool:
        """Whether the parts are as fast, for whichever activations they were measured for."""
        family, precision, problem, layouts = what
        measured = False
        for bits in (16, 32):
            parts = FUSED[family].parts(precision, problem, layouts, bits)
            times = [self._most(part) for part in parts]
            if None in times:
                if any(self._known(part) for part in parts if part[3] == layouts != ()):
                    return self._never_lies_so(what)
                continue
            measured = True
            if sum(time for time in times if time is not None) > least:
                return self._never_lies_so(what)
        return measured or self._never_lies_so(what)

    def _known(self, part: LaidOut) -> bool:
        """Whether it was measured, in any layout."""
        return any(key[:3] == part[:3] and self._most(key) for key in self._groups)

    def _never_lies_so(self, what: LaidOut) -> bool:
        """Whether the kernel's matrix is always kept in other layouts than it wants."""
        _, precision, problem, layouts = what
        if not layouts or not {"M", "K"} <= problem.keys():
            return False
        # Without figures of both, what is tuned next may choose another layout.
        if not all(self._any_of(product, precision) for product in ("gemv", "gemm")):
            return False
        key = (precision, problem["M"], problem["K"])
        if key not in self._laid_out:
            self._laid_out[key] = {
                choose_layouts(kernels, DTYPES[precision], problem["M"], problem["K"], bits)
                for kernels in self._sets
                for bits in (F16, F32)
            }
        return layouts not in self._laid_out[key]

    def _any_of(self, family: str, precision: str) -> bool:
        return any(what[:2] == (family, precision) and self._most(what) for what in self._groups)

    def _least(self, what: LaidOut) -> float | None:
        return min(self._times(what), default=None)

    def _most(self, what: LaidOut) -> float | None:
        """The slowest of what does this: for some sizes it is the only one."""
        return max(self._times(what), default=None)

    def _times(self, what: LaidOut) -> list[float]:
        """Of all that do this, ns; nothing unless all of them were measured."""
        times: Sequence[float] = [e.median_ns for e in self._groups.get(what, ())]
        return [float(t) for t in times] if all(times) else []


def _what(entry: Entry) -> LaidOut:
    problem: Problem = entry.problem
    return entry.family, entry.precision, problem, entry.signature.layouts
