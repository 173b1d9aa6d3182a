"""How well searches did on recorded spaces, as tables, markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from kernelforge.errors import TuneError
from kernelforge.report.cells import NONE, Column, Table
from kernelforge.report.writing import write_files
from kernelforge.tune.replay import GOOD, MARKS, SCORING, WINDOW, Scored

PAGE_FILE = "README.md"
SCORES_FILE = "scores.json"

HEADERS = (
    "space", "strategy", "seeds", "P", "spread", *(f"at {mark}" for mark in MARKS),
    "to 95 %", "reach it", "CPU ms",
)  # fmt: skip
SUMMARY = (
    "strategy", "spaces", "seeds", "mean P", "worst P", "on", "at 50, median", "searched by",
)  # fmt: skip
GAINS = ("8", "25", "50", "P")
"""Evaluations, and P, at which searches with and without other spaces stand beside each other."""
GAIN_HEADERS = ("space", "strategy", "seeds", *(f"at {n}" if n != "P" else n for n in GAINS))
_WORDS = frozenset({"space", "strategy", "on", "searched by"})
_HEAD = """# Searches of recorded spaces

Others measured every configuration of these spaces once, so that a search can be replayed and held
against the true optimum, without a device. What counts is unique evaluations, failures included;
time does not. Written by

```sh
{command}
```

## The spaces
"""
_MEANING = """
## Over all spaces

P is how much of the way from the expected best of random sampling to the optimum is won: 0 is
random, 1 the optimum at once. It is averaged over the evaluations from where random sampling has
come {low} of the way from the median to the optimum until it has come {high}, or until {last}.
*at 50*: share of the optimum's speed after 50 evaluations, mean of the seeds, median of the spaces.
"""
_WITH = """
## With what the other spaces know

Each space of which others here have the same parameters, searched with what these others know of
it, its own times left out. Behind each share of the optimum's speed, and behind P: how much more
that is than without, mean of the pairs of one seed and its standard error.
"""
_COLUMNS = """
## Each space

*spread*: standard deviation of P between seeds. *to {good}*: median evaluations until
{good} of the optimum's speed is reached; {none} where most searches had not come there after
{last}.
*reach it*: searches that did. *CPU ms*: processor time per evaluation, where it was taken.
"""


def row(scored: Scored) -> list[str]:
    """Cells of one strategy on one space."""
    needed = scored.evaluations_to_good
    return [
        scored.space,
        scored.strategy,
        str(scored.seeds),
        f"{scored.score:.3f}" if math.isfinite(scored.score) else NONE,
        f"{scored.spread:.3f}" if math.isfinite(scored.spread) else NONE,
        *(f"{scored.share_at[mark]:.3f}" for mark in MARKS),
        f"{needed:.0f}" if math.isfinite(needed) else NONE,
        f"{100 * scored.success:.0f} %",
        f"{scored.cpu_ms:.1f}" if math.isfinite(scored.cpu_ms) else NONE,
    ]


def summary_rows(found: Sequence[Scored]) -> list[list[str]]:
    """Cells of each strategy over all spaces, the best mean first."""
    rows = []
    for name in dict.fromkeys(scored.strategy for scored in found):
        mine = [scored for scored in found if scored.strategy == name]
        halves = sorted(scored.share_at[50] for scored in mine)
        middle = (halves[(len(halves) - 1) // 2] + halves[len(halves) // 2]) / 2
        # Where all are as fast there is no P, and nothing to average.
        told = [scored for scored in mine if math.isfinite(scored.score)]
        mean, cells = -math.inf, [NONE, NONE, NONE]
        # Means of unlike spaces are not to be compared: how many there were is told.
        fewest, most = (pick(scored.seeds for scored in mine) for pick in (min, max))
        counts = [str(len(mine)), f"{fewest}" if fewest == most else f"{fewest} to {most}"]
        if told:
            worst = min(told, key=lambda scored: scored.score)
            mean = math.fsum(scored.score for scored in told) / len(told)
            cells = [f"{mean:.3f}", f"{worst.score:.3f}", worst.space]
        rows.append((mean, [name, *counts, *cells, f"{middle:.3f}", mine[0].searcher]))
    return [cells for _, cells in sorted(rows, key=lambda pair: -pair[0])]


def gain_rows(found: Sequence[Scored]) -> list[list[str]]:
    """Cells of each strategy on each space of which other spaces know something."""
    rows = []
    for scored in (scored for scored in found if scored.gains):
        cells = [scored.space, scored.strategy, str(scored.seeds)]
        for name in GAINS:
            value = scored.score if name == "P" else scored.share_at[int(name)]
            gain, error = scored.gains.get(name, (math.nan, math.nan))
            told = math.isfinite(value) and math.isfinite(gain)
            cells.append(f"{value:.3f} ({gain:+.3f} ± {error:.3f})" if told else NONE)
        rows.append(cells)
    return rows


def write_scores(found: Sequence[Scored], command: str, folder: Path) -> None:
    """Writes `PAGE_FILE` and `SCORES_FILE`, both or neither.

    Args:
        found: every strategy on every space.
        command: that made it.
        folder: made if it is not there.

    Raises:
        ReportError: it cannot be written.
    """
    scores = [scored.to_json() for scored in found]
    document = {"command": command, "scoring": SCORING, "scores": scores}
    texts = {PAGE_FILE: _markdown(found, command), SCORES_FILE: json.dumps(document, indent=1)}
    write_files(
        folder, {name: f"{text.rstrip()}\n" for name, text in texts.items()}, (), "--scores"
    )


def read_scores(folder: Path) -> tuple[Scored, ...]:
    """What `write_scores` left in a folder; nothing where it was scored in another way.

    Raises:
        TuneError: the file cannot be read, or holds something else.
    """
    path = folder / SCORES_FILE
    try:
        document = json.loads(path.read_text())
        if document.get("scoring") != SCORING:
            return ()
        found = tuple(Scored.from_json(data) for data in document["scores"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TuneError(
            f"--scores {path}: holds no scores ({type(error).__name__}: {error}); "
            "delete it, or name another folder"
        ) from None
    return tuple(scored for scored in found if tuple(scored.share_at) == MARKS)


def _markdown(found: Sequence[Scored], command: str) -> str:
    spaces = {scored.space: scored for scored in found}
    low, high = (f"{100 * share:.0f} %" for share in WINDOW)
    near = f"within {100 * (1 - GOOD):.0f} % of the best"
    sizes = [[s.space, str(s.size), f"{100 * s.near_optimum:.2f} %"] for s in spaces.values()]
    lines = [
        _HEAD.format(command=command),
        _table("spaces", ("space", "configurations", near), sizes),
        _MEANING.format(low=low, high=high, last=max(MARKS)),
        _table("summary", SUMMARY, summary_rows(found)),
        *_with_others(found),
        _COLUMNS.format(good=f"{100 * GOOD:.0f} %", last=max(MARKS), none=NONE),
    ]
    for space in spaces:
        best_first = sorted(
            found, key=lambda scored: -scored.score if math.isfinite(scored.score) else 0
        )
        cells = [row(scored)[1:] for scored in best_first if scored.space == space]
        lines += [f"\n### {space}\n", _table(space, HEADERS[1:], cells)]
    return "\n".join(lines) + "\n"


def _with_others(found: Sequence[Scored]) -> list[str]:
    rows = gain_rows(found)
    return [_WITH, _table("gains", GAIN_HEADERS, rows)] if rows else []


def _table(name: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = tuple(Column(title, title, title not in _WORDS) for title in headers)
    return Table(name, name, columns, tuple(map(tuple, rows))).to_markdown()
