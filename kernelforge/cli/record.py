"""`tune --record`: times every configuration of one problem, for `tune --replay`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar
from kernelforge.cli.stopping import exit_code

if TYPE_CHECKING:
    from kernelforge.measure.measurement import Measurement
    from kernelforge.measure.measurer import Measurer
    from kernelforge.measure.timed_problem import Effort
    from kernelforge.tune.recording import SubSpace
    from kernelforge_runtime.vk import Device

LINE_EVERY = 25
MOST_DRIFT = 1.25
"""The slowest time of the default over its fastest, from which on a recording is doubtful."""


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """What a recording takes."""
    group = parser.add_argument_group("recording a space, with --family, --precision and --problem")
    group.add_argument(
        "--record",
        metavar="FILE",
        help="time every valid configuration, and write them as T4 results (.json or .json.gz); "
        "killed, the same command goes on",
    )
    group.add_argument(
        "--only",
        metavar="PARAM=V,..",
        action="append",
        default=[],
        help="with --record: only configurations with these values, e.g. ADDRESS=1; may be "
        "repeated",
    )
    group.add_argument(
        "--warm-up",
        action="store_true",
        help="with --record: compile and run each once, without timing; fills the caches of our "
        "compiler and the driver's, under any load, so that the recording itself is short",
    )


def record(args: argparse.Namespace, output: Output) -> int:
    """Records, writes the file, and says what is in it."""
    only = _only(args.only)
    for name in ("family", "precision", "problem"):
        if getattr(args, name) is None:
            raise UsageError(f"--record is of one problem: give --{name}")
    path = Path(args.record)
    if not path.name.endswith((".json", ".json.gz")):
        raise UsageError(f"--record {path}: T4 results are written; name it .json or .json.gz")
    if path.is_dir():
        raise UsageError(f"--record {path}: that is a folder; name a file")
    from kernelforge.compile import compile_many, working_compiler
    from kernelforge.errors import CompileError
    from kernelforge.families import get_family
    from kernelforge.tune.journal import Journal, read_journal
    from kernelforge.tune.recorded import write_t4
    from kernelforge.tune.recording import EFFORT, ONCE, Recording, SubSpace
    from kernelforge_runtime.vk import open_device

    options.require_writable(path.parent, "--record")
    working_compiler()
    family = get_family(args.family)
    precision = family.precision(args.precision)
    with open_device(args.device) as device:
        problem = family.completed(args.problem)
        sub = SubSpace.of(device.info, family, precision, problem, only)
        folder = options.journal_folder(args.journal, device.info.slug)
        options.require_writable(folder, "--journal")
        kept = folder / f"record-{path.name.removesuffix('.gz').removesuffix('.json')}.jsonl"
        if not args.resume and kept.exists():
            kept.unlink()
        known = read_journal(kept)
        recording = Recording(sub, Journal(kept), known)
        total = len(sub.configs)
        output.note(
            f"{family.name} {precision} {problem}: {total} configurations on {device.info.name}; "
            f"journal in {kept}"
        )
        try:
            with ProgressBar(output, "compiling", total) as bar:
                requests = [(family, precision, params) for params in sub.configs]
                made = compile_many(requests, done=lambda i, _: bar.show(i))
            refused = sum(isinstance(m, CompileError) for m in made)
            output.note(f"{total - refused} compile" + (f", {refused} do not" if refused else ""))
            del made
            effort = ONCE if args.warm_up else EFFORT
            with ProgressBar(output, "recording", total) as bar, _bench(
                args, device, sub, effort, known
            ) as bench:  # fmt: skip
                if args.warm_up:
                    recording.warm_up(bench, _Follow(bar, total, lambda: recording.warmed))
                else:
                    recording.run(bench, _Follow(bar, total, lambda: len(recording)))
        except KeyboardInterrupt as stopped:
            print(
                f"kernelforge tune: interrupted; {len(recording)} of {total} are timed and kept in "
                f"{kept}; the same command goes on",
                file=sys.stderr,
            )
            return exit_code(stopped)
    if args.warm_up:
        output.text(f"{recording.warmed} of {total} have run once; now without --warm-up")
        output.document({"configurations": total, "warmed": recording.warmed})
        return 0
    space = recording.space(path.name.removesuffix(".gz").removesuffix(".json"))
    write_t4(space, path)
    counts = Counter(space.reasons)
    default = recording.drift.times_ns
    moved = max(default) / min(default)
    output.text(f"{path}: {total} configurations of {family.name} {precision} {problem}")
    output.text(f"outcomes: {', '.join(f'{n} {word}' for word, n in counts.most_common())}")
    output.text(
        f"optimum {space.optimum_ms:.4f} ms, default {default[0] / 1e6:.4f} ms "
        f"(between {min(default) / 1e6:.4f} and {max(default) / 1e6:.4f} of {len(default)}); "
        f"{100 * space.near_optimum:.2f} % within 5 % of the optimum"
    )
    if moved > MOST_DRIFT:
        output.note(
            f"the device was up to {moved:.1f} times slower than at best: what it took out of the "
            "times is a guess; record again, with --no-resume, when nothing else runs"
        )
    output.document(
        {
            "file": path,
            "configurations": total,
            "outcomes": dict(counts),
            "optimum_ms": space.optimum_ms,
            "near_optimum": space.near_optimum,
            "default_ms": [ns / 1e6 for ns in default],
            "drift": moved,
        }
    )
    return 0


@contextmanager
def _bench(
    args: argparse.Namespace,
    device: Device,
    sub: SubSpace,
    effort: Effort,
    known: Iterable[Measurement],
) -> Iterator[Measurer]:
    from kernelforge.measure.bench import Bench
    from kernelforge.measure.isolated import IsolatedBench
    from kernelforge.measure.supervisor import Supervisor
    from kernelforge.tune.quarantine import quarantined
    from kernelforge.tune.recording import PATIENCE

    given = (sub.family, sub.precision, sub.problem)
    if args.in_process:
        with Bench(device, *given, effort=effort) as bench:
            yield bench
        return
    avoid = quarantined(known, device.info)
    with Supervisor() as supervisor, IsolatedBench(
        supervisor, device.info, *given, effort=effort, patience=PATIENCE, avoid=avoid
    ) as isolated:  # fmt: skip
        yield isolated


class _Follow:
    """Turns measurements into progress: every failure, and now and then where it stands."""

    def __init__(self, bar: ProgressBar, total: int, done: Callable[[], int]) -> None:
        self._bar, self._total, self._done = bar, total, done

    def __call__(self, found: Measurement) -> None:
        done = self._done()
        self._bar.show(done, self._total)
        name = found.variant.rsplit("/", 1)[-1]
        if not found.ok:
            self._bar.line(f"{found.outcome.value}  {name}: {found.reason}")
        elif done % LINE_EVERY == 0 or done == self._total:
            self._bar.line(f"{done}/{self._total}  {name}  {found.median_ns / 1e6:.3f} ms")


def _only(given: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        words = [word.strip() for word in values.split(",")]
        if not equals or not all(words) or name in found:
            raise UsageError(f"--only {text}: expected PARAM=VALUE,.. with each parameter once")
        found[name] = words
    return found
