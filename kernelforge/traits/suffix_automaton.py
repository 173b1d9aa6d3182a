"""A suffix automaton that grows symbol by symbol: ROSA's answers one token at a time, on the CPU.

The plain form that others are held to. It is fast where symbols look random, and takes time in
proportion to the position for each token of a stream that repeats itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kernelforge_runtime.abi.rosa import NO_MATCH

ROOT = 0
NOWHERE = -1


class Match(NamedTuple):
    """Where the longest suffix was seen before.

    Attributes:
        length: symbols that agree; 0 where none does.
        end: position of the last of them in the keys; -1 where none agrees.
    """

    length: int
    end: int


class SuffixAutomaton:
    """All substrings of the keys so far, each with the place where it ended last.

    A state stands for the substrings that end at the same places: the longest has `length[state]`
    symbols, and those of `length[link[state]]` symbols or fewer belong to states up the links.

    Source: A. Blumer et al., The smallest automaton recognizing the subwords of a text (1985),
    section 3, the on-line construction.
    """

    def __init__(self) -> None:
        self.following: list[dict[int, int]] = [{}]
        self.link = [NOWHERE]
        self.length = [0]
        self.end = [NOWHERE]
        self._last = ROOT

    def extend(self, key: int) -> None:
        """Appends one key."""
        position = self.length[self._last]
        state = self._add({}, position + 1)
        parent = self._last
        while parent != NOWHERE and key not in self.following[parent]:
            self.following[parent][key] = state
            parent = self.link[parent]
        self.link[state] = ROOT if parent == NOWHERE else self._suffix(parent, key)
        self._last = state
        while state != ROOT:  # every suffix ends here now
            self.end[state] = position
            state = self.link[state]

    def _suffix(self, parent: int, key: int) -> int:
        """The state of the parent's longest substring with the key appended, split off if need be.

        Where the state that the key leads to also stands for longer substrings, those ended at
        fewer places from now on.
        """
        target = self.following[parent][key]
        length = self.length[parent] + 1
        if self.length[target] == length:
            return target
        shorter = self._add(dict(self.following[target]), length)
        self.link[shorter], self.end[shorter] = self.link[target], self.end[target]
        self.link[target] = shorter
        while parent != NOWHERE and self.following[parent].get(key) == target:
            self.following[parent][key] = shorter
            parent = self.link[parent]
        return shorter

    def _add(self, following: dict[int, int], length: int) -> int:
        self.following.append(following)
        self.link.append(NOWHERE)
        self.length.append(length)
        self.end.append(NOWHERE)
        return len(self.length) - 1


class SuffixMatcher:
    """Follows the queries through the automaton of the earlier keys."""

    def __init__(self) -> None:
        self._keys = SuffixAutomaton()
        self._state, self._length = ROOT, 0

    def step(self, query: int, key: int) -> Match:
        """The longest suffix of the queries, this one included, among the keys before this one."""
        keys, state, length = self._keys, self._state, self._length
        while state != NOWHERE and query not in keys.following[state]:
            state = keys.link[state]
            length = min(length, keys.length[state])
        if state == NOWHERE:
            state, length = ROOT, 0
        else:
            state, length = keys.following[state][query], length + 1
        match = Match(length, keys.end[state])
        keys.extend(key)
        # The new key may have split off the state that stands for just these symbols.
        while state != ROOT and keys.length[keys.link[state]] >= length:
            state = keys.link[state]
        self._state, self._length = state, length
        return match


def matches(queries: Sequence[int], keys: Sequence[int]) -> Iterator[Match]:
    """The match of every position."""
    matcher = SuffixMatcher()
    return (matcher.step(query, key) for query, key in zip(queries, keys, strict=True))


def rosa(queries: Sequence[int], keys: Sequence[int], values: Sequence[int]) -> list[int]:
    """For every position the value that followed the longest suffix seen before; NO_MATCH for none.

    Of equally long ones the latest counts. With one stream, give it three times.
    """
    found = matches(queries, keys)
    return [values[m.end + 1] if m.length else NO_MATCH for m in found]
