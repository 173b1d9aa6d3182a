"""One tuning run of the command line: which problems, where things are kept, what is packed."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from kernelforge.cli import options
from kernelforge.cli.in_place import InPlace, compare_in_place
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.compile import buildable, compile_variant, working_compiler
from kernelforge.errors import CompileError, MeasureError, PackError
from kernelforge.families import get_family, load_families
from kernelforge.measure.baseline import Ceilings, measure_ceilings
from kernelforge.measure.measurement import Measurement
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.roofline import rate
from kernelforge.measure.supervisor import Supervisor
from kernelforge.pack import (
    Sharing,
    Winner,
    choose,
    installed_toolchain,
    pack,
    require_place,
    sharing,
    winner,
)
from kernelforge.pack.generic import generic_winners
from kernelforge.render import template_sha256
from kernelforge.stale import is_same
from kernelforge.tune.budget import Budget
from kernelforge.tune.crossing import cross
from kernelforge.tune.earlier import earlier_results, manifest_here, with_crossed
from kernelforge.tune.every_layout import kind_of, signature_of
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.portfolio import shipped_portfolio
from kernelforge.tune.problems import TuneTask, collect_tasks, with_rivals
from kernelforge.tune.quarantine import quarantined
from kernelforge.tune.search import OnProgress
from kernelforge.tune.storage import open_storage
from kernelforge.tune.study import Isolation, TuneResult, open_bench, tune_problems
from kernelforge.tune.study_file import set_aside
from kernelforge.tune.warm import read_starts
from kernelforge.variant import Variant
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.bundle import KernelSet, locate_generic
from kernelforge_runtime.errors import BundleError, ModelError, OutOfMemoryError
from kernelforge_runtime.models import load_model
from kernelforge_runtime.resources import tuned_output_dir
from kernelforge_runtime.vk import open_device

log = logging.getLogger(__name__)

SLACK = 0.03
"""What a problem may lose where that lets it share a module with another one."""
CROSS_SHARE = 0.1
"""Of the seconds: kept for timing winners on each other's problems."""


class Tuning:
    """Everything that is open while tuning. Use it as a context manager.

    Attributes:
        device: where it is tuned.
        tasks: the problems.
        ceilings: what the device can do at best.
        folder: where journal and storage are.
        sharing: how few modules serve the problems; None before they are packed.
    """

    def __init__(self, args: argparse.Namespace, output: Output) -> None:
        """Checks all that can be checked before the first measurement.

        Raises:
            KernelForgeError: no compiler, no device, no such model, family or problem.
            OSError: a folder cannot be written.
        """
        self._args, self._output = args, output
        self.sharing: Sharing | None = None
        self._earlier: list[TuneResult] = []
        self._budget = Budget.of(args.profile, args.trials, args.seconds)
        self._out = options.require_writable(args.out or tuned_output_dir(), "--out")
        working_compiler()
        if args.model and not Path(args.model).exists():
            raise ModelError(f"{args.model}: no such file: check the path")
        self._open = ExitStack()
        try:
            self.device = self._open.enter_context(open_device(args.device))
            require_place(self._out / self.device.info.slug)
            given = options.journal_folder(args.journal, self.device.info.slug)
            self.folder = options.require_writable(given, "--journal")
            # Before minutes of measuring, as whatever a person may have mistyped.
            self._storage = open_storage(args.storage) if args.storage else None
            self._generic: KernelSet | None = None
            self._starts = read_starts(Path(path) for path in args.warm_start)
            self.tasks = self._model_tasks() if args.model else self._family_tasks()
            self.ceilings = self._measured_ceilings()
            self._isolation = None if args.in_process else self._isolated()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Tuning:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def search(self, on_progress: OnProgress, on_result: Callable[[TuneResult], Any]) -> None:
        """Runs every study; see `tune_problems`."""
        storage = self._storage or self.folder / options.STORAGE_FILE
        if not self._args.resume:
            name = f"{options.STORAGE_FILE}.{time.strftime('%Y%m%d-%H%M%S')}"
            set_aside(self.folder / options.STORAGE_FILE, name)
        self._output.note(
            f"tuning {len(self.tasks)} problems on {self.device.info.name}: at most "
            f"{self._budget.trials} trials each, then finals of the fastest"
            + (f", in about {self._budget.seconds:.0f} s in all" if self._budget.seconds else "")
            + f"; journal in {self.folder}"
        )
        for task in self.tasks:
            if task.stands_for:
                others = ", ".join(str(problem) for problem in task.stands_for)
                self._output.note(f"{task} stands for {others}")
        tune_problems(
            self.device,
            self.tasks,
            self._search_budget(),
            Journal(self.folder / options.JOURNAL_FILE),
            storage,
            on_progress,
            on_result,
            seed=self._args.seed or 0,
            isolation=self._isolation,
            starts=self._starts,
            known=() if self._args.portfolio is False else shipped_portfolio(),
        )
        if self._isolation is not None and self._isolation.supervisor.losses:
            # What a variant did to its own device may have reached this process's one too.
            self.device = self._open.enter_context(open_device(self._args.device))

    def _search_budget(self) -> Budget:
        """What is left for the searches once the crossing has its share."""
        seconds = self._budget.seconds
        alone = len(self.tasks) == 1
        return replace(
            self._budget,
            seconds=seconds if seconds is None or alone else (1 - CROSS_SHARE) * seconds,
        )

    def _isolated(self) -> Isolation:
        known = read_journal(self.folder / options.JOURNAL_FILE) if self._args.resume else ()
        avoid = quarantined(known, self.device.info)
        return Isolation(self._open.enter_context(Supervisor()), avoid=avoid)

    def cross(self, results: Sequence[TuneResult]) -> list[TuneResult]:
        """The results, with winners of other problems beside their own; see `tune.crossing`.

        Those of earlier runs take part, as far as the journal and the bundle have them.
        """
        limit = self._budget.seconds
        spent = sum(result.seconds for result in results)
        journal = read_journal(self.folder / options.JOURNAL_FILE) if self._args.resume else []
        results = with_crossed(results, journal, self.device.info, get_family, template_sha256)
        self._earlier = self._found_earlier(results, journal)
        crossed = cross(
            [*results, *self._earlier],
            get_family,
            buildable(self.device.info),
            self._bench_for,
            Journal(self.folder / options.JOURNAL_FILE),
            CROSS_SHARE * (spent if limit is None else limit),
        )
        self._earlier = crossed[len(results) :]
        return crossed[: len(results)]

    def _found_earlier(
        self, results: Sequence[TuneResult], journal: Sequence[Measurement]
    ) -> list[TuneResult]:
        manifest = manifest_here(Path(self._out) / self.device.info.slug, self.device.info)
        toolchain = installed_toolchain()
        if manifest is None or not self._args.resume:
            return []
        made_by = manifest.toolchain
        if (made_by.glslang, made_by.flags) != (toolchain.glslang, toolchain.flags):
            return []
        families = load_families()
        return earlier_results(
            journal, manifest, self.device.info, results, families.get, template_sha256
        )

    def _bench_for(self, result: TuneResult) -> AbstractContextManager[Measurer]:
        family = get_family(result.family)
        precision = family.precision(result.precision)
        return open_bench(
            self.device, family, precision, result.problem, None, self._isolation
        )  # fmt: skip

    def pack(self, results: Sequence[TuneResult]) -> Path:
        """Writes the winners to the device's bundle, beside what it already holds."""
        winners = [w for result in results for w in _winners(result)]
        for result in self._earlier:
            try:
                winners += _winners(result)
            except (PackError, CompileError) as error:  # its old entries stay as they are
                log.info("%s %s: %s", result.family, result.problem, error)
        chosen = choose(winners, SLACK)
        self.sharing = sharing(winners, chosen)
        numbers = {k: v for k, v in self.ceilings.to_json().items() if isinstance(v, float)}
        return pack(
            self._out,
            self.device.info,
            chosen,
            ceilings=numbers,
            merge=True,
            template_hashes={n: template_sha256(f) for n, f in load_families().items()},
            is_same=is_same,
        )

    def share(self, result: TuneResult) -> float:
        """Share of the ceiling that the winner reaches; 1 is as fast as the device allows."""
        family = get_family(result.family)
        cost = family.cost(result.problem, family.precision(result.precision))
        return rate(cost, result.best.median_ns, self.ceilings).share

    def check_in_place(self, bundle: Path) -> list[InPlace]:
        """Decodes a few tokens with the new bundle and with the generic one, in turns.

        Returns:
            One comparison per weight format; none where two models do not fit the device.
        """
        tuned, generic = KernelSet.open(self.device.info, bundle), self._generic_kernels()
        model, device = self._args.model, self.device
        try:
            return [
                compare_in_place(model, device, weights, self._args.activations, tuned, generic)
                for weights in self._weights()
            ]
        except OutOfMemoryError as error:
            self._output.note(f"the model was not run with both bundles side by side: {error}")
            return []

    def _weights(self) -> list[str]:
        return [name.strip() for name in self._args.weights.split(",")]

    def _model_tasks(self) -> list[TuneTask]:
        found = []
        kernels = self._generic_kernels()
        for weights in self._weights():
            with load_model(
                self._args.model, self.device, kernels, weights, self._args.activations,
                slots=max(self._args.slots, default=1),
            ) as model:  # fmt: skip
                found += model.problems(self._args.steps, self._args.slots)
                found += model.load_problems()
        families = load_families()
        found = with_rivals(
            found, families, buildable(self.device.info), rounding=self._args.int8_dot
        )
        return collect_tasks(found, families)

    def _family_tasks(self) -> list[TuneTask]:
        args = self._args
        family = get_family(args.family)
        names = args.precision.split(",") if args.precision else family.precisions
        given = args.problem
        problems = (family.completed(given),) if given else family.default_problems
        for problem in problems:
            if why := family.refuses(problem):
                raise UsageError(f"--problem {problem}: {why}")
        return [TuneTask(family, family.precision(n), p) for n in names for p in problems]

    def _generic_kernels(self) -> KernelSet:
        """The generic bundle's kernels; made for this run where there is no such bundle.

        They also tell which problems a model has: any kernels would give the same ones.
        """
        if self._generic is None:
            info = self.device.info
            try:
                self._generic = KernelSet.open(info, locate_generic(info).bundle_path)
            except BundleError as error:
                log.info("%s", error)
                self._output.note("no generic bundle: making one for this run")
                with tempfile.TemporaryDirectory(prefix="kernelforge-") as folder:
                    path = pack(folder, GENERIC, generic_winners([self.device]))
                    self._generic = KernelSet.open(info, path)
        return self._generic

    def _measured_ceilings(self) -> Ceilings:
        """Measured now, or by an earlier run on this device and driver."""
        path, info = self.folder / options.CEILINGS_FILE, self.device.info
        driver = f"{info.driver_name} {info.driver_info}".strip()
        if self._args.resume:
            try:
                known = Ceilings.from_json(json.loads(path.read_bytes()))
                if (known.device, known.driver) == (info.slug, driver):
                    return known
            except (OSError, ValueError, TypeError, MeasureError) as error:
                log.info("ceilings are measured anew: %s", error)
        self._output.note("measuring what the device can do at best")
        ceilings = measure_ceilings(self.device)
        path.write_text(json.dumps(ceilings.to_json(), indent=2) + "\n", encoding="utf-8")
        return ceilings


def _winners(result: TuneResult) -> list[Winner]:
    """The best of each layout, and finalists so close behind that a bundle may use them instead.

    Where the best serves some sizes only, also the best that serves them all.
    """
    family = get_family(result.family)
    default_ns = result.default.median_ns if result.default.ok else 0.0
    signatures = {
        final.variant: signature_of(family, family.precision(result.precision), final)
        for final in result.finalists
        if final.ok
    }
    finals = {name: kind_of(s) for name, s in signatures.items()}
    if not signatures[result.best.variant].is_limited:  # none that is limited was faster
        finals = {name: kind for name, kind in finals.items() if not kind[1]}
    best_ns = {finals[result.best.variant]: result.best.median_ns}
    good = [f for f in result.finalists if f.variant in finals and f.ok]
    for final in sorted(good, key=lambda f: f.median_ns):
        best_ns.setdefault(finals[final.variant], final.median_ns)
    found = []
    for final in good:
        least = best_ns[finals[final.variant]]
        if not least <= final.median_ns <= least * (1 + SLACK):
            continue
        params = family.space.normalise(Variant.parse(final.variant).values)
        module = compile_variant(family, result.precision, params)
        found.append(winner(final, module, len(result.trials), default_ns))
    return found
