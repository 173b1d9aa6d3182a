"""`report --compare`: two sets of measurements, and an exit code for scripts that watch them.

0: nothing is slower by more than --fail-above; 1: something is; 2: they could not be compared.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.errors import ReportError

if TYPE_CHECKING:
    from kernelforge.report.compare import Comparison, Row

RED, GREEN, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"
OUT = "compare"
NOT_COMPARED = 2
LEAST_SHARE = 0.01
"""Whoever allows less than this of slowing down may have meant a share."""


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """What comparing takes."""
    group = parser.add_argument_group("comparing")
    group.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="say what is slower on B than on A beyond noise; each is a bundle, a folder of "
        "journals or of a report, FOLDER@DRIVER or FOLDER@DEVICE (a journal's records of one), a "
        "measured device, or REVISION[:FOLDER] of this git checkout",
    )
    group.add_argument(
        "--fail-above",
        type=_share,
        metavar="PERCENT",
        help="with --compare: exit with 1 if anything is slower by more than this, beyond noise; "
        "with 2 if the two cannot be compared",
    )


def run_compare(args: argparse.Namespace, reports: Path) -> int:
    """Compares, prints, writes; 1 where --fail-above says so.

    Whatever goes wrong ends with 2, as wrong usage does: 1 is kept for what became slower.
    """
    try:
        code = _run(args, reports)
        sys.stdout.flush()  # a full disk must not pass for something slower
        return code
    except BrokenPipeError:
        raise
    except Exception as error:
        error.exit_code = NOT_COMPARED  # type: ignore[attr-defined]
        raise


def _run(args: argparse.Namespace, reports: Path) -> int:
    others = ("model", "device", "bundle", "journal")
    if extra := [name for name in others if getattr(args, name) is not None]:
        raise UsageError(f"--compare takes no {extra[0].upper()}: it names both sides itself")
    from kernelforge.report.compare import compare, read_side
    from kernelforge.report.compare.pages import sentences, write_comparison

    output = Output(args)
    names = args.compare
    first, second = (read_side(name, options.journal_folder(None, "")) for name in names)
    found = compare(first, second)
    if not found.rows:
        raise ReportError(
            f"--compare {names[0]} {names[1]}: no kernel or model test in common; "
            f"A has {_counts(first.kernels, first.models)}, "
            f"B {_counts(second.kernels, second.models)}"
        )
    out = Path(args.out) if args.out is not None else reports / OUT
    limit = [] if args.fail_above is None else ["--fail-above", f"{100 * args.fail_above:g}%"]
    command = shlex.join(["kernelforge", "report", "--compare", *names, *limit])
    written = write_comparison(found, out, command)
    for text in sentences(found):
        output.text(text)
    for row in (*found.slower, *found.faster):
        output.text(_coloured(row))
    output.text(str(written[0]))
    if args.fail_above is not None and 0 < args.fail_above < LEAST_SHARE:
        percent = f"{100 * args.fail_above:g}"
        output.note(f"--fail-above: {percent} is {percent} per cent; five per cent are 5%")
    failures = [] if args.fail_above is None else found.failures(args.fail_above)
    output.document({"files": written, "failed": failures, **_document(found)})
    if failures:
        print(
            f"kernelforge report: slower by more than {100 * args.fail_above:g} % and beyond "
            f"noise: {', '.join(failures)}",
            file=sys.stderr,
        )
    return 1 if failures else 0


def _share(text: str) -> float:
    """`5%`, `5 %` or `5` as 0.05."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0 up, such as 5%")
    return value / 100


def _counts(kernels: object, models: object) -> str:
    return f"{len(kernels)} kernels and {len(models)} model tests"  # type: ignore[arg-type]


def _coloured(row: Row) -> str:
    text = (
        f"{row.verdict}  {row.name}  {row.first.text} -> {row.second.text}  "
        f"{row.steady:.3f}x ({row.low:.3f} to {row.high:.3f})"
    )
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"{RED if row.verdict == 'slower' else GREEN}{text}{PLAIN}"


def _document(found: Comparison) -> dict[str, object]:
    return {
        "rows": [
            {
                "kind": row.kind,
                "name": row.name,
                "ratio": row.ratio,
                "steady": row.steady,
                "low": row.low,
                "high": row.high,
                "verdict": row.verdict,
                "same_kernel": not row.changed,
            }
            for row in found.rows
        ],
        "together": [vars(together) for together in found.together],
        "only_first": found.only_first,
        "only_second": found.only_second,
        "device_moved": found.device_moved,
    }
