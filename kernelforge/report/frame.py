"""Gathers what is known of one device: journals, ceilings, its bundle, and where all came from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kernelforge.errors import MeasureError, ReportError
from kernelforge.measure.baseline import Ceilings
from kernelforge.measure.journal_lines import DAMAGE
from kernelforge.measure.measurement import Measurement
from kernelforge.report.bench_journal import (
    BENCH_FILE,
    LEFT_OUT,
    BenchRecord,
    read_bench,
    read_limits,
)
from kernelforge.report.commands import commands
from kernelforge.report.comparisons import (
    MatmulLimits,
    PeerRow,
    ProductRow,
    left_out,
    peer_rows,
    product_rows,
)
from kernelforge.report.families import FamilyRow, family_rows, generic_variants
from kernelforge.report.fft import FftLimits
from kernelforge.report.formats import FormatRow, format_rows
from kernelforge.report.kernels import KernelRow, kernel_rows
from kernelforge.report.models import ModelRow, model_rows
from kernelforge.report.operations import TokenTime, token_times
from kernelforge.report.provenance import card, commit_of, outcomes, provenance
from kernelforge.report.serving import ServingRow, serving_rows
from kernelforge.tune.journal import read_journal
from kernelforge_runtime.bundle import Bundle, Fingerprint, open_bundle

log = logging.getLogger(__name__)

JOURNAL_FILE = "journal.jsonl"
CEILINGS_FILE = "ceilings.json"
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
        left_out: other engines that could not be run, each with its reason.
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
    left_out: tuple[tuple[str, str], ...]
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


class NothingToReport(ReportError):  # noqa: N818 - a state of the folder, not a fault
    """There are no results, which one device of several may be left out for."""


def gather(folder: Path, slug: str, bundle: Path | None = None, model: str | None = None) -> Frame:
    """Reads all there is of a device.

    Args:
        folder: of its journals; need not exist.
        slug: of the device.
        bundle: folder of its bundle.
        model: show benches of this model only.

    Raises:
        NothingToReport: there are no results.
        ReportError: the records are of other devices than this one, or than the bundle's.
        KernelForgeError: a file cannot be read.
    """
    measurements = read_journal(folder / JOURNAL_FILE)
    benches, bench_ceilings = read_bench(folder / BENCH_FILE)
    there = devices_of(measurements, benches)
    only = slug if len(there) > 1 else ""
    if only:
        measurements, benches = _of_one(folder, slug, there, measurements, benches)
    opened = open_bundle(bundle) if bundle is not None else None
    if opened is not None and there and opened.slug not in there:
        raise ReportError(
            f"{folder}: records of {', '.join(there)}, but the bundle {bundle} is of "
            f"{opened.slug}: name the one that belongs to them with --bundle"
        )
    ceilings = _ceilings(folder, bench_ceilings, opened, only)
    entries = opened.manifest.entries if opened else ()
    kernels = kernel_rows(measurements, entries, ceilings, generic_variants())
    models = model_rows([bench for bench in benches if not bench.peer], model)
    matmul = _matmul(folder / BENCH_FILE)
    fft = _fft(folder / BENCH_FILE)
    peers = peer_rows(benches, model)
    serving = serving_rows(folder / BENCH_FILE, model, only)
    formats = format_rows(folder, model, only)
    if not kernels and not models and not serving and not formats:
        raise NothingToReport(nothing(folder, measurements))
    known = opened.manifest.device if opened else None
    device = _Device.of(slug, known, benches, measurements)
    time = _newest_time(folder)
    return Frame(
        slug=slug,
        name=device.name,
        label=CPU_LABEL if device.is_software else f"{device.kind} GPU".strip(),
        is_software=device.is_software,
        driver=device.driver,
        card=card(known),
        ceilings=ceilings,
        kernels=tuple(kernels),
        models=tuple(models),
        peers=tuple(peers),
        left_out=_left_out(folder / BENCH_FILE, model),
        products=tuple(product_rows(kernels, matmul)),
        matmul=matmul,
        families=tuple(family_rows(measurements, kernels)),
        tokens=tuple(token_times(models)),
        formats=tuple(formats),
        serving=tuple(serving),
        fft=fft,
        time=time,
        provenance=provenance(opened, measurements, kernels, benches, time, commit_of(folder)),
        commands=commands(slug, kernels, models, peers, (matmul, fft), serving, formats),
    )


def nothing(folder: Path, found: Sequence[Measurement] = ()) -> str:
    """Why there is no report, and which commands make data.

    Args:
        folder: of the journals.
        found: measurements that did not come to a winner.
    """
    if found:
        return (
            f"nothing to report: not one of {len(found)} measurements in {folder} is of a search "
            f"that came to a winner ({outcomes(found)}); go on: kernelforge tune"
        )
    return (
        f"nothing to report: no measurements in {folder}; make some: "
        "kernelforge tune --model MODEL, then kernelforge bench MODEL --compare-bundle generic"
    )


def devices_of(measurements: Sequence[Measurement], benches: Sequence[BenchRecord]) -> list[str]:
    """Slugs of the devices that records name, in the order met."""
    named = [*(m.device for m in measurements), *(b.device for b in benches)]
    return [*dict.fromkeys(slug for slug in named if slug)]


def _of_one(
    folder: Path,
    slug: str,
    there: Sequence[str],
    measurements: Sequence[Measurement],
    benches: Sequence[BenchRecord],
) -> tuple[list[Measurement], list[BenchRecord]]:
    """What is of this device: times of several do not compare.

    Raises:
        ReportError: there is nothing of it.
    """
    if slug not in there:
        have = ", ".join(sorted(there))
        raise ReportError(f"{folder}: records of {have}, none of {slug}: pick one with --device")
    return [m for m in measurements if m.device == slug], [b for b in benches if b.device == slug]


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


def _ceilings(
    folder: Path, bench: Ceilings | None, bundle: Bundle | None, only: str
) -> Ceilings | None:
    """Of the tuning run first: its kernels are what is held against them.

    Args:
        folder: of the journals.
        bench: the last ones of the benches.
        bundle: which may have kept its own.
        only: if given, the device that they must be of.
    """
    path = folder / CEILINGS_FILE
    found = [bench]
    try:
        found.insert(0, Ceilings.from_json(json.loads(path.read_bytes())))
    except FileNotFoundError:
        pass
    except (OSError, *DAMAGE) as error:
        log.warning("%s cannot be used: %s", path, error)
    if bundle is not None and bundle.manifest.ceilings:
        try:
            of_bundle = {**dict(bundle.manifest.ceilings), "device": bundle.slug}
            found.append(Ceilings.from_json({"driver": "", "clock": "", **of_bundle}))
        except MeasureError as error:
            log.info("%s: %s", bundle.path, error)
    return next((c for c in found if c is not None and c.device in ("", only or c.device)), None)


def _matmul(path: Path) -> MatmulLimits | None:
    data = read_limits(path, "matmul")
    try:
        return MatmulLimits.from_json(data) if data else None
    except DAMAGE as error:
        log.warning("%s: a record of matrix products cannot be used: %s", path, error)
        return None


def _fft(path: Path) -> FftLimits | None:
    data = read_limits(path, "fft")
    try:
        return FftLimits.from_json(data) if data else None
    except DAMAGE as error:
        log.warning("%s: a record of VkFFT cannot be used: %s", path, error)
        return None


def _left_out(path: Path, model: str | None) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(left_out(read_limits(path, LEFT_OUT), model))
    except DAMAGE as error:
        log.warning("%s: a record of other engines cannot be used: %s", path, error)
        return ()


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
