"""One worker of a search without a device: a program of its own, for tests that kill it.

Real study, sampler, journal and storage; only the measurer is made up: a configuration takes as
long as its numbers say, and the worker sleeps that long.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import optuna

from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.space import Choice, Space
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal
from kernelforge.tune.objective import release_orphans
from kernelforge.tune.sampler import EnumeratedSampler
from kernelforge.tune.search import Search
from kernelforge.tune.storage import explained, open_storage
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import KernelForgeError
from tests.toolkit.small_family import small_family


def family(rows: int) -> KernelFamily:
    """A space of 12 times so many."""
    space = Space(
        Choice("WORKGROUP", (8, 16, 32, 64), default=16),
        Choice("ROWS", tuple(range(1, rows + 1)), default=1),
        Choice("VEC", (1, 2, 4), default=1),
    )
    return small_family(space=space)


class Synthetic:
    """A measurer that only sleeps; see `kernelforge.measure.measurer`."""

    info, precision, problem, isolated = GENERIC, F32, Problem(M=64, K=64), False

    def __init__(self, pause_s: float, rows: int) -> None:
        self.family, self._pause_s = family(rows), pause_s

    def recall(self, measured: Iterable[Measurement]) -> None:
        """Each of its programs is another one."""

    def measure(self, params: Mapping[str, Any], incumbent_ns: float | None = None) -> Measurement:
        time.sleep(self._pause_s)
        ns = 1000.0 + 10 * params["WORKGROUP"] + params["ROWS"] + params["VEC"] / 8
        name = self.family.variant(F32, params).name
        return Measurement(
            "small", "f32", str(self.problem), name, Outcome.OK, median_ns=ns, samples_ns=(ns,) * 3
        )

    measure_again = measure


class Telling(Journal):
    """A journal that says after each line that the line is there, and when."""

    def append(self, measurement: Measurement, trial: str = "") -> None:
        super().append(measurement, trial)
        if measurement.phase == "trial":
            sys.stdout.write(f"{measurement.variant} {time.time():.3f}\n")
            sys.stdout.flush()


@explained()
def work(args: argparse.Namespace) -> None:
    """Searches until every configuration was tried."""
    journal = Telling(args.folder / "journal.jsonl")
    bench = Synthetic(args.pause, args.rows)
    configs = bench.family.space.valid(GENERIC)
    default = bench.family.space.declared_default
    sampler = EnumeratedSampler(configs, [default], strategy="random")
    storage = open_storage(args.storage)
    study = optuna.create_study(
        storage=storage, sampler=sampler, study_name=args.study, load_if_exists=True
    )
    release_orphans(study, storage, journal)
    Search(study, sampler, bench, journal, default, Budget(1000)).run()  # type: ignore[arg-type]


def work_and_be_killed(args: argparse.Namespace) -> None:
    """Works in one process after another, each killed at a random instant but the last."""
    random = Random(args.seed)
    for _ in range(args.kills):
        child = os.fork()  # a new interpreter would import for seconds before it searches
        if child == 0:
            work(args)
            os._exit(0)
        time.sleep(random.uniform(0.0, args.longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stderr.write("killed\n" if os.WIFSIGNALED(status) else "ended\n")
    work(args)


def main() -> None:
    """Reads the arguments, and works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("storage")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", default="synthetic")
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    try:
        work_and_be_killed(parser.parse_args())
    except KernelForgeError as error:  # as the command line ends
        sys.exit(str(error))


if __name__ == "__main__":
    main()
