"""`tune --untuned`: how good the runtime's choice is for problems that were never tuned."""

from __future__ import annotations

import argparse
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge.cli import options
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar

if TYPE_CHECKING:
    from kernelforge.tune.study import Isolation
    from kernelforge.tune.untuned import Drawn, Judged
    from kernelforge_runtime.abi.module import ShaderModule
    from kernelforge_runtime.bundle import KernelSet
    from kernelforge_runtime.vk import Device

TRIALS, ROUNDS, SECONDS = 25, 9, 3.0
"""Of each problem's search if not told; then rounds of both in turns, and about how long."""
HEADS = (
    "family", "type", "problem", "tuned for", "chosen us", "own best us", "ratio", "95 %", "trials",
)  # fmt: skip


def add_untuned_options(parser: argparse.ArgumentParser) -> None:
    """What the judgement takes."""
    group = parser.add_argument_group("judging a bundle on problems it was not tuned for")
    group.add_argument(
        "--untuned",
        metavar="N",
        type=options.positive,
        help="draw N problems of other model sizes, tune each for --trials (default: "
        f"{TRIALS}), all of them within about --seconds, and compare that with what the runtime "
        "takes from the bundle in --out (default: the device's best); writes no bundle",
    )


def judge_untuned(args: argparse.Namespace, output: Output) -> int:
    """Draws, tunes, compares, and prints a table."""
    from kernelforge.compile import working_compiler
    from kernelforge.errors import TuneError
    from kernelforge.families import get_family
    from kernelforge.measure.supervisor import Supervisor
    from kernelforge.tune.study import Isolation
    from kernelforge.tune.untuned import draw, summary
    from kernelforge_runtime.errors import KernelForgeError
    from kernelforge_runtime.plan import open_kernels
    from kernelforge_runtime.vk import open_device

    working_compiler()
    found: list[Judged] = []
    with open_device(args.device) as device:
        kernels = open_kernels(device, args.out)
        entries = [
            entry
            for entry in kernels.bundles[0].entries
            if args.family in (None, entry.family) and args.precision in (None, entry.precision)
        ]
        drawn = draw(entries, get_family, args.untuned, args.seed or 0)
        if not drawn:
            raise TuneError(
                f"--untuned {args.untuned}: {kernels.bundles[0].path} has no problem to draw from"
                + (f" of {args.family}" if args.family else "")
            )
        output.note(kernels.describe())
        holder = nullcontext(None) if args.in_process else Supervisor()
        with ProgressBar(output, "untuned", len(drawn)) as bar, holder as supervisor:
            isolation = None if supervisor is None else Isolation(supervisor)
            for i, one in enumerate(drawn):
                bar.show(i, what=f"{one.family.name} {one.precision} {one.problem}")
                seconds = None if args.seconds is None else args.seconds / len(drawn)
                try:
                    judged = _judge(device, kernels, one, args, seconds, isolation)
                except KernelForgeError as error:
                    output.note(f"{one.family.name} {one.problem} was not compared: {error}")
                    continue
                found.append(judged)
                bar.line(
                    f"{judged.family} {judged.precision} {judged.problem}: {judged.ratio.ratio:.2f}"
                )
        about = {"device": device.info.slug, "bundle": kernels.bundles[0].path}
    output.table(HEADS, [_row(one) for one in found])
    output.text(summary(found))
    output.text("their own best is what so few trials found; more of them may find a faster one")
    output.document(
        {**about, "summary": summary(found), "problems": [_document(one) for one in found]}
    )
    return 0 if found else 1


def _judge(
    device: Device,
    kernels: KernelSet,
    one: Drawn,
    args: argparse.Namespace,
    seconds: float | None,
    isolation: Isolation | None,
) -> Judged:
    from kernelforge.compile import compile_variant
    from kernelforge.measure.statistics import Interval, median, paired_ratio
    from kernelforge.tune.budget import Budget
    from kernelforge.tune.every_layout import layouts_of
    from kernelforge.tune.journal import Journal
    from kernelforge.tune.study import open_bench, tune_problem
    from kernelforge.tune.untuned import Judged
    from kernelforge.variant import Variant
    from kernelforge_runtime.bundle import select

    family, precision = one.family, one.family.precision(one.precision)
    layouts = one.like.signature.layouts
    selection = select(kernels.bundles, family.name, one.precision, one.problem, layouts)
    chosen = selection.module
    budget = Budget(args.trials or TRIALS, seconds)
    with tempfile.TemporaryDirectory(prefix="kernelforge-") as folder:
        # Of its own: a problem that is judged must not count as tuned afterwards.
        place = Path(folder)
        result = tune_problem(
            device, family, precision, one.problem, budget, Journal(place / "journal.jsonl"),
            place / "studies", isolation=isolation, seed=args.seed or 0,
        )  # fmt: skip
    alike = [
        m for m in result.finalists if m.ok and layouts_of(family, precision, m) == layouts
    ]  # fmt: skip
    best = min(alike, key=lambda m: m.median_ns, default=None)
    if best is None or best.spirv_sha256 == chosen.sha256:
        # The search found nothing else, or the very kernel.
        ns = best.median_ns if best is not None else math.nan
        ratio = Interval(1.0, 1.0, 1.0) if best is not None else Interval(math.nan, 0.0, math.inf)
        times = (ns, ns)
    else:
        params = family.space.normalise(Variant.parse(best.variant).values)
        module = compile_variant(family, precision, params)
        with open_bench(device, family, precision, one.problem, None, isolation) as bench:
            # An older kernel may be of the same name: the turns go by names.
            first = chosen if chosen.name != module.name else _renamed(chosen)
            timed, lost = bench.time_in_turns(
                [first, module], best.median_ns, ROUNDS, SECONDS, bench.next_seed()
            )
        if lost:
            raise next(iter(lost.values()))
        theirs, own = timed[first.name].samples_ns, timed[module.name].samples_ns
        times = (median(theirs), median(own))
        ratio = paired_ratio(theirs, own)
    return Judged(
        family.name, one.precision, one.problem, selection.entry.problem, chosen.name,
        "" if best is None else best.variant, *times, ratio, len(result.trials),
    )  # fmt: skip


def _renamed(module: ShaderModule) -> ShaderModule:
    from kernelforge_runtime.abi.module import ShaderModule

    return ShaderModule(f"{module.name}.PACKED1", module.spirv, module.signature)


def _row(one: Judged) -> list[str]:
    return [
        one.family,
        one.precision,
        str(one.problem),
        str(one.nearest),
        f"{one.chosen_ns / 1e3:.1f}",
        f"{one.best_ns / 1e3:.1f}",
        f"{one.ratio.ratio:.2f}",
        f"{one.ratio.low:.2f} to {one.ratio.high:.2f}",
        str(one.trials),
    ]


def _document(one: Judged) -> dict[str, Any]:
    ratio = one.ratio
    return {
        **vars(one),
        "problem": str(one.problem),
        "nearest": str(one.nearest),
        "ratio": ratio.ratio,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }
