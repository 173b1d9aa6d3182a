"""`tune --replay`: searches spaces that were measured before, without any device."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar

if TYPE_CHECKING:
    from kernelforge.tune.replay import Scored

MARKS = (25, 50, 100, 200)
SEEDS = 30
HEADERS = (
    "space", "valid", "near optimum", "strategy", "P", "spread",
    *(f"at {mark}" for mark in MARKS), "to 95 %", "reach it",
)  # fmt: skip


def add_replay_options(parser: argparse.ArgumentParser) -> None:
    """What a replay takes."""
    group = parser.add_argument_group("searching recorded spaces, without a device")
    group.add_argument(
        "--replay",
        metavar="FILE",
        nargs="+",
        help="score searches on these spaces: kernel_tuner's caches, T4 results, NumPy archives",
    )
    group.add_argument(
        "--strategy",
        metavar="NAME,..",
        default="mixed",
        help="with --replay: mixed (what tune uses), gp, tpe, random (default: mixed)",
    )
    group.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        metavar="N",
        help=f"with --replay: searches of each space and strategy (default: {SEEDS})",
    )
    group.add_argument(
        "--export-t4", metavar="FILE", help="with --replay of one space: write it as T4 results"
    )


def score_spaces(args: argparse.Namespace, output: Output) -> int:
    """Replays, and prints a table."""
    from kernelforge.tune.acquisition import Strategy
    from kernelforge.tune.recorded import read_space, write_t4
    from kernelforge.tune.replay import replay, summarise

    known = get_args(Strategy)
    strategies = tuple(dict.fromkeys(args.strategy.split(",")))
    if unknown := [name for name in strategies if name not in known]:
        raise UsageError(f"--strategy {unknown[0]}: there are {', '.join(known)}")
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: at least one search is needed")
    if args.export_t4 and len(args.replay) > 1:
        raise UsageError("--export-t4 writes one space; name one with --replay")
    found: list[Scored] = []
    with ProgressBar(output, "replay") as bar:
        for path in map(Path, args.replay):
            space = read_space(path)
            if args.export_t4:
                write_t4(space, Path(args.export_t4))
                output.note(f"{args.export_t4}: {len(space.configs)} configurations as T4 results")
            for strategy in strategies:
                curves = []
                for seed in range(args.seeds):
                    bar.show(seed, args.seeds, f"{space.name} {strategy}")
                    curves.append(replay(space, strategy, max(MARKS), seed))
                found.append(summarise(space, strategy, curves, MARKS))
                bar.line("  ".join(_row(found[-1])))
    output.table(HEADERS, [_row(scored) for scored in found])
    for strategy in strategies:
        scores = [scored.score for scored in found if scored.strategy == strategy]
        output.text(f"mean P of {strategy}: {math.fsum(scores) / len(scores):.3f}")
    output.document({"replay": [_document(scored) for scored in found]})
    return 0


def _row(scored: Scored) -> list[str]:
    needed = scored.evaluations_to_good
    return [
        scored.space,
        str(scored.size),
        f"{100 * scored.near_optimum:.2f} %",
        scored.strategy,
        f"{scored.score:.3f}",
        f"{scored.spread:.3f}" if math.isfinite(scored.spread) else "-",
        *(f"{scored.share_at[mark]:.3f}" for mark in MARKS),
        f"{needed:.0f}" if math.isfinite(needed) else "-",
        f"{100 * scored.success:.0f} %",
    ]


def _document(scored: Scored) -> dict[str, Any]:
    data = {**vars(scored), "share_at": {str(k): v for k, v in scored.share_at.items()}}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in data.items()
    }
