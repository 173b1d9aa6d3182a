"""What earlier runs found for other problems, as the journal has it.

Modules are shared by all problems of a bundle, not only by those of one run: winners of today are
timed on yesterday's problems, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kernelforge.errors import RenderError, SpaceError
from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.stale import renders_as
from kernelforge.tune.crossing import PHASE
from kernelforge.tune.every_layout import signature_of
from kernelforge.tune.finals import choose
from kernelforge.tune.study import TuneResult
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import BundleMatch, Manifest, read_manifest
from kernelforge_runtime.errors import BundleError

Key = tuple[str, str, str]
"""Family, precision and problem, as a measurement names them."""


def manifest_here(folder: Path, info: DeviceInfo) -> Manifest | None:
    """The manifest in a folder; None where there is none, or it is not of this device as it is."""
    try:
        manifest = read_manifest(folder)
    except BundleError:
        return None
    return manifest if manifest.device.match(info) is BundleMatch.EXACT else None


def earlier_results(
    journal: Iterable[Measurement],
    manifest: Manifest,
    info: DeviceInfo,
    done: Iterable[TuneResult],
    family_of: Callable[[str], KernelFamily | None],
    template_of: Callable[[KernelFamily], str],
) -> list[TuneResult]:
    """Results of earlier runs, for the problems that the bundle holds and this run did not tune.

    Only finals of the same device and driver count, of kernels that today's template makes alike,
    and only those that the bundle was made of: another toolchain, or a journal of something else,
    gives other programs.

    Args:
        journal: every measurement there is, oldest first.
        manifest: of the device's bundle.
        info: of the device.
        done: what this run tuned.
        family_of: the family of a name; None where there is no such family any more.
        template_of: today's hash of a family's template.

    Returns:
        Ascending by family, precision and problem.
    """
    packed: dict[Key, set[str]] = {}
    for entry in manifest.entries:
        packed.setdefault(
            (entry.family, entry.precision, _name(entry.problem)), set()
        ).add(entry.module_sha256)  # fmt: skip
    for result in done:
        packed.pop(_key(result), None)
    results = []
    for key, measured in sorted(_measured(packed, journal, info).items()):
        family = family_of(key[0])
        if family is None or key[1] not in {p.name for p in family.precisions}:
            continue
        today = template_of(family)
        renewed = [r for m in measured if (r := _renewed(m, today, family)) is not None]
        known = _result(key, renewed, family)
        if known is not None and packed[key] & {m.spirv_sha256 for m in known.finalists if m.ok}:
            results.append(known)
    return results


def with_crossed(
    results: Iterable[TuneResult],
    journal: Iterable[Measurement],
    info: DeviceInfo,
    family_of: Callable[[str], KernelFamily],
    template_of: Callable[[KernelFamily], str],
) -> list[TuneResult]:
    """Results, each with what an earlier run crossed after these very finals.

    Finals are kept as long as no trial is added to their study; what was timed in turns with them
    holds as long. After finals of this run nothing was crossed yet.

    Args:
        results: of this run.
        journal: every measurement there is, oldest first.
        info: of the device.
        family_of: the family of a name.
        template_of: today's hash of a family's template.
    """
    results = list(results)
    found = _measured({_key(r) for r in results}, journal, info)
    whole = []
    for result in results:
        family = family_of(result.family)
        today, measured = template_of(family), found.get(_key(result), [])
        last = max((i for i, m in enumerate(measured) if m.phase == "final"), default=None)
        # Those after other finals are on another scale of time.
        kept = last is not None and measured[last].seed == result.default.seed
        after = [m for m in measured[last:] if m.template_sha256 == today] if kept else []
        crossed = _crossed(after, family)
        best = min((m for m in (result.best, *crossed) if m.ok), key=lambda m: m.median_ns)
        whole.append(replace(result, best=best, finalists=(*result.finalists, *crossed)))
    return whole


def _key(result: TuneResult) -> Key:
    return result.family, result.precision, _name(result.problem)


def _measured(
    wanted: Container[Key], journal: Iterable[Measurement], info: DeviceInfo
) -> dict[Key, list[Measurement]]:
    """What was measured of problems on this device and driver, oldest first."""
    driver = f"{info.driver_name} {info.driver_info}".strip()
    found: dict[Key, list[Measurement]] = {}
    for m in journal:
        key = (m.family, m.precision, _name(Problem.parse(m.problem)))
        if key in wanted and (m.device, m.driver) == (info.slug, driver):
            found.setdefault(key, []).append(m)
    return found


def _crossed(measured: Iterable[Measurement], family: KernelFamily) -> list[Measurement]:
    """Those of other problems' winners, the last of each."""
    crossed = {m.variant: m for m in measured if m.phase == PHASE and _is_known(m, family)}
    return list(crossed.values())


def _name(problem: Problem) -> str:
    """The same whatever order the dimensions were given in."""
    return str(Problem(**dict(sorted(problem.items()))))


def _result(key: Key, measured: Sequence[Measurement], family: KernelFamily) -> TuneResult | None:
    """What the last finals and what was crossed since then come to; None without a winner."""
    last = max((i for i, m in enumerate(measured) if m.phase == "final"), default=None)
    if last is None:
        return None
    first = last
    # All finals of a run have one seed; those of the run before have another.
    while first > 0 and (before := measured[first - 1]).phase == "final":
        if before.seed != measured[last].seed:
            break
        first -= 1
    finals = [m for m in measured[first : last + 1] if _is_known(m, family)]
    best = choose(finals)
    if best is None:
        return None
    crossed = _crossed(measured[last + 1 :], family)
    best = min((m for m in (best, *crossed) if m.ok), key=lambda m: m.median_ns)
    trials = [m for m in measured if m.phase == "trial"]
    return TuneResult(
        family=key[0],
        precision=key[1],
        problem=Problem.parse(measured[last].problem),
        best=best,
        default=finals[0],
        finalists=(*finals, *crossed),
        trials=tuple(m for m in trials if _is_known(m, family)),
        space_size=0,
        seconds=0.0,
        study="",
    )


def _renewed(measured: Measurement, today: str, family: KernelFamily) -> Measurement | None:
    """The measurement as one of today's template; None for a trial of another template.

    A final keeps its place among those of its run, the first of which is the default's.
    """
    if measured.template_sha256 == today:
        return measured
    if measured.phase not in ("final", PHASE):
        return None
    try:
        same = not measured.ok or renders_as(family, measured.variant, measured.glsl_sha256)
    except (SpaceError, RenderError):
        same = False
    if same:
        return replace(measured, template_sha256=today)
    reason = "its template has changed, and the kernel with it"
    return replace(measured, outcome=Outcome.REJECTED, reason=reason, template_sha256=today)


def _is_known(measured: Measurement, family: KernelFamily) -> bool:
    """Whether today's family still has the variant."""
    try:
        signature_of(family, family.precision(measured.precision), measured)
    except SpaceError:
        return False
    return True
