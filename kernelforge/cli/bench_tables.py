"""What `bench` prints: tables in markdown, CSV, or the document for `--json`."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from kernelforge.cli.output import Output
from kernelforge.measure.statistics import Interval, median, spread
from kernelforge.report.bench_journal import BenchRecord, paired

if TYPE_CHECKING:
    from kernelforge.measure.baseline import Ceilings

SPEED_COLUMNS = (
    "model", "weights", "bundle", "test", "tok/s", "spread", "mean", "least", "most",
    "dispatches", "per layer",
)  # fmt: skip
DECODE_COLUMNS = (
    "weights", "bundle", "host us/token", "weights/token", "GB/s", "of read bandwidth", "state",
    "kernels",
)  # fmt: skip
RATIO_COLUMNS = ("weights", "test", "compared", "ratio", "spread", "95 % interval", "pairs")

RATE_COLUMNS = ("weights", "bundle", "prefill", "decode", "times as fast")

Ratio = tuple[BenchRecord, BenchRecord, Interval]


def find_ratios(records: Sequence[BenchRecord]) -> list[Ratio]:
    """(first, other, how many times faster the first is) of records that took turns."""
    turns: dict[tuple[str, str], list[BenchRecord]] = {}
    for record in records:
        if record.pair:
            turns.setdefault((record.pair, record.test), []).append(record)
    return [
        (first, other, paired(first, other))
        for first, *others in turns.values()
        for other in others
    ]


def pairs(first: BenchRecord, second: BenchRecord) -> list[float]:
    """The ratio of each pair."""
    return [x / y for x, y in zip(first.tok_per_s, second.tok_per_s, strict=True)]


def print_tables(output: Output, records: Sequence[BenchRecord]) -> None:
    """Speeds; what a decoded token costs; the ratio of two bundles."""
    first = records[0]
    label = "CPU rasteriser" if first.device_type == "cpu" and first.driver else first.device_type
    millions = f"{first.parameters / 1e6:.1f} M weights"
    output.text(f"{first.model}: {first.version} {first.sizes}, {millions}")
    output.text(f"{first.device_name} ({label}) {first.driver}".rstrip())
    output.text()
    print_markdown(output, SPEED_COLUMNS, [_speed_row(record) for record in records])
    if rates := _rates(records):
        output.text()
        print_markdown(output, RATE_COLUMNS, rates)
    decoding = [record for record in records if record.decodes and record.dispatches]
    if decoding:
        output.text()
        print_markdown(output, DECODE_COLUMNS, [_decode_row(record) for record in decoding])
    if ratios := find_ratios(records):
        output.text()
        print_markdown(output, RATIO_COLUMNS, [_ratio_row(*ratio) for ratio in ratios])


def print_csv(records: Sequence[BenchRecord], more: Sequence[Mapping[str, Any]] = ()) -> None:
    """One line per test and bundle; repetitions in one cell, separated by spaces.

    Args:
        records: of prefill and decode.
        more: further tests: `samples` in their `unit`, and what else goes by the columns' names.
    """
    # Operations are a table of their own: `kernelforge report`.
    names = [f.name for f in fields(BenchRecord) if f.name != "operations"]
    extra = ("median", "mean", "spread")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*names, *extra, "batch", "unit"])
    for record in records:
        data = record.to_json()
        data["tok_per_s"] = " ".join(map(str, data["tok_per_s"]))
        found = [getattr(record, name) for name in extra]
        rounded = [round(value, 4) if math.isfinite(value) else None for value in found]
        writer.writerow([*(data[name] for name in names), *rounded, 1, "tok/s"])
    for row in more:
        data = {**row, "tok_per_s": " ".join(f"{value:.6g}" for value in row["samples"])}
        writer.writerow([data.get(name) for name in (*names, *extra, "batch", "unit")])


def document(
    records: Sequence[BenchRecord], ceilings: Ceilings | None, absent: Mapping[str, str]
) -> dict[str, Any]:
    """Everything, for `--json`; `absent`: why peers were left out, by their names."""
    return {
        "ceilings": ceilings.to_json() if ceilings else None,
        "results": [
            {
                **record.to_json(),
                "median_tok_per_s": record.median,
                "mean_tok_per_s": record.mean,
                "spread_tok_per_s": record.spread,
                "gbps": record.gbps,
                "read_share": record.read_share,
            }
            for record in records
        ],
        "ratios": [
            {
                "weights": first.weights,
                "test": first.test,
                "bundle": first.bundle,
                "compared_with": second.bundle,
                "pairs": pairs(first, second),
                "ratio": median(pairs(first, second)),
                "low": ratio.low,
                "high": ratio.high,
                "spread": spread(pairs(first, second)) if len(first.tok_per_s) > 1 else None,
            }
            for first, second, ratio in find_ratios(records)
        ],
        "peers_left_out": [{"peer": name, "reason": why} for name, why in absent.items()],
    }


def print_markdown(output: Output, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A markdown table with its cells in line."""
    widths = [max(len(cell) for cell in column) for column in zip(headers, *rows, strict=True)]
    lines = [headers, ["-" * width for width in widths], *rows]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        output.text(f"| {' | '.join(cells)} |")


def _speed_row(record: BenchRecord) -> tuple[str, ...]:
    return (
        record.model,
        record.weights,
        record.bundle or "-",
        record.test,
        f"{record.median:.2f}",
        percent(record.spread / record.median),
        f"{record.mean:.2f}",
        f"{min(record.tok_per_s):.2f}",
        f"{max(record.tok_per_s):.2f}",
        str(record.step_dispatches or "-"),
        f"{record.layer_dispatches:g}" if record.layer_dispatches else "-",
    )


def _rates(records: Sequence[BenchRecord]) -> list[tuple[str, ...]]:
    """How many times as fast as decoding each prefill is."""
    decoding = {(r.weights, r.bundle, r.peer): r for r in reversed(records) if r.decodes}
    return [
        (r.weights, r.bundle or "-", r.test, other.test, f"{r.median / other.median:.2f}")
        for r in records
        if not r.decodes and (other := decoding.get((r.weights, r.bundle, r.peer))) is not None
    ]


def _decode_row(record: BenchRecord) -> tuple[str, ...]:
    return (
        record.weights,
        record.bundle,
        f"{record.host_us:.1f}",
        f"{record.touched_bytes / 1e6:.2f} MB",
        f"{record.gbps:.2f}",
        percent(record.read_share) if math.isfinite(record.read_share) else "not measured",
        f"{record.state_bytes / 1e3:.1f} kB",
        record.kernels,
    )


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def _ratio_row(first: BenchRecord, second: BenchRecord, ratio: Interval) -> tuple[str, ...]:
    found = pairs(first, second)
    middle = median(found)
    return (
        first.weights,
        first.test,
        f"{first.bundle} / {second.bundle}",
        f"{middle:.3f}",
        percent(spread(found) / middle) if len(found) > 1 else "-",
        f"{ratio.low:.3f} to {ratio.high:.3f}" if len(found) > 1 else "one pair only",
        " ".join(f"{pair:.3f}" for pair in found),
    )
