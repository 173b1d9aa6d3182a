"""Makes performance reports from what tune and bench measured: HTML, markdown and CSV.

Every device with measurements gets a report of its own under reports/, its measurements packed
beside it, and reports/index.html links them all; --device picks one. Devices that were not measured
here, but have such a report, are made again from what lies beside it. A bundle that came
without measurements can be reported by naming it with --bundle. --compare holds two sets of
measurements against each other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernelforge.cli import options
from kernelforge.cli.comparing import add_compare_options, run_compare
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.errors import ReportError

if TYPE_CHECKING:
    from kernelforge.report.frame import Frame

REPORTS = Path("reports")
_FRAGMENT = 3


@dataclass(frozen=True)
class _Source:
    """Where a device's data is.

    Attributes:
        slug: of the device.
        folder: of its journals; of a report that kept them where `kept`.
        bundle: if there is any.
    """

    slug: str
    folder: Path
    bundle: Path | None
    kept: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's options."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="show benches of this model only: a file or its name",
    )
    options.add(
        parser,
        "device",
        help="device: its slug or part of it, index, part of its name, or UUID "
        "(default: every one that was measured)",
    )
    options.add(parser, "bundle", help="the device's bundle (default: the one of its name)")
    options.add(parser, "journal")
    options.add(
        parser, "out", help="folder to write to (default: reports/<device>, or reports/compare)"
    )
    add_compare_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the reports and prints where they are."""
    if args.compare is not None:
        return run_compare(args, REPORTS)
    if args.fail_above is not None:
        raise UsageError("--fail-above is of --compare A B")
    output = Output(args)
    sources = _sources(args)
    # Here, so that --help needs none of the packages that reports need.
    from kernelforge.report.index import write_index

    model = Path(args.model) if args.model else None
    found, refused = _gather_all(sources, _name(model), output)
    if model is not None and not any(frame.models for _, frame in found):
        if not model.exists():
            raise ReportError(
                f"{args.model}: no bench of a model of this name, and no such file; "
                "measure it: kernelforge bench MODEL --compare-bundle generic"
            )
        output.note(
            f"no bench of {model.name}: only kernels are reported; "
            f"measure it: kernelforge bench {model} --compare-bundle generic"
        )
    written = [_write(args, source, frame, len(sources), output) for source, frame in found]
    index = write_index(REPORTS) if args.out is None else None
    if index is not None:
        output.text(str(index))
    output.document({"reports": written, "index": index, "refused": refused})
    for slug, why in refused.items():
        print(f"kernelforge report: {slug}: {why}", file=sys.stderr)
    return 1 if refused else 0


def _gather_all(
    sources: Sequence[_Source], model: str | None, output: Output
) -> tuple[list[tuple[_Source, Frame]], dict[str, str]]:
    """What there is of each device, and why not of the others: one must not spoil the rest.

    Raises:
        KernelForgeError: there is nothing of any.
    """
    from kernelforge.report.frame import NothingToReport
    from kernelforge_runtime.errors import KernelForgeError

    found: list[tuple[_Source, Frame]] = []
    refused: dict[str, KernelForgeError] = {}
    empty: dict[str, KernelForgeError] = {}
    for source in sources:
        try:
            found.append((source, _gather(source, model)))
        except NothingToReport as error:
            empty[source.slug] = error
        except KernelForgeError as error:
            refused[source.slug] = error
    if not found:
        raise next(iter((refused or empty).values()))
    for slug, why in empty.items():
        output.note(f"{slug} is left out: {why}")
    return found, {slug: " ".join(str(why).split()) for slug, why in refused.items()}


def _write(
    args: argparse.Namespace, source: _Source, frame: Frame, count: int, output: Output
) -> dict[str, object]:
    from kernelforge.report import write_report
    from kernelforge.report.kept import keep

    out = _out(args, frame, count)
    paths = write_report(frame, out)
    output.text(str(paths[0]))
    if args.out is None and not source.kept:
        paths += keep(source.folder, out)
    return {"device": frame.slug, "files": paths, **_counts(frame)}


def _gather(source: _Source, model: str | None) -> Frame:
    from kernelforge.report.frame import gather
    from kernelforge.report.kept import unpacked

    if not source.kept:
        return gather(source.folder, source.slug, source.bundle, model)
    with unpacked(source.folder) as folder:
        return gather(folder, source.slug, source.bundle, model)


def _name(model: Path | None) -> str | None:
    """A file's stem, or the name as it is: `v7-0.1b` has a dot, and no suffix."""
    if model is None:
        return None
    return model.stem if model.suffix in (".pth", ".safetensors") else model.name


def _out(args: argparse.Namespace, frame: Frame, count: int) -> Path:
    if args.out is None:
        return REPORTS / frame.slug
    return Path(args.out) / frame.slug if count > 1 else Path(args.out)


def _counts(frame: Frame) -> dict[str, int]:
    return {"kernels": len(frame.kernels), "models": len(frame.models)}


def _sources(args: argparse.Namespace) -> list[_Source]:
    """The devices to report.

    Raises:
        ReportError: none was measured, or none of this name.
    """
    if args.journal is not None or args.bundle is not None:
        return _named(args)
    root = options.journal_folder(None, "")
    measured = _measured(root)
    kept = [slug for slug in _kept() if slug not in measured]
    if args.device is not None:
        found = [_find(args.device, [*measured, *kept], root)]
    else:
        found = [*measured, *kept]
    if not found:
        from kernelforge.report.frame import nothing

        raise ReportError(nothing(root))
    return [
        _Source(
            slug, REPORTS / slug if slug in kept else root / slug, _bundle_of(slug), slug in kept
        )
        for slug in found
    ]


def _named(args: argparse.Namespace) -> list[_Source]:
    """The device of a bundle, or the devices of a journal folder, that were named."""
    from kernelforge_runtime.bundle import read_manifest

    bundle = Path(args.bundle) if args.bundle is not None else None
    if bundle is not None:
        slugs = [read_manifest(bundle).device.slug]
    else:
        slugs = _slugs_in(Path(args.journal), args.device)
    return [
        _Source(slug, options.journal_folder(args.journal, slug), bundle or _bundle_of(slug))
        for slug in slugs
    ]


def _slugs_in(folder: Path, device: str | None) -> list[str]:
    """The devices that the records of a journal folder name; of several, those that are meant.

    Raises:
        ReportError: there are no records, or none of this device.
    """
    from kernelforge.report.bench_journal import BENCH_FILE, read_bench
    from kernelforge.report.frame import devices_of, nothing
    from kernelforge.tune.journal import read_journal
    from kernelforge_runtime.bundle.fingerprint import SLUG

    measurements = read_journal(folder / options.JOURNAL_FILE)
    benches, _ = read_bench(folder / BENCH_FILE)
    found = devices_of(measurements, benches)
    if device is not None:
        near = [slug for slug in found if device.lower() in slug] if device not in found else []
        if len(found) > 1 and device not in found and len(near) != 1:
            raise ReportError(
                f"--device {device}: the records of {folder} are of {', '.join(found)}"
            )
        found = near if len(near) == 1 else [device]
    if not found:  # benches of batches alone, or weight formats, name none
        found = [folder.resolve().name]
        if not SLUG.fullmatch(found[0]):
            raise ReportError(nothing(folder))
    for slug in found:
        if not SLUG.fullmatch(slug):  # it names a folder to write to
            raise ReportError(
                f"{folder}: records of a device {slug[:40]!r}, which is no device's short name, "
                "such as llvmpipe; pick one with --device"
            )
    return found


def _measured(root: Path) -> list[str]:
    from kernelforge.report.bench_journal import BENCH_FILE

    if not root.is_dir():
        return []
    wanted = (options.JOURNAL_FILE, BENCH_FILE)
    return sorted(p.name for p in root.iterdir() if any((p / name).is_file() for name in wanted))


def _kept() -> list[str]:
    """Devices whose measurements lie beside their report in this folder."""
    from kernelforge.report.kept import has_kept

    return sorted(p.name for p in REPORTS.iterdir() if has_kept(p)) if REPORTS.is_dir() else []


def _find(device: str, measured: list[str], root: Path) -> str:
    """The slug that a user means: one that was measured, one with a bundle, or a device here."""
    if device in measured or _bundle_of(device) is not None:
        return device
    part = device.lower()
    near = [slug for slug in measured if part in slug] if len(part) >= _FRAGMENT else []
    if len(near) == 1:
        return near[0]
    from kernelforge_runtime.errors import KernelForgeError
    from kernelforge_runtime.vk import open_device

    have = f"measured were {', '.join(measured)}" if measured else f"nothing is in {root}"
    try:
        with open_device(device) as found:
            slug = found.info.slug
    except KernelForgeError as error:
        raise ReportError(f"--device {device}: {have}; {error}") from error
    if slug not in measured and _bundle_of(slug) is None:
        raise ReportError(
            f"--device {device} is {slug}, which was not measured: {have}; "
            f"measure it: kernelforge tune --device {slug} --model MODEL"
        )
    return slug


def _bundle_of(slug: str) -> Path | None:
    """The bundle that is named after the device, the user's own before the shipped one."""
    from kernelforge_runtime.bundle.bundle import MANIFEST_FILE
    from kernelforge_runtime.bundle.fingerprint import SLUG
    from kernelforge_runtime.resources import tuned_search_path

    if not SLUG.fullmatch(slug):
        return None
    for place in tuned_search_path():
        if isinstance(place, Path) and (place / slug / MANIFEST_FILE).is_file():
            return place / slug
    return None
