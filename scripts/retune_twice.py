"""Tune problems twice from nothing and time the two winners side by side.

    python scripts/retune_twice.py --device llvmpipe gemv/f16:M=768,K=768 wkv7/f32:T=1,H=12,N=64,B=1

Each problem is tuned with two seeds, without warm start or portfolio, in temporary folders; then
the two winners take turns. Prints the ratio of the slower to the faster one; 1.05 is the goal. Ends
with 1 where a problem misses it. Only a quiet machine gives figures that mean anything.
"""

from __future__ import annotations

import argparse
import sys

from kernelforge.errors import TuneError
from kernelforge.families import get_family
from kernelforge.measure.supervisor import Supervisor
from kernelforge.tune.budget import Budget
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.repeated import ALIKE, Repetition, tune_twice
from kernelforge.tune.study import Isolation
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.vk import open_device


def task(text: str) -> TuneTask:
    """What `FAMILY/PRECISION:M=..,K=..` names.

    Raises:
        TuneError: it has another form, or the family refuses the problem.
    """
    name, colon, problem = text.partition(":")
    family_name, slash, precision = name.partition("/")
    if not colon or not slash:
        raise TuneError(f"{text}: expected FAMILY/PRECISION:M=..,K=.., e.g. gemv/f16:M=768,K=768")
    family = get_family(family_name)
    completed = family.completed(Problem.parse(problem))
    if why := family.refuses(completed):
        raise TuneError(f"{text}: {why}")
    return TuneTask(family, family.precision(precision), completed)


def line(what: TuneTask, found: Repetition) -> str:
    """One problem's result."""
    same = "the same variant" if found.first.best.variant == found.second.best.variant else ""
    verdict = "alike" if found.alike else "NOT ALIKE"
    low, high = found.interval.low, found.interval.high
    return (
        f"{what}: {found.first_ns / 1e3:.1f} and {found.second_ns / 1e3:.1f} us in turns, ratio "
        f"{found.ratio:.3f} ({verdict}; second/first {low:.3f} to {high:.3f}) {same}\n"
        f"  {found.first.best.variant}\n  {found.second.best.variant}"
    )


def main() -> int:
    """Tunes, compares, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", metavar="FAMILY/PRECISION:M=..,K=..")
    parser.add_argument("--device", help="Vulkan device (default: the best one)")
    parser.add_argument("--profile", choices=("quick", "full"), default="quick")
    parser.add_argument("--trials", type=int, help="trials of each of the two tunings")
    parser.add_argument("--seconds", type=float, help="seconds of each of the two tunings")
    args = parser.parse_args()
    try:
        tasks = [task(text) for text in args.tasks]
        budget = Budget.of(args.profile, args.trials, args.seconds)
        with open_device(args.device) as device, Supervisor() as supervisor:
            isolation = Isolation(supervisor)
            found = []
            for each in tasks:
                found.append(tune_twice(device, each, budget, isolation=isolation))
                print(line(each, found[-1]), flush=True)
    except KernelForgeError as error:
        print(f"retune_twice: {error}", file=sys.stderr)
        return 2
    alike = sum(repetition.alike for repetition in found)
    print(f"{alike} of {len(found)} within {ALIKE:g}; worst {max(r.ratio for r in found):.3f}")
    return 0 if alike == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
