"""A variant: family, precision and parameters, and the name that stands for all three.

The name is a variant's identity in the cache, the journal, manifests, traces and reports:
`gemv/f16/REDUCE=shared.ROWS4.VEC4.WORKGROUP64`. Parameters are in alphabetical order; a number
follows its parameter's name directly, a word follows `=`, and a flag is written as 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kernelforge.errors import SpaceError

Value = int | str
"""A parameter's value: a whole number, a flag (True or False, the same as 1 or 0), or a word."""

PARAMETER_NAME = re.compile(r"[A-Z](?:[A-Z0-9_]*[A-Z_])?")
"""Capitals, not ending in a digit, so that `ROWS4` reads in one way only."""
WORD = re.compile(r"[A-Za-z0-9_]+")

_FAMILY = re.compile(r"[a-z][a-z0-9_]*")
_PRECISION = re.compile(r"[a-z][a-z0-9_]*")
_TERM = re.compile(r"([A-Z](?:[A-Z0-9_]*[A-Z_])?)(?:(-?(?:0|[1-9][0-9]*))|=([A-Za-z0-9_]+))")
_NO_PARAMETERS = "default"


@dataclass(frozen=True)
class Variant:
    """One kernel of a family, chosen.

    Attributes:
        family: e.g. `gemv`.
        precision: name of the element type, e.g. `f16`.
        params: (name, value) pairs; kept sorted by name, flags as 0 and 1.

    Raises:
        SpaceError: a name or a value could not be read back from the variant's name.
    """

    family: str
    precision: str
    params: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        if not _FAMILY.fullmatch(self.family) or not _PRECISION.fullmatch(self.precision):
            raise SpaceError(
                f"variant of family {self.family!r}, precision {self.precision!r}: "
                "use lower-case letters, digits and underscores"
            )
        # A flag and the number it prints as compare equal, so a name that was read is the variant.
        params = sorted((n, int(v) if isinstance(v, int) else v) for n, v in self.params)
        for name, value in params:
            check_parameter(name, value)
        if len({name for name, _ in params}) < len(params):
            raise SpaceError(f"variant of {self.family}: a parameter is given twice in {params}")
        object.__setattr__(self, "params", tuple(params))

    @classmethod
    def of(cls, family: str, precision: str, params: Mapping[str, Value]) -> Variant:
        """The variant with these parameters."""
        return cls(family, precision, tuple(params.items()))

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Reads a variant's name.

        Raises:
            SpaceError: it is not one.
        """
        parts = name.split("/")
        if len(parts) != 3:
            raise SpaceError(f"variant {name!r}: expected FAMILY/PRECISION/PARAMETERS")
        terms = [] if parts[2] == _NO_PARAMETERS else parts[2].split(".")
        params: list[tuple[str, Value]] = []
        for term in terms:
            match = _TERM.fullmatch(term)
            if match is None:
                raise SpaceError(
                    f"variant {name!r}: {term!r} is no parameter; expected a form like ROWS4 or "
                    "REDUCE=shared"
                )
            params.append((match[1], int(match[2]) if match[3] is None else match[3]))
        return cls(parts[0], parts[1], tuple(params))

    @property
    def name(self) -> str:
        """The variant's identity, e.g. `gemv/f16/ROWS4.WORKGROUP64`."""
        return f"{self.family}/{self.precision}/{params_name(self.params)}"

    @property
    def values(self) -> dict[str, Value]:
        """The parameters as a dictionary."""
        return dict(self.params)

    def __str__(self) -> str:
        return self.name


def params_name(params: Iterable[tuple[str, Value]]) -> str:
    """Parameters as the last part of a variant's name; in the order given."""
    terms = [f"{n}={v}" if isinstance(v, str) else f"{n}{int(v)}" for n, v in params]
    return ".".join(terms) or _NO_PARAMETERS


def check_parameter(name: str, value: object) -> None:
    """Raises SpaceError where this parameter could not be read back from a variant's name."""
    if not PARAMETER_NAME.fullmatch(name):
        raise SpaceError(
            f"parameter {name!r}: use capitals, digits and underscores, not ending in a digit"
        )
    if isinstance(value, str) and not WORD.fullmatch(value):
        raise SpaceError(f"parameter {name}={value!r}: a word is of letters, digits, underscores")
    if not isinstance(value, int | str):
        raise SpaceError(f"parameter {name}={value!r}: expected a whole number, a flag or a word")
