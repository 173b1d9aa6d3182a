"""What of the kernel families a device, or the GLSL compiler here, leaves out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

from kernelforge.compile.check import extensions_in
from kernelforge.family import KernelFamily
from kernelforge.render import render, template_sources
from kernelforge.resources import templates_dir
from kernelforge.space import Choice, Constraint, Space
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.dtypes import DType


@dataclass(frozen=True)
class Gap:
    """One thing of which no variant can be built and run.

    Attributes:
        family: its name.
        precision: its name.
        form: "FORM=coop", a value that no variant can have; empty where there is no variant at all.
        reason: why.
    """

    family: str
    precision: str
    form: str
    reason: str


def required_extensions(families: Iterable[KernelFamily]) -> tuple[str, ...]:
    """Every GLSL extension that a family declares or a template can ask for, by name."""
    found = {extension for family in families for extension in family.requires}
    for file in _files(templates_dir()):
        found.update(extensions_in(file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


def gaps(family: KernelFamily, info: DeviceInfo, unknown: Set[str] = frozenset()) -> Iterator[Gap]:
    """What is left out on this device; a whole precision is said once, not for each of its forms.

    Args:
        family: which to look at.
        info: the device.
        unknown: those of `required_extensions` that the compiler does not know.
    """
    space = family.space
    for choice in space.choices:
        if choice.name in family.dims:  # compiled in for a problem, not searched
            space = _only(space, choice, choice.default)
    whole = _Part("", space.valid(info), space)
    forms = []
    for choice in filter(_is_form, space.choices):
        for value in choice.values:
            chosen = [p for p in whole.configs if p[choice.name] == value]
            forms.append(_Part(f"{choice.name}={value}", chosen, _only(space, choice, value)))
    for precision in family.precisions:
        if reason := whole.reason(family, precision, info, unknown):
            yield Gap(family.name, precision.name, "", reason)
            continue
        for form in forms:
            if reason := form.reason(family, precision, info, unknown):
                yield Gap(family.name, precision.name, form.name, reason)


@dataclass
class _Part:
    """A part of a family's space: its name, what the device allows of it, and the part itself."""

    name: str
    configs: list[dict[str, Any]]
    space: Space
    excluded: str | None = None

    def reason(
        self,
        family: KernelFamily,
        precision: DType,
        info: DeviceInfo,
        unknown: Set[str],
    ) -> str | None:
        """Why nothing of it can be built and run; None where it can, or is not meant to be."""
        if not self.configs:
            self.excluded = self.excluded or _why_excluded(self.space, info)
            return self.excluded
        unfit: Counter[str] = Counter()
        for params in self.configs:
            if not family.matters(precision, params):
                continue
            if (why := family.fits(precision, params, info)) is None:
                return _not_compiled(family, precision, params, unknown)
            unfit[why] += 1
        return unfit.most_common(1)[0][0] if unfit else None


def _is_form(choice: Choice) -> bool:
    """Whether its values are ways to compute, not sizes."""
    return bool(choice.needs) or any(isinstance(value, str) for value in choice.values)


def _not_compiled(
    family: KernelFamily, precision: DType, params: dict[str, Any], unknown: Set[str]
) -> str | None:
    if not unknown & _mentioned(family):
        return None  # without rendering: this is asked for every form of every family
    needed = {*family.requires, *extensions_in(render(family, precision, params).glsl)}
    names = ", ".join(sorted(needed & unknown))
    return f"the GLSL compiler does not know {names}" if names else None


def _mentioned(family: KernelFamily) -> Set[str]:
    """The extensions that a variant of the family could ask for."""
    texts = (text for _, text in template_sources(family))
    return {*family.requires, *(name for text in texts for name in extensions_in(text))}


def _only(space: Space, choice: Choice, value: Any) -> Space:
    """The space with one of its parameters held at a value."""
    needs = {value: choice.needs[value]} if value in choice.needs else {}
    held = Choice(choice.name, (value,), value, needs)
    choices = (held if c.name == choice.name else c for c in space.choices)
    return Space(*choices, *space.constraints, *space.problem_constraints)


class _Watched:
    """A device that tells when a rule looks at it."""

    def __init__(self, info: DeviceInfo, seen: Callable[[], None]) -> None:
        self._info = info
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        self._seen()
        return getattr(self._info, name)


def _why_excluded(space: Space, info: DeviceInfo) -> str:
    """What of the device leaves no configuration of the space.

    Most configurations fall to rules that hold on any device; those explain nothing, so the reason
    is taken from the rules that looked at the device.
    """
    about_device: set[str] = set()

    def watching(rule: Constraint) -> Constraint:
        def holds(params: Any, device: DeviceInfo) -> bool:
            watched: Any = _Watched(device, lambda: about_device.add(rule.text))
            return rule.holds(params, watched)

        return Constraint(rule.text, holds)

    traced = Space(*space.choices, *map(watching, space.constraints))
    texts = [text for text, _ in Counter(traced.explain(info)).most_common() if text != "valid"]
    named = [t for t in texts if t in about_device or t.startswith("needs ")]
    return (named or texts)[0]


def _files(folder: Traversable) -> Iterator[Traversable]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        elif entry.name.endswith(".j2"):
            yield entry
