"""Gathers what is known of one device: journals, ceilings, its bundle, and where all came from."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kernelforge import __version__
from kernelforge.compile import find_compiler
from kernelforge.errors import CompileError, MeasureError, ReportError
from kernelforge.measure.baseline import Ceilings
from kernelforge.measure.measurement import Measurement
from kernelforge.report.bench_journal import BENCH_FILE, BenchRecord, read_bench, read_limits
from kernelforge.report.comparisons import (
    MatmulLimits,
    PeerRow,
    ProductRow,
    peer_rows,
    product_rows,
)
from kernelforge.report.families import FamilyRow, family_rows, generic_variants
from kernelforge.report.fft import FftLimits
from kernelforge.report.formats import FormatRow, format_rows
from kernelforge.report.kernels import KernelRow, kernel_rows
from kernelforge.report.models import ModelRow, model_rows
from kernelforge.report.operations import TokenTime, token_times
from kernelforge.report.serving import ServingRow, serving_rows
from kernelforge.tune.journal import read_journal
from kernelforge_runtime.bundle import Bundle, Fingerprint, open_bundle

log = logging.getLogger(__name__)

JOURNAL_FILE = "journal.jsonl"
CEILINGS_FILE = "ceilings.json"
COMMIT_FILE = "commit.txt"
"""Beside kept measurements: of the checkout that first reported them."""
CPU_LABEL = "CPU rasteriser"
"""What a device without a GPU is called: its times say nothing about GPUs."""

_TIME = re.compile(rb'"time":\s*"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)"')


@dataclass(frozen=True)
class Frame:
    """Everything that a report shows.

    Attributes:
        slug: of the device.
        name: of the device, as its driver gives it.
        label: "CPU rasteriser", or what kind of GPU it is.
        is_software: whether the device is a CPU.
        driver: name and version.
        card: further facts of the device, label to text.
        ceilings: what the device can do at best; None where it was not measured.
        kernels: a row per tuned problem.
        models: a row per model bench.
        peers: a row per test that another engine took turns in.
        products: a row per square matrix product.
        matmul: what another library's product reached; None where not measured.
        families: a row per family and precision.
        tokens: where the time of a token goes, per model, weights and bundle.
        serving: a row per bench of batches, first tokens and long texts.
        formats: a row per weight format that was compared with others.
        fft: what VkFFT reached; None where not measured.
        time: of the newest record, UTC; "" where no record has one.
        provenance: what made the numbers, label to text.
        commands: that make them again.
    """

    slug: str
    name: str
    label: str
    is_software: bool
    driver: str
    card: tuple[tuple[str, str], ...]
    ceilings: Ceilings | None
    kernels: tuple[KernelRow, ...]
    models: tuple[ModelRow, ...]
    peers: tuple[PeerRow, ...]
    products: tuple[ProductRow, ...]
    matmul: MatmulLimits | None
    families: tuple[FamilyRow, ...]
    tokens: tuple[TokenTime, ...]
    formats: tuple[FormatRow, ...]
    serving: tuple[ServingRow, ...]
    fft: FftLimits | None
    time: str
    provenance: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def gather(folder: Path, slug: str, bundle: Path | None = None, model: str | None = None) -> Frame:
    """Reads all there is of a device.

    Args:
        folder: of its journals; need not exist.
        slug: of the device.
        bundle: folder of its bundle.
        model: show benches of this model only.

    Raises:
        ReportError: there is nothing to report.
        KernelForgeError: a file cannot be read.
    """
    measurements = read_journal(folder / JOURNAL_FILE)
    benches, bench_ceilings = read_bench(folder / BENCH_FILE)
    opened = open_bundle(bundle) if bundle is not None else None
    ceilings = _ceilings(folder, bench_ceilings, opened)
    entries = opened.manifest.entries if opened else ()
    kernels = kernel_rows(measurements, entries, ceilings, generic_variants())
    models = model_rows([bench for bench in benches if not bench.peer], model)
    matmul = _matmul(folder / BENCH_FILE)
    serving = serving_rows(folder / BENCH_FILE, model)
    if not kernels and not models and not serving:
        raise ReportError(nothing(folder))
    known = opened.manifest.device if opened else None
    device = _Device.of(slug, known, benches, measurements)
    time = _newest_time(folder)
    return Frame(
        slug=slug,
        name=device.name,
        label=CPU_LABEL if device.is_software else f"{device.kind} GPU".strip(),
        is_software=device.is_software,
        driver=device.driver,
        card=_card(known),
        ceilings=ceilings,
        kernels=tuple(kernels),
        models=tuple(models),
        peers=tuple(peer_rows(benches, model)),
        products=tuple(product_rows(kernels, matmul)),
        matmul=matmul,
        families=tuple(family_rows(measurements, kernels)),
        tokens=tuple(token_times(models)),
        formats=tuple(format_rows(folder, model)),
        serving=tuple(serving),
        fft=_fft(folder / BENCH_FILE),
        time=time,
        provenance=_provenance(opened, measurements, benches, time, commit_of(folder)),
        commands=_commands(slug, kernels, models),
    )


def nothing(folder: Path) -> str:
    """Why there is no report, and which commands make data."""
    return (
        f"nothing to report: no measurements in {folder}; make some: "
        "kernelforge tune --model MODEL, then kernelforge bench MODEL --compare-bundle generic"
    )


@dataclass(frozen=True)
class _Device:
    name: str
    kind: str
    driver: str

    @property
    def is_software(self) -> bool:
        return self.kind == "cpu"

    @classmethod
    def of(
        cls,
        slug: str,
        known: Fingerprint | None,
        benches: Sequence[BenchRecord],
        measurements: Sequence[Measurement],
    ) -> _Device:
        if benches:
            last = benches[-1]
            return cls(last.device_name, last.device_type, last.driver)
        if known is not None:
            return cls(known.name, known.device_type, known.driver)
        # Journals do not say what kind of device it is; software ones are few.
        kind = "cpu" if slug.startswith(("llvmpipe", "swiftshader")) else ""
        return cls(slug, kind, measurements[-1].driver if measurements else "")


def _ceilings(folder: Path, bench: Ceilings | None, bundle: Bundle | None) -> Ceilings | None:
    """Of the tuning run first: its kernels are what is held against them."""
    path = folder / CEILINGS_FILE
    try:
        return Ceilings.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, MeasureError) as error:
        log.warning("%s cannot be used: %s", path, error)
    if bench is None and bundle is not None and bundle.manifest.ceilings:
        try:
            return Ceilings.from_json(
                {"device": bundle.slug, "driver": "", "clock": "", **dict(bundle.manifest.ceilings)}
            )
        except MeasureError as error:
            log.info("%s: %s", bundle.path, error)
    return bench


def _matmul(path: Path) -> MatmulLimits | None:
    data = read_limits(path, "matmul")
    try:
        return MatmulLimits.from_json(data) if data else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s: a record of matrix products cannot be used: %s", path, error)
        return None


def _fft(path: Path) -> FftLimits | None:
    data = read_limits(path, "fft")
    try:
        return FftLimits.from_json(data) if data else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s: a record of VkFFT cannot be used: %s", path, error)
        return None


def _newest_time(folder: Path) -> str:
    """The newest time that a record of either journal names; else when a journal was written."""
    found: list[str] = []
    written: list[float] = []
    for path in (folder / JOURNAL_FILE, folder / BENCH_FILE):
        if path.exists():
            found += [match.decode() for match in _TIME.findall(path.read_bytes())]
            written.append(path.stat().st_mtime)
    if found or not written:
        return max(found, default="")
    return datetime.fromtimestamp(max(written), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _card(known: Fingerprint | None) -> tuple[tuple[str, str], ...]:
    if known is None:
        return ()
    size, smallest, largest = known.subgroup
    limits = dict(known.limits)
    subgroup = str(size) if smallest == largest else f"{size} ({smallest} to {largest})"
    facts = [("Processor", known.processor)] if known.processor else []
    facts += [
        ("Subgroup size", subgroup),
        ("Invocations per workgroup", f"{limits['max_workgroup_invocations']}"),
        ("Shared memory", f"{int(str(limits['max_shared_memory'])) / 1024:.0f} KiB"),
        ("Largest binding", f"{int(str(limits['max_storage_buffer'])) / 2**20:.0f} MiB"),
        ("Features", ", ".join(f.replace("_", " ") for f in sorted(known.features)) or "none"),
    ]
    return tuple(facts)


def _provenance(
    bundle: Bundle | None,
    measurements: Sequence[Measurement],
    benches: Sequence[BenchRecord],
    time: str,
    commit: str,
) -> tuple[tuple[str, str], ...]:
    if bundle is not None:
        compiler = bundle.manifest.toolchain.glslang
        compiled = f"{compiler} {' '.join(bundle.manifest.toolchain.flags)}".strip()
    else:
        try:
            compiled = find_compiler().version
        except CompileError:
            compiled = "none found"
    records = [f"{len(measurements)} kernel measurements"] if measurements else []
    records += [f"{len(benches)} model benches"] if benches else []
    facts = [
        ("Newest record", time or "none has a date"),
        ("Records", ", ".join(records) or "the bundle's own"),
        ("KernelForge", __version__),
        ("Commit", commit or "not a checkout"),
        ("glslang", compiled),
        ("Bundle", f"{bundle.slug}, {len(bundle.manifest.entries)} kernels" if bundle else "none"),
        ("Bundle sha256", bundle.sha256 if bundle else "none"),
    ]
    return tuple(facts)


def commit_of(folder: Path) -> str:
    """The commit kept with the measurements, else this checkout's; "" of an installed copy."""
    try:
        kept = (folder / COMMIT_FILE).read_text(encoding="ascii", errors="replace").strip()
        return kept if re.fullmatch(r"[0-9a-f]{7,40}", kept) else ""
    except OSError:
        return _commit()


def _commit() -> str:
    """The checkout's commit; "" where this is an installed copy."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-c", f"safe.directory={root}", "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _commands(
    slug: str, kernels: Sequence[KernelRow], models: Sequence[ModelRow]
) -> tuple[str, ...]:
    """What to type to measure the same again."""
    by_model: dict[str, list[BenchRecord]] = {}
    for row in models:
        by_model.setdefault(row.record.model, []).append(row.record)
    tune, bench = [], []
    for model, records in by_model.items():
        shape = model.removeprefix("random-")
        target = f"--shape {shape}" if shape != model else f"{model}.safetensors"
        weights = ",".join(dict.fromkeys(r.weights for r in records))
        lengths = {kind: _lengths(records, kind) for kind in ("pp", "tg")}
        repetitions = max(len(r.tok_per_s) for r in records)
        turns = any(row.in_turns and row.record.model == model for row in models)
        compared = " --compare-bundle generic" if turns else ""
        bench.append(
            f"kernelforge bench {target} --device {slug} --weights {weights} "
            f"--pp {lengths['pp']} --tg {lengths['tg']} --reps {repetitions}{compared}"
        )
        source = target if shape != model else f"--model {target}"
        tune.append(f"kernelforge tune --device {slug} {source} --weights {weights}")
    if not tune:
        tune = [f"kernelforge tune --device {slug} --model MODEL"]
    return (*(tune if kernels else ()), *bench, f"kernelforge report --device {slug}")


def _lengths(records: Sequence[BenchRecord], kind: str) -> str:
    found = sorted({int(r.test[2:]) for r in records if r.test.startswith(kind)})
    return ",".join(map(str, found)) or "0"
