"""The fewest variants that serve every problem nearly as well as its own best one.

A set cover: exact by branch and bound, which small cases (those of a model are) finish in no time;
a larger one that is cut off keeps the best cover found, at least as good as the greedy one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MOST_STEPS = 20_000
"""Steps of the exact search: about a tenth of a second."""

Options = Mapping[str, float]
"""What may serve one problem: variant -> its time over that of the problem's best; from 1 up."""


def smallest_cover(problems: Sequence[Options], most_steps: int = MOST_STEPS) -> list[str]:
    """The smallest set of variants with one for each problem; of equals, the fastest in sum.

    Args:
        problems: what may serve each; none may be empty.
        most_steps: of the search, then the best so far is taken.

    Returns:
        Names, sorted; the same for problems in any order.

    Raises:
        ValueError: nothing serves one of the problems.
    """
    if not all(problems):
        raise ValueError("a problem that nothing serves has no cover")
    # Hardest first, and in an order that does not depend on the caller's.
    rows = sorted(problems, key=lambda options: (len(options), sorted(options.items())))
    best = greedy_cover(rows)
    search = _Search(rows, best, most_steps)
    search.descend((), tuple(range(len(rows))))
    return sorted(search.best)


def greedy_cover(problems: Sequence[Options]) -> list[str]:
    """One variant after the other, each time the one that serves most of what is left."""
    left = list(problems)
    chosen: list[str] = []
    while left:
        served: dict[str, list[float]] = {}
        for options in left:
            for name, ratio in options.items():
                served.setdefault(name, []).append(ratio)
        name = min(served, key=lambda n: (-len(served[n]), sum(served[n]), n))
        chosen.append(name)
        left = [options for options in left if name not in options]
    return chosen


def loss(problems: Sequence[Options], kept: Sequence[str]) -> float:
    """Sum over the problems of the time of the fastest variant kept, over that of its best."""
    return sum(min(options[name] for name in kept if name in options) for options in problems)


class _Search:
    def __init__(self, rows: Sequence[Options], best: Sequence[str], most_steps: int) -> None:
        self._rows, self._left = rows, most_steps
        self.best = list(best)
        self._score = (len(best), loss(rows, best), sorted(best))

    def descend(self, chosen: tuple[str, ...], open_rows: tuple[int, ...]) -> None:
        """Tries every way to serve the open rows, those that cannot win left out."""
        self._left -= 1
        if not open_rows:
            score = (len(chosen), loss(self._rows, chosen), sorted(chosen))
            if score < self._score:
                self.best, self._score = list(chosen), score
            return
        if self._left <= 0 or len(chosen) + self._least(open_rows) > self._score[0]:
            return
        hardest = min(open_rows, key=lambda row: (len(self._rows[row]), row))
        reach = {
            name: tuple(row for row in open_rows if name not in self._rows[row])
            for name in self._rows[hardest]
        }
        for name in sorted(reach, key=lambda n: (len(reach[n]), self._rows[hardest][n], n)):
            self.descend((*chosen, name), reach[name])

    def _least(self, open_rows: tuple[int, ...]) -> int:
        """How many variants are needed at least: rows that have none in common need one each."""
        used: set[str] = set()
        count = 0
        for row in open_rows:
            if used.isdisjoint(self._rows[row]):
                used.update(self._rows[row])
                count += 1
        return count
