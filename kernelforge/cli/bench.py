"""Measures prefill and decode in tokens per second.

pp256 is prefill of a prompt of 256 tokens, tg64 is decoding of 64 tokens, one by one. With
--compare-bundle two bundles take turns, and the ratio of each pair says how much one is faster;
--peer does the same with other engines, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge import __version__
from kernelforge.cli import bench_serving, options
from kernelforge.cli.bench_facts import device_facts, step_facts
from kernelforge.cli.bench_fft import limits_of_others
from kernelforge.cli.bench_peers import (
    LIMITS,
    Absent,
    PeerSubject,
    check_names,
    opened_peers,
    peer_facts,
    without_lost,
    working_peers,
)
from kernelforge.cli.bench_tables import document, percent, print_csv, print_tables
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar
from kernelforge.cli.trace import TracedStep, add_trace, check_trace, show_traces, trace_tests
from kernelforge.report.bench_journal import BENCH_FILE, BenchRecord, append_bench
from kernelforge_runtime.errors import KernelForgeError

if TYPE_CHECKING:
    from kernelforge.cli.model_bench import Subject
    from kernelforge.measure.baseline import Ceilings
    from kernelforge_runtime.bundle import KernelSet
    from kernelforge_runtime.models import Model, Reference
    from kernelforge_runtime.vk import Device

CPU = "cpu"
GENERIC = "generic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's options."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=".pth or .safetensors file")
    options.add(parser, "shape")
    options.add(
        parser,
        "weights",
        type=bench_serving.names,
        help="weight formats, separated by commas: f32, bf16, f16, q8, nf4 (default: f16)",
    )
    options.add(parser, "quant", "lora", "memory", "activations", "threads")
    options.add(
        parser,
        "device",
        help="Vulkan device: index, part of its name, or UUID; cpu: NumPy, without Vulkan "
        "(default: the best one)",
    )
    options.add(parser, "bundle")
    parser.add_argument(
        "--compare-bundle",
        metavar="FOLDER",
        help="a second bundle, run in turns with the first; generic: the one that is not tuned",
    )
    parser.add_argument(
        "--peer",
        type=bench_serving.names,
        default=(),
        metavar="NAME,..",
        help="other engines that take turns with ours: rwkv, web-rwkv, llama.cpp; torch: its "
        "matrix products; vkfft: its bandwidth, and transforms as a WKV, both for the report "
        "(packages: pip install 'kernelforge[peers]', 'kernelforge[fft]')",
    )
    parser.add_argument(
        "--peer-python",
        metavar="PYTHON",
        help="the interpreter that has the peers' packages (default: this one)",
    )
    parser.add_argument(
        "--pp",
        type=bench_serving.sizes,
        default=(32, 256),
        metavar="T,..",
        help="prompts (default: 32,256; 0: none)",
    )
    parser.add_argument(
        "--tg",
        type=bench_serving.sizes,
        default=(64,),
        metavar="T,..",
        help="tokens to decode (default: 64; 0: none)",
    )
    parser.add_argument(
        "--reps", type=options.positive, default=5, metavar="N", help="repetitions (default: 5)"
    )
    parser.add_argument("--csv", action="store_true", help="print CSV instead of tables")
    bench_serving.add_arguments(parser)
    add_trace(parser)
    options.add(parser, "journal")


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and adds the results to the device's journal."""
    if (args.model is None) == (args.shape is None):
        raise UsageError("give a MODEL file, or --shape for random weights of a size")
    bench_serving.settle(args)
    if not args.pp and not args.tg and not bench_serving.is_wanted(args):
        raise UsageError("nothing to measure: --pp and --tg are both 0")
    if args.device == CPU and (args.bundle or args.compare_bundle):
        raise UsageError("--device cpu has no kernels: bundles need a Vulkan device")
    if args.device == CPU and args.memory:
        raise UsageError("--memory is of a Vulkan device: --device cpu runs in NumPy")
    if args.threads and args.device != CPU:
        raise UsageError("--threads is of --device cpu")
    check_trace(args)
    if args.trace and args.device == CPU:
        raise UsageError("--device cpu has no dispatches: --trace needs a Vulkan device")
    if args.trace and not (args.pp or args.tg or args.batch):
        raise UsageError("--trace times the steps of --pp, --tg and --batch: ask for one of them")
    if wrong := check_names(args.peer):
        raise UsageError(wrong)
    if args.peer and args.lora:
        raise UsageError("--peer runs the model's own file: convert --lora writes one to compare")
    output = Output(args)
    absent = Absent(output)
    path = options.model_file(args, output.note)
    _check(path, args.weights, args.quant, args.lora)
    traces: list[TracedStep] = []
    records: list[BenchRecord] = []
    ceilings = None
    if args.device == CPU:
        records = _run_reference(args, path, absent)
    elif args.pp or args.tg:
        records, ceilings = _run_device(args, path, absent, traces)
    serving = bench_serving.measure_serving(args, path, output, traces)
    rows = [row.to_json() for table in serving for row in table.rows]
    if args.csv:
        print_csv(records, rows)
    else:
        if records:
            print_tables(output, records)
        bench_serving.print_serving(output, serving)
    told = show_traces(args, output, traces)
    facts = document(records, ceilings, absent.reasons)
    output.document({**facts, **told, "serving": rows})
    return 0


def _check(path: Path, weights: Sequence[str], quant: str | None, adapters: Sequence[str]) -> None:
    """Finds out what is wrong before anything is measured."""
    from kernelforge_runtime.models import recognise
    from kernelforge_runtime.models.formats import formats_of, weight_format
    from kernelforge_runtime.weights.adapters import open_model

    for name in weights:
        weight_format(name)
    with open_model(path, adapters) as checkpoint:
        config = recognise(checkpoint).read_config(checkpoint)
    for name in weights:
        formats_of(config, name, quant)


@dataclass(frozen=True)
class _Run:
    """What all records of one run have in common."""

    path: Path
    time: str
    tests: tuple[tuple[str, int], ...]
    repetitions: int

    @classmethod
    def of(cls, args: argparse.Namespace, path: Path) -> _Run:
        tests = [("pp", size) for size in args.pp] + [("tg", size) for size in args.tg]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(path, now, tuple(tests), args.reps)


def _run_reference(args: argparse.Namespace, path: Path, absent: Absent) -> list[BenchRecord]:
    """By NumPy: for the sake of comparison, and where there is no Vulkan."""
    from kernelforge.cli.model_bench import Subject
    from kernelforge_runtime.models import load_reference

    setting = _Run.of(args, path)
    records: list[BenchRecord] = []
    for name in LIMITS.intersection(args.peer):
        absent.add(name, "it is held against kernels, and --device cpu has none")
    known = {"device": "numpy", "device_name": "NumPy", "device_type": CPU, "driver": ""}
    with ProgressBar(absent.output, "bench") as bar, _peers(args, path, absent) as peers:
        for weights in args.weights:
            with load_reference(
                path,
                weights=weights,
                activations=args.activations,
                threads=args.threads,
                quant=args.quant,
                adapters=args.lora,
            ) as model:
                note = _format(model.formats.name, args.activations)
                working = working_peers(model, note, peers, absent)
                facts = [known, *(peer_facts(peer, known) for peer in working)]
                every: list[Subject | PeerSubject] = [Subject("numpy", model), *working]
                records += _measure(setting, model, every, note, facts, bar, absent)
    return records


def _run_device(
    args: argparse.Namespace, path: Path, absent: Absent, traces: list[TracedStep]
) -> tuple[list[BenchRecord], Ceilings | None]:
    from kernelforge_runtime.vk import open_device

    output = absent.output
    setting = _Run.of(args, path)
    records: list[BenchRecord] = []
    with open_device(args.device, memory=args.memory) as device:
        wanted = [args.bundle] + ([args.compare_bundle] if args.compare_bundle else [])
        kernels = [_kernels(device, bundle) for bundle in wanted]
        for chosen in kernels:
            if chosen.located is not None:
                output.note(chosen.located.reason)
        folder = options.require_writable(
            options.journal_folder(args.journal, device.info.slug), "--journal"
        )
        ceilings = _ceilings(device, output)
        limits = limits_of_others(args.peer, device, ceilings, args.peer_python, absent)
        with ProgressBar(output, "bench") as bar, _peers(args, path, absent, device) as peers:
            for weights in args.weights:
                how = weights, args.activations, args.quant, args.lora
                with _loaded(path, device, kernels, *how) as subjects:
                    model = subjects[0].model
                    note = _format(model.formats.name, args.activations)
                    working = working_peers(model, note, peers, absent)
                    known = [device_facts(device, s, ceilings) for s in subjects]
                    known += [peer_facts(peer, known[0]) for peer in working]
                    every: list[Subject | PeerSubject] = [*subjects, *working]
                    found = _measure(setting, model, every, note, known, bar, absent)
                    if args.trace:
                        traces += trace_tests(model, setting.tests, note)
                of_run = absent.record(setting.time, path.stem) if args.peer else {}
                of_run |= {} if records else limits
                append_bench(folder / BENCH_FILE, found, None if records else ceilings, of_run)
                records += found
    return records, ceilings


@contextlib.contextmanager
def _peers(
    args: argparse.Namespace, path: Path, absent: Absent, device: Device | None = None
) -> Iterator[list[PeerSubject]]:
    from kernelforge.peers.driver import only_driver_of
    from kernelforge.resources import cache_dir

    if not args.peer:
        yield []
        return
    cache = cache_dir() / "models"
    seen = only_driver_of(device) if device is not None else {}
    with opened_peers(args.peer, path, cache, args.peer_python, absent, seen) as peers:
        yield peers


def _format(weights: str, activations: str) -> str:
    """As it stands in tables: activations are named where they are not float32."""
    return weights if activations == "f32" else f"{weights}/{activations}"


def _kernels(device: Device, bundle: str | None) -> KernelSet:
    from kernelforge_runtime.bundle import KernelSet, locate_generic
    from kernelforge_runtime.plan import open_kernels

    if bundle == GENERIC:
        return KernelSet.open(device.info, locate_generic(device.info).bundle_path)
    return open_kernels(device, bundle)


def _ceilings(device: Device, output: Output) -> Ceilings | None:
    """Measured anew; None, and a note, where there is no compiler to measure with."""
    try:
        from kernelforge.measure.baseline import measure_ceilings

        output.note(f"measuring what {device.info.name} can do at best ...")
        return measure_ceilings(device)
    except (ImportError, KernelForgeError) as error:
        output.note(f"no share of bandwidth: it could not be measured ({error})")
        return None


@contextlib.contextmanager
def _loaded(
    path: Path,
    device: Device,
    kernels: Sequence[KernelSet],
    weights: str,
    activations: str,
    quant: str | None,
    adapters: Sequence[str],
) -> Iterator[list[Subject]]:
    """The model once per bundle."""
    from kernelforge.cli.model_bench import Subject
    from kernelforge_runtime.models import load_model

    with contextlib.ExitStack() as stack:
        yield [
            Subject(
                chosen.bundles[0].slug,
                stack.enter_context(
                    load_model(
                        path,
                        device,
                        chosen,
                        weights,
                        activations,
                        quant=quant,
                        adapters=adapters,
                    )
                ),
            )
            for chosen in kernels
        ]


def _measure(
    setting: _Run,
    model: Model | Reference,
    subjects: Sequence[Subject | PeerSubject],
    weights: str,
    known: Sequence[dict[str, Any]],
    bar: ProgressBar,
    absent: Absent,
) -> list[BenchRecord]:
    """Every test on these subjects, as records; `model` is that of the first."""
    from kernelforge.cli.model_bench import measure
    from kernelforge.cli.state_size import state_bytes

    records = []
    config = model.config
    common = {
        "time": setting.time,
        "model": setting.path.stem,
        "version": config.version,
        "sizes": f"L{config.layers} C{config.width} V{config.vocab}",
        "parameters": config.parameters,
        "weights": weights,
        "state_bytes": state_bytes(config),
        "kernelforge": __version__,
        "pair": f"{setting.time} {weights}" if len(subjects) > 1 else "",
        **{"bundle": "", "bundle_sha256": "", "kernels": "NumPy"},
    }
    going = [*zip(subjects, known, strict=True)]
    for number, (test, tokens) in enumerate(setting.tests):
        bar.show(number, len(setting.tests), f"{weights} {test}{tokens}")
        found = measure([subject for subject, _ in going], test, tokens, setting.repetitions)
        going, found = without_lost(going, found, f"{weights} {test}{tokens}", absent)
        for (subject, facts), samples in zip(going, found, strict=True):
            record = BenchRecord(
                **{**common, **facts, **step_facts(subject, test, tokens)},
                test=f"{test}{tokens}",
                tok_per_s=tuple(samples.tok_per_s),
                host_us=samples.host_median_us if test == "tg" else float("nan"),
            )
            records.append(record)
            bar.line(
                f"{record.model}  {record.weights:<4}  {record.bundle:<12}  {record.test:<6}  "
                f"{record.median:10.2f} tok/s  spread {percent(record.spread / record.median)}"
            )
    return records
