"""What `tune --objective pareto` found: speed, memory and error of weight formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.measure.journal_lines import DAMAGE, name, within
from kernelforge.report.cells import Column, Table, number

log = logging.getLogger(__name__)

PARETO_FILE = "pareto.json"
PARETO_COLUMNS = (
    Column("model", "model", False),
    Column("text", "text", False),
    Column("weights", "weights", False),
    Column("tok_per_s", "tok/s"),
    Column("mb", "MB"),
    Column("perplexity", "perplexity"),
    Column("worse_percent", "change %"),
    Column("divergence", "divergence"),
    Column("front", "on the front", False),
)


_LIMITS = {
    "tok_per_s": (1e-4, 1e12),
    "weight_bytes": (1, 1e18),
    "perplexity": (0, 1e12),
    "worse_percent": (-1e12, 1e12),
    "divergence": (0, 1e12),
}


@dataclass(frozen=True)
class FormatRow:
    """One weight format of one model on one text."""

    model: str
    text: str
    weights: str
    tok_per_s: float
    weight_bytes: float
    perplexity: float
    worse_percent: float
    divergence: float
    pareto: bool
    recommended: bool

    @classmethod
    def from_json(cls, about: dict[str, Any], data: dict[str, Any]) -> FormatRow:
        """Reads one format of a comparison.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it is something else.
        """
        values = {key: within(data[key], *limits) for key, limits in _LIMITS.items()}
        return cls(
            model=name(about["model"]),
            text=name(about["text"]),
            weights=name(data["weights"]),
            pareto=bool(data["pareto"]),
            recommended=bool(data["recommended"]),
            **values,
        )


def format_rows(folder: Path, model: str | None = None, only: str = "") -> list[FormatRow]:
    """Every format of every comparison in a journal folder; what is damaged is left out.

    Args:
        folder: of the journals.
        model: only of this one, by its name.
        only: if given, the slug of the device.
    """
    path = folder / PARETO_FILE
    rows = []
    try:
        kept = json.loads(path.read_bytes())["comparisons"]
        whole = [(one, data) for one in kept for data in one["formats"]
                 if not only or one.get("device", "") in ("", only)]  # fmt: skip
    except FileNotFoundError:
        return []
    except (OSError, *DAMAGE) as error:
        log.warning("%s cannot be used: %s: %s", path, type(error).__name__, error)
        return []
    for about, data in whole:
        try:
            rows.append(FormatRow.from_json(about, data))
        except DAMAGE as error:
            log.warning("%s: a format was skipped (%s: %s)", path, type(error).__name__, error)
    return [row for row in rows if model is None or Path(row.model).stem == model]


def format_table(rows: Sequence[FormatRow]) -> Table:
    """A row per format."""
    return Table(
        "formats",
        "Which weight format",
        PARETO_COLUMNS,
        tuple(
            (
                row.model,
                row.text,
                row.weights,
                number(row.tok_per_s, 1),
                number(row.weight_bytes / 1e6, 3),
                number(row.perplexity, 4),
                f"{row.worse_percent:+.2f}",
                f"{row.divergence:.2e}",
                "recommended" if row.recommended else "yes" if row.pareto else "no",
            )
            for row in rows
        ),
        "On the front is what no other format beats in speed, memory and divergence at once; the "
        "change is of perplexity against the first format.",
    )
