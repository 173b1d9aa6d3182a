"""`tune --replay`: searches spaces that were measured before, without any device."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar

if TYPE_CHECKING:
    from kernelforge.tune.replay import Scored

SEEDS = 30
_ONLY_HERE = ("against", "peer_python", "runs", "scores", "export_t4")
_NEVER_HERE = ("trials", "seconds", "model", "family")


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
        "--against",
        metavar="NAME,..",
        default="",
        help="with --replay: other tuners on the same spaces: optuna, kernel_tuner, or one way of "
        "them, e.g. optuna:int, kernel_tuner:hybrid_vndx",
    )
    group.add_argument(
        "--peer-python",
        metavar="PYTHON",
        help="with --against: the interpreter that has kernel_tuner (default: this one)",
    )
    group.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        metavar="N",
        help=f"with --replay: searches of each space and strategy (default: {SEEDS})",
    )
    group.add_argument(
        "--runs",
        metavar="FILE",
        help="with --replay: keep every search in this file, and run none again that it holds",
    )
    group.add_argument(
        "--scores",
        metavar="FOLDER",
        help="with --replay: write README.md and scores.json there; what this scores.json holds of "
        "the same searches, with as many seeds, is taken over and not run again",
    )
    group.add_argument(
        "--export-t4", metavar="FILE", help="with --replay of one space: write it as T4 results"
    )


def refuse_mixed(args: argparse.Namespace) -> None:
    """A search of recorded spaces and one on a device take different options.

    Raises:
        UsageError: one is given that would not be heeded.
    """
    given = [name for name in _ONLY_HERE if getattr(args, name)]
    if given and not args.replay:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is of recorded spaces: give --replay FILE"
        )
    given = [name for name in _NEVER_HERE if getattr(args, name)]
    if given and args.replay:
        raise UsageError(
            f"--{given[0]} is for tuning a device; --replay searches what its files hold, each "
            "time to the same number of evaluations"
        )


def score_spaces(args: argparse.Namespace, output: Output) -> int:
    """Replays, and prints a table."""
    from kernelforge.cli.searchers import WITH, Searchers
    from kernelforge.report.searches import (
        GAIN_HEADERS,
        HEADERS,
        SUMMARY,
        gain_rows,
        read_scores,
        row,
        summary_rows,
        write_scores,
    )
    from kernelforge.tune.acquisition import Strategy
    from kernelforge.tune.experience import experience_of
    from kernelforge.tune.finished_runs import FinishedRuns
    from kernelforge.tune.recorded import write_t4
    from kernelforge.tune.recorded_forms import read_space
    from kernelforge.tune.replay import MARKS, summarise

    known = get_args(Strategy)
    strategies = tuple(dict.fromkeys(args.strategy.split(",")))
    if unknown := [name for name in strategies if name not in known]:
        raise UsageError(f"--strategy {unknown[0]}: there are {', '.join(known)}")
    if args.warm_start:
        raise UsageError(
            "--warm-start is for tuning a device; with --replay, --portfolio begins each search "
            "with what the other spaces know"
        )
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: at least one search is needed")
    if args.export_t4 and len(args.replay) > 1:
        raise UsageError("--export-t4 writes one space; name one with --replay")
    kept: dict[tuple[str, str, str, int], Scored] = {}
    if args.scores:  # before hours of searching
        folder = options.require_writable(args.scores, "--scores")
        kept = {(s.digest, s.strategy, s.searcher, s.seeds): s for s in read_scores(folder)}
    names = (*strategies, *Searchers.named(args.against))
    runs = FinishedRuns(Path(args.runs) if args.runs else None)
    found: list[Scored] = []
    spaces = [read_space(Path(name)) for name in args.replay]
    for at, space in enumerate(spaces):
        if space.name in (other.name for other in spaces[:at]):
            raise UsageError(f"--replay: two files are called {space.name}; rename or drop one")
    with ProgressBar(output, "replay") as bar:
        for space in spaces:
            if args.export_t4:
                write_t4(space, Path(args.export_t4))
                output.note(f"{args.export_t4}: {len(space.configs)} configurations as T4 results")
            experience, ways = None, names
            if args.portfolio:
                experience = experience_of(space, [s for s in spaces if s is not space])
                ways = (*names, *(name + WITH for name in strategies if experience))
                if experience is None:
                    output.note(f"{space.name}: no other space has its parameters: no portfolio")
            with Searchers(space, runs, args.peer_python, output.note, experience) as searchers:
                for name in ways:
                    known_as = (space.digest, name, searchers.searcher(name), args.seeds)
                    if known_as in kept and (kept[known_as].gains or not name.endswith(WITH)):
                        found.append(replace(kept[known_as], space=space.name))
                        bar.line("  ".join((*row(found[-1]), "(scored before)")))
                        continue
                    finished = searchers.runs(name, max(MARKS), args.seeds, bar.show)
                    if finished:
                        # Seed by seed: those without were run just now, or are run again.
                        plain = name.removesuffix(WITH)
                        without = (
                            searchers.runs(plain, max(MARKS), args.seeds, bar.show)
                            if plain != name
                            else ()
                        )
                        found.append(summarise(space, name, finished, MARKS, without))
                        bar.line("  ".join(row(found[-1])))
    output.table(HEADERS, [row(scored) for scored in found])
    output.text()
    output.table(SUMMARY, summary_rows(found))
    if gains := gain_rows(found):
        output.text()
        output.table(GAIN_HEADERS, gains)
    output.document({"replay": [scored.to_json() for scored in found]})
    if args.scores:
        command = "kernelforge " + shlex.join(_portable(sys.argv[1:]))
        write_scores(found, command, Path(args.scores))
        output.note(f"{args.scores}: README.md and scores.json")
    return 0 if found else 1


def _portable(words: list[str]) -> list[str]:
    """The command without the folders of this machine."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]
