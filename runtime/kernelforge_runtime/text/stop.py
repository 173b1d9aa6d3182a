"""Ends a text at the first of some strings, and never shows a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches a text that arrives in pieces; one per sequence.

    Attributes:
        hit: the string that was found, or None. Of several that begin at the same place the
            longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self.hit: str | None = None

    def push(self, piece: str) -> str:
        """What may be shown of the text so far; what may yet become a stop string is held back."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.hit = min(found, key=lambda place: place[0])
            self._held = ""
            return text[:at]
        longest = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def flush(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
