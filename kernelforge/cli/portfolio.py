"""Makes the portfolio, which searches try a few of, from the winners of tuned bundles."""

from __future__ import annotations

import argparse
from pathlib import Path

from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `portfolio` takes."""
    parser.add_argument(
        "bundles",
        metavar="BUNDLE",
        nargs="*",
        help="folders of tuned bundles (default: all in tuned/); generic ones are left out",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="file to write (default: the one in this package)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file, and says what it holds."""
    from kernelforge.errors import TuneError
    from kernelforge.tune import portfolio
    from kernelforge_runtime.resources import tuned_output_dir

    output = Output(args)
    folder = tuned_output_dir()
    bundles = [Path(name) for name in args.bundles] or sorted(
        path.parent for path in folder.glob("*/manifest.json")
    )
    known = portfolio.portfolio_of(bundles)
    if not known:
        where = ", ".join(map(str, bundles)) or folder
        raise TuneError(f"no winner in {where}: name bundles that `kernelforge tune` made")
    path = Path(args.out) if args.out else Path(portfolio.__file__).with_name(portfolio.SHIPPED)
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; name a file in it")
    try:
        portfolio.write_portfolio(known, path)
    except OSError as error:
        why = error.strerror or error
        raise TuneError(f"{path}: cannot be written: {why}; name another file by --out") from error
    devices = sorted({k.device for k in known})
    families = sorted({k.family for k in known})
    output.text(
        f"{path}: {len(known)} problems of {len(families)} families on {', '.join(devices)}"
    )
    output.document(
        {"portfolio": path, "problems": len(known), "families": families, "devices": devices}
    )
    return 0
