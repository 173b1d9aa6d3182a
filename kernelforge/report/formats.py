"""What `tune --objective pareto` found: speed, memory and error of weight formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            KeyError, TypeError, ValueError: it is something else.
        """
        numbers = ("tok_per_s", "weight_bytes", "perplexity", "worse_percent", "divergence")
        values = {name: float(data[name]) for name in numbers}
        return cls(
            model=str(about["model"]),
            text=str(about["text"]),
            weights=str(data["weights"]),
            pareto=bool(data["pareto"]),
            recommended=bool(data["recommended"]),
            **values,
        )


def format_rows(folder: Path, model: str | None = None) -> list[FormatRow]:
    """Every format of every comparison in a journal folder; none where a file is damaged."""
    path = folder / PARETO_FILE
    try:
        kept = json.loads(path.read_bytes())["comparisons"]
        rows = [FormatRow.from_json(one, data) for one in kept for data in one["formats"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used: %s: %s", path, type(error).__name__, error)
        return []
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
