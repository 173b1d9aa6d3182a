"""The part of `bench` that is about serving: batches, the first token, tokens far into a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernelforge.cli import options
from kernelforge.cli.bench_tables import percent, print_markdown
from kernelforge.cli.first_token import FirstToken, first_token
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.trace import TracedStep, trace_batches
from kernelforge.measure.statistics import median, spread
from kernelforge.report.bench_journal import BENCH_FILE
from kernelforge.report.serving import append_serving

FORMATS = ("markdown", "csv", "json")
MOST_SEQUENCES = 256
CPU = "cpu"
BATCH_COLUMNS = (
    "weights", "bundle", "test", "batch", "tok/s", "spread", "mean", "per sequence", "to one",
    "dispatches",
)  # fmt: skip
FIRST_COLUMNS = (
    "weights", "bundle", "from process start", "from load", "spread", "mean", "reading the file",
    "load / read", "reading by 1 MiB", "load / that", "starts", "bundle + checks + weights + step",
)  # fmt: skip
LONG_COLUMNS = (
    "weights", "bundle", "test", "tok/s", "spread", "mean", "to token 10", "95 % interval",
    "state bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Samples of one test: what CSV and JSON have of it, where `spread` is as in the tables.

    Attributes:
        test: `tg64@8`, `first-token`, `load-to-first-token`, `read-file`,
            `reread-file`, `tg@10000`.
        unit: of the samples, `tok/s` or `s`.
        facts: what else is known, by name.
    """

    weights: str
    bundle: str
    test: str
    unit: str
    samples: tuple[float, ...]
    batch: int = 1
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "weights": self.weights,
            "bundle": self.bundle,
            "test": self.test,
            "batch": self.batch,
            "unit": self.unit,
            "median": median(self.samples),
            "mean": sum(self.samples) / len(self.samples),
            "spread": spread(self.samples) if len(self.samples) > 1 else None,
            "samples": list(self.samples),
            **self.facts,
        }


@dataclass(frozen=True)
class Table:
    """A printed table and the rows behind it."""

    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]
    rows: list[Row]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--batch",
        type=_batches,
        default=(),
        metavar="B,..",
        help="also decode with so many sequences at once, e.g. 1,2,4,8,16: tok/s in total and of "
        "each, and how many times that of one",
    )
    parser.add_argument(
        "--first-token",
        action="store_true",
        help="also time the first token, from the start of a process and from loading, beside "
        "reading the weight file: all of it into fresh memory, as open(FILE, 'rb').read() does, "
        "right before each start, and through one buffer of 1 MiB, which needs no memory; medians "
        "of --reps, all from the system's cache if it fits",
    )
    parser.add_argument(
        "--long",
        type=options.positive,
        metavar="N",
        help="also compare decoding at token N, e.g. 10000, with decoding at token 10",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="how results are printed; csv and json are the same as --csv and --json "
        "(default: markdown)",
    )


def settle(args: argparse.Namespace) -> None:
    """Makes --format, --csv and --json agree, and refuses what does not go together."""
    asked = {name for name in ("csv", "json") if getattr(args, name)}
    if asked == {"csv", "json"}:
        raise UsageError("--json and --csv do not go together")
    if args.format is not None and asked - {args.format}:
        raise UsageError(f"--format {args.format} and --{asked.pop()} do not go together")
    args.csv, args.json = args.csv or args.format == "csv", args.json or args.format == "json"
    if is_wanted(args) and args.device == CPU:
        raise UsageError("--batch, --first-token and --long need a Vulkan device, not --device cpu")
    if args.long is not None and not 10 < args.long <= 1 << 20:
        raise UsageError(f"--long {args.long}: a token from 11 to {1 << 20}, e.g. 10000")


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether anything of this was asked for."""
    return bool(args.batch or args.first_token or args.long)


def measure_serving(
    args: argparse.Namespace, path: Path, output: Output, traces: list[TracedStep]
) -> list[Table]:
    """What was asked for, with every weight format and bundle; the steps of --batch are traced."""
    tables = [Table(c, [], []) for c in (BATCH_COLUMNS, FIRST_COLUMNS, LONG_COLUMNS)]
    for bundle in [args.bundle] + ([args.compare_bundle] if args.compare_bundle else []):
        for weights in args.weights if is_wanted(args) else ():
            output.note(f"{weights}: serving ...")
            _one(args, path, bundle, weights, tables, traces)
    return [table for table in tables if table.rows]


def _one(
    args: argparse.Namespace,
    path: Path,
    bundle: str | None,
    weights: str,
    tables: Sequence[Table],
    traces: list[TracedStep],
) -> None:
    from kernelforge.cli.serving_bench import time_batches, time_long_run
    from kernelforge_runtime.bundle import locate_generic
    from kernelforge_runtime.models import load_model
    from kernelforge_runtime.plan import open_kernels
    from kernelforge_runtime.vk import open_device

    how = {"weights": weights, "activations": args.activations, "quant": args.quant}
    how["adapters"] = list(args.lora)
    slots = max(*args.batch, 2) if args.batch else 2
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    known = [len(table.rows) for table in tables]
    with open_device(args.device, memory=args.memory) as device:
        folder = options.require_writable(
            options.journal_folder(args.journal, device.info.slug), "--journal"
        )
        if bundle == "generic":
            bundle = str(locate_generic(device.info).bundle_path)
        kernels = open_kernels(device, bundle)
        name = kernels.bundles[0].slug
        if args.batch or args.long:
            with load_model(path, device, kernels, slots=slots, **how) as model:
                form = model.formats.name
                steps = args.tg[0] if args.tg else 16
                if args.batch:
                    found = time_batches(model, args.batch, steps, args.reps)
                    one = next((b.median for b in found if b.sequences == 1), None)
                    for batch in found:
                        row = Row(form, name, f"tg{steps}@{batch.sequences}", "tok/s",
                                  batch.tok_per_s, batch.sequences,
                                  {"per_sequence": batch.median / batch.sequences,
                                   "to_one": None if one is None else batch.median / one,
                                   "dispatches": batch.dispatches})  # fmt: skip
                        _add(tables[0], row, _batch_cells(row))
                if args.batch and args.trace:
                    of_one = 1 if args.tg else 0  # traced as --tg's already
                    several = [count for count in args.batch if count != of_one]
                    traces += trace_batches(model, several, f"{form}, {name}")
                if args.long:
                    far = time_long_run(model, args.long, max(args.reps, 2))
                    facts = {"to_early": far.ratio.ratio, "low": far.ratio.low,
                             "high": far.ratio.high, "state_bytes": far.late_bytes}  # fmt: skip
                    early = Row(form, name, "tg@10", "tok/s", far.early_tok_per_s, 1,
                                {"state_bytes": far.early_bytes})  # fmt: skip
                    late = Row(form, name, f"tg@{far.late}", "tok/s", far.late_tok_per_s, 1, facts)
                    for row in (early, late):
                        _add(tables[2], row, _long_cells(row))
        # By its UUID: a name may fit several.
        where = device.info.device_uuid
    if args.first_token:
        settings = {"path": str(path), "device": where, "bundle": bundle, **how}
        settings["memory"] = args.memory
        first_token(settings)  # fills the driver's and the system's caches
        _add_first(tables[1], weights, name, [first_token(settings) for _ in range(args.reps)])
    new = [row for table, n in zip(tables, known, strict=True) for row in table.rows[n:]]
    rows = [row.to_json() for row in new]
    append_serving(folder / BENCH_FILE, time, path.stem, rows, device.info.slug)


def _add(table: Table, row: Row, cells: tuple[str, ...]) -> None:
    table.rows.append(row)
    table.cells.append(cells)


def _add_first(table: Table, weights: str, name: str, found: Sequence[FirstToken]) -> None:
    ratio, ratio_reread = (
        median([*each]) for each in zip(*((f.ratio, f.ratio_reread) for f in found), strict=True)
    )
    parts = {name: median([f.parts[name] for f in found]) for name in found[0].parts}
    summands = [parts[name] for name in ("bundle", "checks", "weights", "step")]
    for test, samples in (
        ("first-token", [f.process for f in found]),
        ("load-to-first-token", [f.load for f in found]),
        ("read-file", [f.read for f in found]),
        ("reread-file", [f.reread for f in found]),
    ):
        facts: dict[str, Any] = {}
        if test == "load-to-first-token":
            facts = {"load_to_read": ratio, "load_to_reread": ratio_reread, "parts": parts}
        table.rows.append(Row(weights, name, test, "s", tuple(samples), 1, facts))
    process, load, read, reread = table.rows[-4:]
    table.cells.append(
        (
            weights, name, f"{median(process.samples):.3f} s", f"{median(load.samples):.3f} s",
            _share(load.samples), f"{sum(load.samples) / len(load.samples):.3f} s",
            f"{median(read.samples):.3f} s", f"{ratio:.2f}",
            f"{median(reread.samples):.3f} s", f"{ratio_reread:.2f}", str(len(found)),
            " + ".join(f"{each:.3f}" for each in summands) + " s",
        )
    )  # fmt: skip


def _speed(row: Row) -> tuple[str, str, str]:
    mean = sum(row.samples) / len(row.samples)
    return f"{median(row.samples):.2f}", _share(row.samples), f"{mean:.2f}"


def _share(samples: Sequence[float]) -> str:
    return percent(spread(samples) / median(samples)) if len(samples) > 1 else "-"


def _batch_cells(row: Row) -> tuple[str, ...]:
    to_one = row.facts["to_one"]
    return (
        row.weights, row.bundle, row.test, str(row.batch), *_speed(row),
        f"{row.facts['per_sequence']:.2f}", "-" if to_one is None else f"{to_one:.2f}",
        str(row.facts["dispatches"]),
    )  # fmt: skip


def _long_cells(row: Row) -> tuple[str, ...]:
    facts = row.facts
    ratio = f"{facts['to_early']:.3f}" if "to_early" in facts else "-"
    interval = f"{facts['low']:.3f} to {facts['high']:.3f}" if "low" in facts else "-"
    return (
        row.weights, row.bundle, row.test, *_speed(row), ratio, interval,
        str(facts["state_bytes"]),
    )  # fmt: skip


def print_serving(output: Output, tables: Sequence[Table]) -> None:
    """The tables in markdown."""
    for table in tables:
        output.text()
        print_markdown(output, table.columns, table.cells)


def names(text: str) -> tuple[str, ...]:
    """`f16,q8`."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def sizes(text: str) -> tuple[int, ...]:
    """`32,256`; `0` for none."""
    found = dict.fromkeys(options.count(part.strip()) for part in text.split(","))
    if max(found) > 1 << 16:
        raise argparse.ArgumentTypeError(f"{max(found)} tokens: at most {1 << 16}")
    return tuple(size for size in found if size)


def _batches(text: str) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(options.positive(part.strip()) for part in text.split(",")))
    if max(found) > MOST_SEQUENCES:
        raise argparse.ArgumentTypeError(f"{max(found)} sequences: at most {MOST_SEQUENCES}")
    return found
