"""Configurations of which only some parameters have a value yet: rules ask for any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class NotYetError(Exception):
    """A constraint asked for a parameter that has no value yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Partial(Mapping[str, Any]):
    """The first few parameters of a configuration; asking for a later one raises NotYetError."""

    def __init__(self, names: tuple[str, ...], values: list[Any]) -> None:
        self._names = names
        self._levels = {name: i for i, name in enumerate(names)}
        self._values = values  # shared with the walk, which fills and empties it

    def __getitem__(self, name: str) -> Any:
        level = self._levels[name]
        if level >= len(self._values):
            raise NotYetError(name)
        return self._values[level]

    def __contains__(self, name: object) -> bool:
        return name in self._levels

    def __iter__(self) -> Iterator[str]:
        if len(self._values) < len(self._names):  # who asks for all waits for the last
            raise NotYetError(self._names[-1])
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Given(Mapping[str, Any]):
    """Some parameters of a configuration; asking for another one raises NotYetError."""

    def __init__(self, names: tuple[str, ...], given: Mapping[str, Any]) -> None:
        self._names, self._given = names, given  # shared with the count, which fills it

    def __getitem__(self, name: str) -> Any:
        if name in self._given:
            return self._given[name]
        if name not in self._names:
            raise KeyError(name)
        raise NotYetError(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        for name in self._names:
            if name not in self._given:  # who asks for all gets them one by one
                raise NotYetError(name)
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
