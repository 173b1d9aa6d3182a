"""A search space: what may vary, and what must hold.

Enumerates the valid configurations of a device; how they are searched is the business of
`kernelforge.tune`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kernelforge.errors import SpaceError
from kernelforge.partial import Given, NotYetError, Partial
from kernelforge.variant import check_parameter
from kernelforge_runtime.abi.device_info import FEATURES, DeviceInfo
from kernelforge_runtime.abi.problem import Problem

Params = Mapping[str, Any]
NEAR = 3
"""Changes to a default up to which is tried one by one what has so many: thousands, where to
enumerate a space is to go through millions."""


@dataclass(frozen=True)
class Choice:
    """A parameter with a few possible values.

    Attributes:
        name: in capitals; the template sees it by this name.
        values: whole numbers or words, in order.
        default: one of them.
        needs: the device feature that a value needs, by value.
    """

    name: str
    values: tuple[Any, ...]
    default: Any
    needs: Mapping[Any, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.values:
            check_parameter(self.name, value)
        if len(set(self.values)) < len(self.values):
            raise SpaceError(f"parameter {self.name}: a value is listed twice in {self.values}")
        for value in (self.default, *self.needs):
            if value not in self.values:
                raise SpaceError(f"parameter {self.name}: {value!r} is not one of {self.values}")
        for feature in self.needs.values():
            if feature not in FEATURES:
                raise SpaceError(f"parameter {self.name} needs {feature!r}, which is no feature")

    def possible(self, device: DeviceInfo) -> tuple[Any, ...]:
        """The values for which the device has the features."""
        return tuple(v for v in self.values if self.missing(v, device) is None)

    def missing(self, value: Any, device: DeviceInfo) -> str | None:
        """The feature that the value needs and that the device lacks, if any."""
        feature = self.needs.get(value)
        return feature if feature is not None and feature not in device.features else None


class Flag(Choice):
    """A parameter that is False or True; True may need a device feature."""

    def __init__(self, name: str, default: bool = False, needs: str | None = None) -> None:
        super().__init__(name, (False, True), default, {True: needs} if needs else {})


@dataclass(frozen=True)
class Constraint:
    """A rule on parameters and device: `holds(params, device)`.

    It may ask for parameters in any order and stop early; it must not depend on anything else.
    """

    text: str
    holds: Callable[[Params, DeviceInfo], bool]


@dataclass(frozen=True)
class ProblemConstraint:
    """A rule that also depends on the problem: `holds(params, device, problem)`."""

    text: str
    holds: Callable[[Params, DeviceInfo, Problem], bool]


class Space:
    """Choices and the constraints on them.

    Raises:
        SpaceError: two choices have the same name.
    """

    def __init__(self, *items: Choice | Constraint | ProblemConstraint) -> None:
        self.choices = tuple(i for i in items if isinstance(i, Choice))
        self.constraints = tuple(i for i in items if isinstance(i, Constraint))
        self.problem_constraints = tuple(i for i in items if isinstance(i, ProblemConstraint))
        self.names = tuple(c.name for c in self.choices)
        if len(set(self.names)) < len(self.names):
            raise SpaceError(f"a parameter is declared twice in {self.names}")
        self._found: dict[DeviceInfo, tuple[list[tuple[Any, ...]], Counter[str]]] = {}

    @cached_property
    def size(self) -> int:
        """Configurations before any constraint."""
        product = 1
        for choice in self.choices:
            product *= len(choice.values)
        return product

    @property
    def declared_default(self) -> dict[str, Any]:
        """The default of every choice, possible or not."""
        return {c.name: c.default for c in self.choices}

    def valid(self, device: DeviceInfo, problem: Problem | None = None) -> list[dict[str, Any]]:
        """Every configuration that the device, and the problem if given, allow.

        The order is that of the product of the choices as declared, the last one fastest.
        """
        configurations, _ = self._enumerate(device)
        found = [dict(zip(self.names, values, strict=True)) for values in configurations]
        if problem is not None:
            rules = self.problem_constraints
            found = [p for p in found if all(_ask(r, p, device, problem) for r in rules)]
        return found

    def explain(self, device: DeviceInfo) -> dict[str, int]:
        """How many configurations each rule removes first, and how many are `valid`.

        The counts add up to the size of the space.
        """
        configurations, removed = self._enumerate(device)
        return {"valid": len(configurations), **removed}

    def refused_alone(
        self, rule: Constraint | ProblemConstraint, most: int, *context: Any
    ) -> int | None:
        """How many configurations of the whole product this rule alone refuses.

        Only parameters that the rule asks for are gone through: it is asked with none of them,
        then with every value of the one that it asked for, and so on.

        Args:
            rule: one of this space's.
            most: questions to put at most.
            context: what the rule takes beside the parameters: the device, and the problem.

        Returns:
            None where `most` questions do not suffice.
        """
        values = {c.name: c.values for c in self.choices}
        given: dict[str, Any] = {}
        partial = Given(self.names, given)
        left = most

        def count(weight: int) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooManyError
            try:
                return 0 if _ask(rule, partial, *context) else weight
            except NotYetError as error:
                name = error.name
            except SpaceError:  # it has no answer where a rule before it does not hold
                return weight
            refused = 0
            for value in values[name]:
                given[name] = value
                refused += count(weight // len(values[name]))
            del given[name]
            return refused

        try:
            return count(self.size)
        except _TooManyError:
            return None

    def default(
        self,
        device: DeviceInfo,
        problem: Problem | None = None,
        accept: Callable[[Params], bool] = lambda params: True,
    ) -> dict[str, Any]:
        """The declared default if it is valid, else the valid configuration nearest to it.

        Nearest is: fewest parameters changed, then first in order.

        Args:
            device: what it must run on.
            problem: what it must work for, if that is known.
            accept: a further condition.

        Raises:
            SpaceError: there is no valid configuration.
        """
        wanted = self.declared_default
        if self.refuses(wanted, device, problem) is None and accept(wanted):
            return wanted
        for changes in range(1, NEAR + 1):
            for params in self._changed(changes):
                if self.allows(params, device, problem) and accept(params):
                    return params
        found = self.valid(device, problem)
        # A stable sort: within the same number of changes, the order of the space stays.
        found.sort(key=lambda p: sum(p[n] != v for n, v in wanted.items()))
        for params in found:
            if accept(params):
                return params
        reasons = sorted(self.explain(device).items(), key=lambda item: -item[1])
        counts = [(text, count) for text, count in reasons if text != "valid"]
        if problem is not None:
            left = self.valid(device)
            for rule in self.problem_constraints:
                kept = [p for p in left if _ask(rule, p, device, problem)]
                counts += [(rule.text, len(left) - len(kept))] if len(kept) < len(left) else []
                left = kept
        why = ", ".join(f"{text}: {count}" for text, count in counts)
        raise SpaceError(
            f"none of {self.size} configurations is valid for {device.name}"
            f"{f' and {problem}' if problem else ''}; "
            f"removed by constraints: {why or 'none'}; the rest by device limits"
        )

    def check(self, params: Params, device: DeviceInfo, problem: Problem | None = None) -> None:
        """Raises SpaceError, naming the rule, where the configuration is not valid."""
        reason = self.refuses(params, device, problem)
        if reason is not None:
            raise SpaceError(reason)

    def refuses(
        self, params: Params, device: DeviceInfo, problem: Problem | None = None
    ) -> str | None:
        """Why the configuration is not valid; None where it is."""
        try:
            params = self.normalise(params)
        except SpaceError as error:
            return str(error)
        for choice in self.choices:
            if feature := choice.missing(params[choice.name], device):
                return (
                    f"{choice.name}={params[choice.name]} needs {feature}: {device.name} lacks it"
                )
        values = _spell(params)
        for rule in self.constraints:
            if not _ask(rule, params, device):
                return f"constraint {rule.text!r} does not hold for {values} on {device.name}"
        if problem is not None:
            for other in self.problem_constraints:
                if not _ask(other, params, device, problem):
                    return f"constraint {other.text!r} does not hold for {values} and {problem}"
        return None

    def allows(self, params: Params, device: DeviceInfo, problem: Problem | None = None) -> bool:
        """As `refuses`, for parameters that are normal already and where nobody asks why."""
        return (
            not any(choice.missing(params[choice.name], device) for choice in self.choices)
            and all(_ask(rule, params, device) for rule in self.constraints)
            and (
                problem is None
                or all(_ask(rule, params, device, problem) for rule in self.problem_constraints)
            )
        )

    def normalise(self, params: Params) -> dict[str, Any]:
        """The same parameters in the order declared, with flags as True and False.

        Raises:
            SpaceError: a parameter is missing or not known, or has a value that is not listed.
        """
        if unknown := sorted(set(params) - set(self.names)):
            raise SpaceError(
                f"no parameter {', '.join(unknown)}; the space has {', '.join(self.names)}"
            )
        result = {}
        for choice in self.choices:
            if choice.name not in params:
                raise SpaceError(
                    f"parameter {choice.name} has no value; give one of {choice.values}"
                )
            value = params[choice.name]
            matches = [v for v in choice.values if v == value]
            if not matches:
                raise SpaceError(f"{choice.name}={value!r} is not one of {choice.values}")
            result[choice.name] = matches[0]
        return result

    def _changed(self, changes: int) -> Iterator[dict[str, Any]]:
        """Every configuration with so many parameters off the declared default, in order."""
        values: list[Any] = []

        def descend(level: int, left: int) -> Iterator[dict[str, Any]]:
            if level == len(self.choices):
                yield dict(zip(self.names, values, strict=True))
                return
            choice = self.choices[level]
            spare = len(self.choices) - level - 1  # levels below, where the rest may be changed
            for value in choice.values:
                after = left - (value != choice.default)
                if 0 <= after <= spare:
                    values.append(value)
                    yield from descend(level + 1, after)
                    values.pop()

        yield from descend(0, changes)

    def _enumerate(self, device: DeviceInfo) -> tuple[list[tuple[Any, ...]], Counter[str]]:
        if device not in self._found:
            self._found[device] = self._walk(device)
        return self._found[device]

    def _walk(self, device: DeviceInfo) -> tuple[list[tuple[Any, ...]], Counter[str]]:
        """Depth first, one choice per level; each constraint is asked as soon as it can answer.

        A constraint that asks for a parameter of a deeper level is put off to that level. So a
        rule on the first two parameters cuts whole subtrees, with nobody having to say on which
        parameters it depends.
        """
        levels = {name: i for i, name in enumerate(self.names)}
        found: list[tuple[Any, ...]] = []
        removed: Counter[str] = Counter()
        below = [1]  # configurations below a node of each level
        for choice in reversed(self.choices):
            below.insert(0, below[0] * len(choice.values))
        values: list[Any] = []
        partial = Partial(self.names, values)

        def descend(level: int, rules: list[tuple[int, Constraint]]) -> None:
            later: list[tuple[int, Constraint]] = []
            last = level == len(self.names)
            params = dict(zip(self.names, values, strict=True)) if last and rules else partial
            for due, rule in rules:
                if due > level:
                    later.append((due, rule))
                    continue
                try:
                    if not _ask(rule, params, device):
                        removed[rule.text] += below[level]
                        return
                except NotYetError as error:
                    later.append((levels[error.name] + 1, rule))
            if last:
                found.append(tuple(values))
                return
            choice = self.choices[level]
            for value in choice.values:
                if feature := choice.missing(value, device):
                    removed[f"needs {feature}"] += below[level + 1]
                    continue
                values.append(value)
                descend(level + 1, later)
                values.pop()

        descend(0, [(0, rule) for rule in self.constraints])
        return found, removed


class _TooManyError(Exception):
    """Counting would take too long."""


def _ask(rule: Constraint | ProblemConstraint, params: Params, *context: Any) -> bool:
    """Whether the rule holds; a rule that fails to answer is an error of its author."""
    try:
        return bool(rule.holds(params, *context))
    except NotYetError:
        raise
    except KeyError as error:
        raise SpaceError(
            f"constraint {rule.text!r} asks for {error}, which is no parameter of the space"
        ) from error
    except Exception as error:
        raise SpaceError(
            f"constraint {rule.text!r} failed with {type(error).__name__}: {error}"
        ) from error


def _spell(params: Params) -> str:
    return ".".join(f"{name}={value}" for name, value in params.items())
