"""Where the time of a step goes: every dispatch timed on the device, and put beside the whole.

A traced step has a timestamp on either side of every dispatch, an untraced one at its ends alone.
The first shows where the time goes, the second how long it is: timestamps keep dispatches apart
that could overlap, and cost time themselves.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any

import numpy as np

from kernelforge.cli.output import Output, aligned
from kernelforge.cli.output_file import check_place, write_text
from kernelforge.families import load_families
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.step_size import BUCKETS
from kernelforge_runtime.ops.builder import Call
from kernelforge_runtime.state import State

_CSV = "--trace-csv"
REPEATS = 5
"""Steps that are run; of each time the median is given."""
COLUMNS = (
    "dispatch",
    "layer",
    "family",
    "problem",
    "chosen from",
    "us",
    "GB/s",
    "GFLOP/s",
    "share",
    "barrier us",
    "variant",
)


@dataclass(frozen=True)
class TracedDispatch:
    """One dispatch of a step.

    Attributes:
        label: the weight or state that it works on.
        layer: of the model that it belongs to; None outside of layers.
        family: of its kernel.
        variant: the kernel chosen for it.
        problem: its dimensions.
        match: how exactly that kernel fits.
        bundle: that the kernel is from.
        ns: median time on the device, without what it waited for.
        barrier_ns: of the barrier before it; NaN where there is none.
        flops: operations that it must do; 0 where its family is not known here.
        nbytes: bytes that it must move at least; 0 where its family is not known here.
        share: of the time of all dispatches and barriers.
    """

    label: str
    layer: int | None
    family: str
    variant: str
    problem: str
    match: str
    bundle: str
    ns: float
    barrier_ns: float
    flops: float
    nbytes: float
    share: float

    @property
    def gbps(self) -> float:
        """GB/s, of the bytes that must be moved; 0 where not known."""
        return self.nbytes / self.ns if self.ns > 0 else 0.0

    @property
    def gflops(self) -> float:
        """GFLOP/s, of the operations that must be done; 0 where not known."""
        return self.flops / self.ns if self.ns > 0 else 0.0

    def row(self) -> tuple[str, ...]:
        """Cells of COLUMNS."""
        return (
            self.label[-32:],
            "-" if self.layer is None else str(self.layer),
            self.family,
            self.problem,
            f"{self.bundle}, {self.match}",
            *_rates(self.ns, self.nbytes, self.flops, self.share),
            "-" if math.isnan(self.barrier_ns) else f"{self.barrier_ns / 1e3:.1f}",
            self.variant,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "gbps": self.gbps, "gflops": self.gflops}


@dataclass(frozen=True)
class TracedStep:
    """A step, traced and not.

    Attributes:
        name: `decode of one token`, `prefill of 32 tokens`.
        device: its name.
        dispatches: in order; empty where the device's queue has no timestamps.
        untraced_ns: median time on the device of the same step without them; host time where the
            queue has none.
        wall_ns: median time on the host of the step, token choice included, nothing traced.
    """

    name: str
    device: str
    dispatches: tuple[TracedDispatch, ...]
    untraced_ns: float
    wall_ns: float

    @property
    def dispatch_ns(self) -> float:
        """Of all dispatches together."""
        return sum(d.ns for d in self.dispatches)

    @property
    def barrier_ns(self) -> float:
        """Of all barriers together."""
        return sum(d.barrier_ns for d in self.dispatches if not math.isnan(d.barrier_ns))

    @property
    def barriers(self) -> int:
        """How many there are."""
        return sum(not math.isnan(d.barrier_ns) for d in self.dispatches)

    def grouped(self, by: str) -> list[tuple[str, int, float, float, float, float]]:
        """(name, dispatches, ns, bytes, flops, share) of each `family` or `layer`, in order."""
        groups: dict[Any, list[TracedDispatch]] = defaultdict(list)
        for dispatch in self.dispatches:
            groups[getattr(dispatch, by)].append(dispatch)
        found = []
        for name, of in groups.items():
            sums = [sum(getattr(d, key) for d in of) for key in ("ns", "nbytes", "flops", "share")]
            label = "outside of layers" if name is None else str(name)
            found.append((label, len(of), *sums))
        return [(n, c, a, b, f, s) for n, c, a, b, f, s in found]

    def sums(self) -> str:
        """One line: the dispatches and barriers together, beside the step untraced."""
        traced = self.dispatch_ns + self.barrier_ns
        return (
            f"{len(self.dispatches)} dispatches {self.dispatch_ns / 1e3:.1f} us + {self.barriers} "
            f"barriers {self.barrier_ns / 1e3:.1f} us = {traced / 1e3:.1f} us traced; untraced "
            f"{self.untraced_ns / 1e3:.1f} us on the device ({_ratio(traced, self.untraced_ns)} of "
            f"it traced), {self.wall_ns / 1e3:.1f} us on the host's clock"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "step": self.name,
            "device": self.device,
            "dispatches": [d.to_json() for d in self.dispatches],
            "families": [_group_json(group) for group in self.grouped("family")],
            "layers": [_group_json(group) for group in self.grouped("layer")],
            "dispatch_ns": self.dispatch_ns,
            "barriers": self.barriers,
            "barrier_ns": self.barrier_ns,
            "untraced_ns": self.untraced_ns,
            "wall_ns": self.wall_ns,
        }


def add_trace(parser: argparse.ArgumentParser) -> None:
    """Adds --trace and --trace-csv."""
    parser.add_argument(
        "--trace",
        action="store_true",
        help="time every dispatch of a step: us, GB/s, GFLOP/s, share; by family and by layer",
    )
    parser.add_argument(_CSV, metavar="FILE", help="also write the dispatches to FILE as CSV")


def check_trace(args: argparse.Namespace) -> None:
    """--trace-csv asks for a trace too; where it cannot be written, that is said at once."""
    args.trace = args.trace or args.trace_csv is not None
    if args.trace_csv is not None:
        check_place(_CSV, args.trace_csv)


def trace_step(model: Model, tokens: Sequence[int], *states: State) -> TracedStep:
    """Runs one step a few times, traced and not, on these states, which move on.

    Args:
        model: on a device.
        tokens: one to be decoded of each state, or a chunk of one's prompt.
        states: copies, or such that nobody needs.
    """
    pieces = np.split(np.array(tokens, np.uint32), len(states))

    def run() -> None:
        if len(tokens) == 1:
            model.greedy(tokens[0], *states)
        else:
            model.advance(pieces, states, len(states))

    run()
    runs = model.trace(tokens, *states, repeats=REPEATS)
    untraced = median(model.step_ns(tokens, *states, repeats=REPEATS))
    wall = median(_wall_ns(run) for _ in range(REPEATS))
    for state in states:
        model.release(state)
    name = "decode of one token" if len(tokens) == 1 else f"prefill of {len(tokens)} tokens"
    if len(states) > 1:
        name = f"decode of {len(states)} sequences"
    times = [median(times) for times in zip(*(r.dispatch_ns for r in runs), strict=True)]
    waits = [median(times) for times in zip(*(r.barrier_ns for r in runs), strict=True)]
    total = sum(times) + sum(wait for wait in waits if not math.isnan(wait))
    dispatches = [
        _describe(call, ns, wait, ns / total if total else 0.0)
        for call, ns, wait in zip(runs[0].calls, times, waits, strict=False)
    ]
    return TracedStep(name, model.device.info.name, tuple(dispatches), untraced, wall)


def print_trace(say: Callable[[str], None], step: TracedStep) -> None:
    """Tables of dispatches, families and layers, then the sums."""
    if not step.dispatches:
        say(
            f"no trace of {step.name}: {step.device} has no timestamps on its queue; "
            f"{step.untraced_ns / 1e3:.1f} us by the host's clock"
        )
        return
    say(f"{step.name} on {step.device}")
    for line in aligned([COLUMNS, *(d.row() for d in step.dispatches)]):
        say(line)
    for by in ("family", "layer"):
        rows = [
            (name, str(count), *_rates(ns, nbytes, flops, share))
            for name, count, ns, nbytes, flops, share in step.grouped(by)
        ]
        say("")
        for line in aligned([(by, "dispatches", *COLUMNS[5:9]), *rows]):
            say(line)
    say("")
    say(step.sums())


def csv_text(steps: Iterable[TracedStep]) -> str:
    """A line per dispatch, of all steps."""
    out = io.StringIO()
    columns = [*(field.name for field in fields(TracedDispatch)), "gbps", "gflops"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", "number", *columns])
    for step in steps:
        for number, dispatch in enumerate(step.dispatches):
            told = dispatch.to_json()
            writer.writerow([step.name, number, *map(_cell, map(told.get, columns))])
    return out.getvalue()


def trace_tests(
    model: Model | Reference, tests: Iterable[tuple[str, int]], weights: str
) -> list[TracedStep]:
    """The steps that a bench's tests are made of: a token, and the chunks of its prompts.

    Args:
        model: on a device.
        tests: ("pp", tokens) and ("tg", tokens).
        weights: their format, for the steps' names.
    """
    assert isinstance(model, Model)
    sizes = dict.fromkeys(1 if kind == "tg" else min(n, max(BUCKETS)) for kind, n in tests)
    found = []
    for size in sizes:
        ids = np.random.default_rng(size).integers(0, model.config.vocab, size).tolist()
        step = trace_step(model, ids, model.new_state())
        found.append(replace(step, name=f"{step.name}, {weights}"))
    return found


def trace_batches(model: Model, batches: Iterable[int], weights: str) -> list[TracedStep]:
    """Decoding steps of so many sequences; see trace_tests."""
    found = []
    for count in batches:
        ids = np.random.default_rng(count).integers(0, model.config.vocab, count).tolist()
        step = trace_step(model, ids, *(model.new_state() for _ in ids))
        found.append(replace(step, name=f"{step.name}, {weights}"))
    return found


def show_traces(
    args: argparse.Namespace, output: Output, steps: Sequence[TracedStep]
) -> dict[str, Any]:
    """Prints a bench's traces and writes their CSV; what its document says of them."""
    if not args.trace:
        return {}
    say = output.note if getattr(args, "csv", False) else output.text
    for step in steps:
        say("")
        print_trace(say, step)
    write_csv(args, steps)
    return {"traces": [step.to_json() for step in steps]}


def write_csv(args: argparse.Namespace, steps: Sequence[TracedStep]) -> None:
    """Writes the file of --trace-csv, where one was asked for."""
    if args.trace_csv is not None:
        write_text(_CSV, args.trace_csv, csv_text(steps))


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _wall_ns(run: Callable[[], None]) -> float:
    started = time.perf_counter_ns()
    run()
    return float(time.perf_counter_ns() - started)


def _describe(call: Call, ns: float, barrier_ns: float, share: float) -> TracedDispatch:
    chosen = call.selection
    entry = chosen.entry
    family = load_families().get(entry.family)
    flops = nbytes = 0.0
    if family is not None and family.refuses(call.problem) is None:
        flops, nbytes = family.cost(call.problem, family.precision(entry.precision))
    match = chosen.match.name.lower().partition("_")[0]
    return TracedDispatch(
        label=call.label,
        layer=call.block,
        family=entry.family,
        variant=entry.variant,
        problem=str(call.problem),
        match=match,
        bundle=chosen.bundle.slug,
        ns=ns,
        barrier_ns=barrier_ns,
        flops=float(flops),
        nbytes=float(nbytes),
        share=share,
    )


def _rates(ns: float, nbytes: float, flops: float, share: float) -> tuple[str, ...]:
    known = ns > 0
    return (
        f"{ns / 1e3:.1f}",
        f"{nbytes / ns:.2f}" if nbytes and known else "-",
        f"{flops / ns:.2f}" if flops and known else "-",
        f"{100 * share:.1f} %",
    )


def _ratio(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else "-"


def _group_json(group: tuple[str, int, float, float, float, float]) -> dict[str, Any]:
    name, count, ns, nbytes, flops, share = group
    return {
        "name": name,
        "dispatches": count,
        "ns": ns,
        "gbps": nbytes / ns if ns > 0 else 0.0,
        "gflops": flops / ns if ns > 0 else 0.0,
        "share": share,
    }
