"""How large a family's space is on a device, and what becomes of every configuration of it.

Counted for people, by `inspect --space`; a search asks `KernelFamily.valid`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelforge.family import MAX_BINDINGS, KernelFamily, misfits, misfits_at
from kernelforge.space import Space
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType

MOST_QUESTIONS = 60_000
"""To one rule, for what it refuses by itself: half a second."""

FEATURE, RULE, AT_PROBLEM = "feature", "constraint", "problem"
REPEAT, LIMIT, TOO_LARGE, COMPILER = "repeat", "limit", "too large", "compiler"


@dataclass(frozen=True)
class Reason:
    """One reason why configurations fall out.

    Attributes:
        kind: FEATURE, RULE, AT_PROBLEM, REPEAT, LIMIT, TOO_LARGE or COMPILER, in which order they
            are asked.
        text: the rule, the feature or the limit.
        first: configurations that fall out by this before anything else.
        alone: those that it refuses by itself: of the whole product; but for REPEAT and later
            kinds only of what the rules before them leave. None where counting takes too long.
    """

    kind: str
    text: str
    first: int
    alone: int | None


@dataclass(frozen=True)
class Survey:
    """What becomes of a space.

    Attributes:
        size: of the whole product of the choices.
        valid: configurations that a search here goes through.
        reasons: why the others fall out; with `valid` the `first` of all add up to `size`.
        limits: of the device, as far as they are checked before anything is compiled.
        lacking: values that need a feature which the device lacks, by feature.
    """

    size: int
    valid: int
    reasons: tuple[Reason, ...]
    limits: tuple[tuple[str, str], ...]
    lacking: Mapping[str, tuple[str, ...]]


def survey(
    family: KernelFamily,
    precision: DType,
    info: DeviceInfo,
    problem: Problem | None = None,
    target: DeviceInfo | None = None,
) -> Survey:
    """Goes through a family's space.

    Args:
        family: whose.
        precision: of the weights.
        info: the device.
        problem: rules on problems and sizes are left out where there is none.
        target: the device as far as the GLSL compiler here can use it, if that is less.
    """
    space = family.space
    first = space.explain(info)
    first.pop("valid")
    alone = _feature_counts(space, info)
    reasons = [Reason(FEATURE, t, first.pop(t, 0), count) for t, count in alone.items()]
    for rule in space.constraints:
        refused = space.refused_alone(rule, MOST_QUESTIONS, info)
        reasons.append(Reason(RULE, rule.text, first.pop(rule.text, 0), refused))
    left = space.valid(info)
    if problem is not None:
        for other in space.problem_constraints:
            kept = [p for p in left if other.holds(p, info, problem)]
            refused = space.refused_alone(other, MOST_QUESTIONS, info, problem)
            reasons.append(Reason(AT_PROBLEM, other.text, len(left) - len(kept), refused))
            left = kept
    kept = [p for p in left if family.matters(precision, p)]
    repeats = len(left) - len(kept)
    if repeats:
        text = f"changes nothing in {precision.name}"
        reasons.append(Reason(REPEAT, text, repeats, repeats))
    valid, found = _through_limits(family, precision, info, problem, kept)
    reasons += found
    if target is not None and target.features != info.features:
        kept = [p for p in valid if family.fits(precision, p, target) is None]
        allowed = {tuple(p.values()) for p in space.valid(target, problem)}
        kept = [p for p in kept if tuple(p.values()) in allowed]
        lost = len(valid) - len(kept)
        text = f"the GLSL compiler lacks {', '.join(sorted(info.features - target.features))}"
        reasons.append(Reason(COMPILER, text, lost, lost))
        valid = kept
    return Survey(space.size, len(valid), tuple(reasons), _limits(info), _lacking(space, info))


def _through_limits(
    family: KernelFamily,
    precision: DType,
    info: DeviceInfo,
    problem: Problem | None,
    configs: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[Reason]]:
    """What the device's limits leave, and what each of them refuses."""
    valid = []
    first: Counter[tuple[str, str]] = Counter()
    alone: Counter[tuple[str, str]] = Counter()
    for params in configs:
        signature = family.signature(precision, params)
        names = [(LIMIT, name) for name, _ in misfits(signature, info)]
        if problem is not None:
            names += [(TOO_LARGE, name) for name, _ in misfits_at(signature, info, problem)]
        if names:
            first[names[0]] += 1
            alone.update(names)
        else:
            valid.append(params)
    return valid, [Reason(*name, first[name], count) for name, count in alone.items()]


def _feature_counts(space: Space, info: DeviceInfo) -> dict[str, int]:
    """By text of the reason, the configurations with a value whose feature the device lacks."""
    without: dict[str, int] = {}
    features = {f for c in space.choices for f in c.needs.values() if f not in info.features}
    for feature in sorted(features):
        rest = 1
        for choice in space.choices:
            rest *= sum(choice.needs.get(value) != feature for value in choice.values)
        without[f"needs {feature}"] = space.size - rest
    return without


def _lacking(space: Space, info: DeviceInfo) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for choice in space.choices:
        for value in choice.values:
            if feature := choice.missing(value, info):
                found.setdefault(feature, []).append(f"{choice.name}={value}")
    return {feature: tuple(values) for feature, values in sorted(found.items())}


def _limits(info: DeviceInfo) -> tuple[tuple[str, str], ...]:
    size = str(info.subgroup_size or "any")
    if info.subgroup_min != info.subgroup_max:
        size += f" ({info.subgroup_min} to {info.subgroup_max})"
    return (
        ("workgroup invocations", str(info.max_workgroup_invocations)),
        ("workgroup size in x", str(info.max_workgroup_size[0])),
        ("workgroups in x, y, z", " x ".join(map(str, info.max_workgroup_count))),
        ("shared memory bytes", str(info.max_shared_memory)),
        ("subgroup size", size),
        ("push constant bytes", str(info.max_push_constants)),
        ("bytes of a binding", str(info.max_storage_buffer)),
        ("descriptors", str(MAX_BINDINGS)),
        ("cooperative shapes", _shapes(info.cooperative_shapes)),
        ("flexible matrices", _shapes(info.flexible_matrices)),
    )


def _shapes(shapes: tuple[tuple[Any, ...], ...]) -> str:
    texts = [f"{m}x{n}x{k} {' '.join(map(str, rest))}" for m, n, k, *rest in shapes]
    return "; ".join(texts) or "none"
