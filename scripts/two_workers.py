"""How many times as many trials per second two workers of one study make as one does.

    python scripts/two_workers.py --device llvmpipe gemv/f16:M=256,K=256 --trials 40

Starts Debian's PostgreSQL on loopback, in a folder of its own, and tunes the problem from nothing
again and again: with one worker and with two that share the study, in turns, for a machine's speed
moves between runs. Counted is what is done between the first and the last trial, of two workers
while both are at work. A software device computes on one thread per worker, and neither our
compiler nor the driver keeps anything from another run. Two workers need two cores: what was free
before is said, and where that was less, nothing is judged. Ends with 1 where two workers did
something twice, or where the median of the rounds is below 1.7 with cores enough.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from kernelforge.errors import TuneError
from kernelforge_runtime.errors import KernelForgeError

GOAL = 1.7
"""Of two workers over one, where each has a core to itself."""
NEEDED = 1.8
"""Cores that must be free for a verdict."""
WATCHED_S = 3.0
LONGEST_S = 1800.0


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a server on loopback, without the name of a database.

    Raises:
        TuneError: there is no server to start, no driver, or it does not start.
    """
    if not any(map(_there, ("psycopg", "psycopg2"))):
        raise TuneError("no driver for PostgreSQL: pip install 'kernelforge[storage]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if not found:
        raise TuneError("no PostgreSQL server: install the Debian package postgresql")
    programs, who = found[0].parent, _who()
    folder = Path(tempfile.mkdtemp(prefix="kernelforge-pg-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        if "user" in who:
            os.chown(folder, who["user"], who["group"])
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "trust", "-N"],
            cwd=folder, capture_output=True, text=True, check=False, **who,
        )  # fmt: skip
        if made.returncode:
            raise TuneError(f"initdb: {made.stderr.strip().splitlines()[-1:]}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = folder / "log"
        with log.open("w") as words:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder,
                 "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
                cwd=folder, stdout=words, stderr=words, **who,
            )  # fmt: skip
        for _ in range(600):
            if "ready to accept connections" in log.read_text():
                break
            if server.poll() is not None:
                raise TuneError(f"PostgreSQL did not start: {log.read_text().strip()[-200:]}")
            time.sleep(0.1)
        yield f"postgresql://tuner@127.0.0.1:{port}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # ends sessions, then itself
            server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _there(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def _who() -> dict[str, Any]:
    """As whom the server runs: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise TuneError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def free_cores(seconds: float) -> float:
    """How many of this process's cores nobody used for a while; NaN where the system does not say.

    Read from Linux's /proc/stat.
    """
    cores = os.sched_getaffinity(0)

    def idle_s() -> float:
        total = 0.0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *counts = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
                total += (int(counts[3]) + int(counts[4])) / os.sysconf("SC_CLK_TCK")
        return total

    try:
        before, started = idle_s(), time.monotonic()
        time.sleep(seconds)
        return (idle_s() - before) / (time.monotonic() - started)
    except OSError:
        return float("nan")


def rate(times: Sequence[float]) -> float:
    """Trials per second between the first and the last; NaN of fewer than two."""
    ordered = sorted(times)
    return (len(ordered) - 1) / (ordered[-1] - ordered[0]) if len(ordered) > 1 else float("nan")


def together(each: Sequence[Sequence[float]]) -> list[float]:
    """Those of all workers' times at which all of them were at work."""
    begin, end = max(map(min, each)), min(map(max, each))
    return [at for times in each for at in times if begin <= at <= end]


def search(args: argparse.Namespace) -> int:
    """One worker: says each trial as it ends."""
    from retune_twice import task

    from kernelforge.measure.supervisor import Supervisor
    from kernelforge.tune.budget import Budget
    from kernelforge.tune.journal import Journal
    from kernelforge.tune.last_one import LeftError
    from kernelforge.tune.progress import Progress
    from kernelforge.tune.study import Isolation, tune_problem
    from kernelforge_runtime.vk import open_device

    def told(progress: Progress) -> None:
        print(f"{progress.last.variant} {time.time():.4f}", flush=True)

    what = task(args.task)
    budget, journal = Budget(args.trials), Journal(Path(args.folder) / "journal.jsonl")
    with open_device(args.device) as device, Supervisor() as opened, contextlib.suppress(LeftError):
        tune_problem(
            device, what.family, what.precision, what.problem, budget, journal, args.worker, told,
            isolation=Isolation(opened),
        )  # fmt: skip
    return 0


def run_workers(args: argparse.Namespace, url: str, count: int) -> list[dict[str, float]]:
    """What so many workers say: variant -> when, of each.

    Raises:
        TuneError: one of them failed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="kernelforge-") as name,
        contextlib.ExitStack() as opened,
    ):
        env = {
            **os.environ, "KERNELFORGE_CACHE": f"{name}/cache", "LP_NUM_THREADS": "1",
            "MESA_SHADER_CACHE_DISABLE": "true",
        }  # fmt: skip
        workers = []
        for i in range(count):
            folder = Path(name) / str(i)
            folder.mkdir()
            device = ["--device", args.device] if args.device else []
            command = [
                sys.executable, __file__, args.task, "--trials", str(args.trials), *device,
                "--worker", url, "--folder", str(folder),
            ]  # fmt: skip
            worker = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            opened.callback(worker.kill)  # where another one fails; the dead feel nothing
            workers.append(worker)
        found = []
        for worker in workers:
            said, complaints = worker.communicate(timeout=LONGEST_S)
            if worker.returncode:
                last = [line for line in complaints.splitlines() if line.strip()][-1:]
                raise TuneError(f"a worker failed: {''.join(last).removeprefix('two_workers: ')}")
            lines = [line.split() for line in said.splitlines()]
            found.append({variant: float(at) for variant, at in lines})
        return found


class Round(NamedTuple):
    """Trials per second of one worker and of two, and what two workers did twice."""

    one: float
    two: float
    twice: int

    @property
    def ratio(self) -> float:
        """Of two workers over one."""
        return self.two / self.one


def one_round(args: argparse.Namespace, databases: Callable[[str], str], number: int) -> Round:
    """Both runs, each on a database of its own; every other round two workers are first.

    Raises:
        TuneError: a worker failed, or one of two found nothing left to do.
    """
    said: dict[int, list[dict[str, float]]] = {}
    for count in (1, 2) if number % 2 == 0 else (2, 1):
        said[count] = run_workers(args, databases(f"round{number}_{count}"), count)
    (alone,), pair = said[1], said[2]
    if not all(pair):
        raise TuneError(
            f"one of two workers found nothing left to do; more than --trials {args.trials}"
        )
    variants = [name for told in pair for name in told]
    found = Round(
        rate(list(alone.values())),
        rate(together([list(told.values()) for told in pair])),
        len(variants) - len(set(variants)),
    )
    print(
        f"one worker {found.one:.3f} trials per second ({len(alone)} trials), two {found.two:.3f} "
        f"({' + '.join(str(len(told)) for told in pair)} trials, {found.twice or 'none'} of them "
        f"twice): {found.ratio:.2f}",
        flush=True,
    )
    return found


def compare(args: argparse.Namespace) -> int:
    """All rounds, and the verdict."""
    from optuna.storages import RDBStorage
    from sqlalchemy import create_engine

    with postgres() as server:
        driver = "postgresql+psycopg" if _there("psycopg") else "postgresql+psycopg2"
        here = server.replace("postgresql", driver, 1)

        def database(name: str) -> str:
            """A new one, with its tables: workers would hurry to make them."""
            engine = create_engine(f"{here}/postgres", isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            engine.dispose()
            RDBStorage(f"{here}/{name}").engine.dispose()
            return f"{server}/{name}"

        free = free_cores(WATCHED_S)
        print(f"{free:.2f} of {len(os.sched_getaffinity(0))} cores are free", flush=True)
        rounds = [one_round(args, database, number) for number in range(args.rounds)]
    ratio, judged = median(each.ratio for each in rounds), free >= NEEDED
    verdict = "reached" if ratio >= GOAL else "MISSED"
    if not judged:
        verdict = f"not judged: it holds where {NEEDED:g} cores are free"
    print(f"ratio {ratio:.2f} with {free:.2f} cores free before; goal {GOAL:g}: {verdict}")
    twice = any(each.twice for each in rounds)
    return 1 if twice or (judged and ratio < GOAL) else 0


def main() -> int:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "task", nargs="?", default="gemv/f16:M=256,K=256", metavar="FAMILY/PRECISION:M=..,K=.."
    )
    parser.add_argument("--device", help="Vulkan device (default: the best one)")
    parser.add_argument("--trials", type=int, default=40, help="of each of the two runs")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (default: 3)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.worker:
            return search(args)
        from retune_twice import task

        from kernelforge.tune.budget import Budget

        task(args.task)  # what is wrong with it is told before a server is started
        Budget(args.trials)
        if args.rounds < 1:
            raise TuneError(f"--rounds: want 1 or more, found {args.rounds}")
        return compare(args)
    except KernelForgeError as error:
        print(f"two_workers: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
