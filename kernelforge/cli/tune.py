"""Finds the fastest right kernels for a device, and writes them to a bundle."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge.cli import options, pareto, record, replay, untuned
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar
from kernelforge.cli.stopping import exit_code, stoppable

if TYPE_CHECKING:
    from kernelforge.cli.tuning import Tuning
    from kernelforge.tune.problems import TuneTask
    from kernelforge.tune.progress import Progress
    from kernelforge.tune.study import TuneResult

HEADERS = ("family", "type", "problem", "default us", "best us", "speed-up", "of ceiling", "trials")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tune` takes."""
    what = parser.add_argument_group("what to tune: the problems of a model, or of one family")
    what.add_argument("--model", metavar="FILE", help="a .safetensors or .pth file")
    options.add(what, "shape")
    options.add(
        what, "weights", default=None, help="weight formats to tune for, e.g. f16,q8 (default: f16)"
    )  # fmt: skip
    options.add(what, "activations")
    what.add_argument(
        "--int8-dot",
        action="store_true",
        help="with q8 weights: also tune the products that round their inputs to int8, which "
        "`run --int8-dot faster` takes where they won",
    )
    what.add_argument(
        "--steps",
        metavar="T,..",
        type=_steps,
        default=(1, 256),
        help="tokens per step of the model whose problems are tuned; 1 is decode (default: 1,256)",
    )
    what.add_argument(
        "--slots",
        metavar="B,..",
        type=_steps,
        default=(),
        help="also the problems of decoding with so many sequences at once (default: none)",
    )
    options.add(what, "family")
    options.add(what, "precision", help="element type of the weights (default: all of the family)")
    options.add(what, "problem", help="e.g. M=4096,K=4096,S=1 (default: usual ones of the family)")
    effort = parser.add_argument_group("how long")
    effort.add_argument(
        "--profile",
        choices=("quick", "full"),
        default="quick",
        help="quick: 40 trials per problem, finals of 3 besides the default, 5 minutes in all; "
        "full: 150, finals of 5, 30 minutes (default: quick)",
    )
    options.add(effort, "trials", "seconds", "seed")
    effort.add_argument(
        "--warm-start",
        metavar="BUNDLE",
        nargs="+",
        default=(),
        help="folders of bundles, of any device, whose winners are among the first trials: 70 %% "
        "of them at most, and no more once a random draw is as fast",
    )
    effort.add_argument(
        "--portfolio",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also try what is fast on known devices, from a file of this package (default): at "
        "most 8 configurations per problem, among the first trials where this device is one of "
        "them, else behind the search's random start, and only while they do better than its own; "
        "--no-portfolio does without. With --replay: searches each space with and without what the "
        "other recorded ones know",
    )
    replay.add_replay_options(parser)
    record.add_record_options(parser)
    pareto.add_pareto_options(parser)
    untuned.add_untuned_options(parser)
    options.add(parser, "device")
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="run variants in this process, for debugging: one that never ends, or crashes, takes "
        "the search along (default: in a process of their own)",
    )
    options.add(
        parser, "out", help="folder of bundles to write to (default: tuned/ of a checkout, else "
        "the user's data folder)"
    )  # fmt: skip
    options.add(parser, "journal")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna storage that several machines may share (default: a file beside the journal)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the searches that the storage holds (default); --no-resume sets them "
        "aside and starts anew",
    )


def _steps(text: str) -> tuple[int, ...]:
    return tuple(options.positive(part) for part in text.split(","))


def run(args: argparse.Namespace) -> int:
    """Tunes, packs, and says what came of it."""
    with stoppable():
        return _run(args, Output(args))


def _run(args: argparse.Namespace, output: Output) -> int:
    replay.refuse_mixed(args)
    if args.replay:
        return replay.score_spaces(args, output)
    if args.record:
        return record.record(args, output)
    if args.only or args.warm_up:
        raise UsageError("--only and --warm-up are of a recording: give --record FILE")
    if args.untuned:
        if args.model or args.shape or args.problem:
            raise UsageError("--untuned draws its problems: of --model, --shape, --problem none")
        return untuned.judge_untuned(args, output)
    if args.model and args.shape:
        raise UsageError("--model and --shape do not go together: a shape stands for a model")
    if args.shape:
        args.model = str(options.model_file(args, output.note))
    if args.objective == "pareto":
        return pareto.choose_format(args, output)
    if args.text or args.most_worse is not None:
        raise UsageError("--text and --most-worse are of --objective pareto")
    args.weights = args.weights or "f16"
    if bool(args.model) == bool(args.family):
        raise UsageError("give --model FILE, or --family NAME with --problem M=..,K=..")
    if args.model and (args.problem or args.precision):
        raise UsageError("--problem and --precision go with --family; a model has its own")
    if args.storage and not args.resume:
        raise UsageError("--no-resume does not empty a --storage that others may use; name another")
    # Here, so that --help needs none of the packages that tuning needs.
    from kernelforge.cli.tuning import Tuning

    with Tuning(args, output) as tuning:
        finished: list[TuneResult] = []
        try:
            with ProgressBar(output, "tuning") as bar:
                follow = _Follow(bar, args.verbose, tuning.tasks, finished)
                tuning.search(follow.trial, follow.result)
                if finished:
                    bar.line("timing winners of other problems on each problem")
                finished[:] = tuning.cross(finished)
            if not finished:
                output.text(
                    "other workers still search every problem; the last one packs the winners"
                )
                output.document({"device": tuning.device.info.slug, "bundle": None, "results": []})
                return 0
            bundle = tuning.pack(finished)
            output.table(HEADERS, [_row(tuning, r) for r in finished])
            output.text(f"bundle:  {bundle}")
            if tuning.sharing is not None:
                output.text(f"modules: {tuning.sharing.line()}")
            output.text(f"journal: {tuning.folder / options.JOURNAL_FILE}")
            checks = tuning.check_in_place(bundle) if args.model else []
        except KeyboardInterrupt as stopped:
            print(
                f"kernelforge tune: interrupted; {len(finished)} of {len(tuning.tasks)} problems "
                f"are finished, every trial is kept in {tuning.folder}; the same command "
                f"{'' if args.resume else 'without --no-resume '}goes on",
                file=sys.stderr,
            )
            return exit_code(stopped)
        for check in checks:
            output.text(check.line())
        output.text(f"next:    {_next(args, bundle)}")
        output.document(
            {
                "device": tuning.device.info.slug,
                "bundle": bundle,
                "journal": tuning.folder / options.JOURNAL_FILE,
                "ceilings": tuning.ceilings.to_json(),
                "results": [_result(tuning, r) for r in finished],
                "studies_shared": {
                    str(task): [str(problem) for problem in task.stands_for]
                    for task in tuning.tasks
                    if task.stands_for
                },
                "sharing": None if tuning.sharing is None else vars(tuning.sharing),
                "in_place": [check.to_json() for check in checks],
            }
        )
    return 0


class _Follow:
    """Turns what the search reports into progress, and keeps its results."""

    def __init__(
        self,
        bar: ProgressBar,
        logged: bool,
        tasks: Sequence[TuneTask],
        finished: list[TuneResult],
    ) -> None:
        self._bar, self._logged = bar, logged
        self._problems, self._finished = len(tasks), finished
        self._width = max(len(str(task)) for task in tasks)

    def trial(self, progress: Progress) -> None:
        """One finished trial."""
        head = f"{progress.family} {progress.precision} {progress.problem}"
        best = f"  best {progress.best_ns / 1e3:.1f} us" if progress.best_ns else ""
        text = f"[{len(self._finished) + 1}/{self._problems}] {head}{best}"
        self._bar.show(progress.number, progress.limit, text)
        if not self._logged:  # --verbose logs the same line
            self._bar.line(head.ljust(self._width) + progress.line().removeprefix(head))

    def result(self, result: TuneResult) -> None:
        """One finished problem."""
        self._finished.append(result)
        head = f"{result.family} {result.precision} {result.problem}"
        drift = "; the device drifted meanwhile" if result.drift else ""
        self._bar.line(
            f"{head.ljust(self._width)}  done {len(self._finished)}/{self._problems}: "
            f"default {_us(result.default.median_ns)} us, best {_us(result.best.median_ns)} us, "
            f"{_times(result.speedup)} times as fast{drift}{_warm(result)}{_saved(result)}"
        )


def _warm(result: TuneResult) -> str:
    if not result.warm_trials:
        return ""
    won = "one of them won" if result.warm_won else "none of them won"
    return f"; {result.warm_trials} of {len(result.trials)} trials were warm, {won}"


def _saved(result: TuneResult) -> str:
    if not result.good_trial:
        return ""
    count = result.portfolio_trials
    won = ", one of which won" if result.portfolio_won else ""
    of = f"; {count} trials came from the portfolio{won}" if count else ""
    return f"; 95 % of it at trial {result.good_trial} of {len(result.trials)}{_spared(result)}{of}"


def _spared(result: TuneResult) -> str:
    saving = result.saving
    if saving is None:
        return ""
    if saving.trials < 0:
        return f", {-saving.trials} later than by its own trials alone"
    return f", {saving} sooner than by its own trials alone"


def _us(ns: float) -> str:
    return "-" if math.isnan(ns) else f"{ns / 1e3:.1f}"


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.2f}"


def _row(tuning: Tuning, result: TuneResult) -> list[str]:
    share = tuning.share(result)
    return [
        result.family,
        result.precision,
        str(result.problem),
        _us(result.default.median_ns),
        _us(result.best.median_ns),
        _times(result.speedup),
        "-" if math.isnan(share) else f"{100 * share:.0f} %",
        f"{len(result.trials)}/{result.space_size}",
    ]


def _result(tuning: Tuning, result: TuneResult) -> dict[str, Any]:
    return {
        "family": result.family,
        "precision": result.precision,
        "problem": str(result.problem),
        "variant": result.best.variant,
        "default_variant": result.default.variant,
        "default_ns": result.default.median_ns,
        "best_ns": result.best.median_ns,
        "speedup": result.speedup,
        "share_of_ceiling": tuning.share(result),
        "trials": len(result.trials),
        "space_size": result.space_size,
        "seconds": result.seconds,
        "drift": result.drift,
        "warm_trials": result.warm_trials,
        "warm_won": result.warm_won,
        "portfolio_trials": result.portfolio_trials,
        "portfolio_won": result.portfolio_won,
        "good_trial": result.good_trial,
        "saved_trials": result.saving.trials if result.saving else None,
        "saved_at_least": result.saving.at_least if result.saving else None,
        "outcomes": dict(Counter(m.outcome.value for m in result.trials)),
        "study": result.study,
    }


def _next(args: argparse.Namespace, bundle: Path) -> str:
    where = f" --bundle {bundle}" if args.out else ""
    device = f" --device {args.device}" if args.device else ""
    if args.model:
        return f"kernelforge bench {args.model}{device}{where}"
    return f"kernelforge inspect {bundle} --check{device}"
