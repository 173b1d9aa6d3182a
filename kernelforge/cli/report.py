"""Makes performance reports from what tune and bench measured: HTML, markdown and CSV.

Every device with measurements gets a report of its own under reports/, its measurements packed
beside it, and reports/index.html links them all; --device picks one. Devices that were not measured
here, but have such a report, are made again from what lies beside it. A bundle that came
without measurements can be reported by naming it with --bundle. --compare holds two sets of
measurements against each other.
"""

from __future__ import annotations

import argparse
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
    from kernelforge.report import write_report
    from kernelforge.report.index import write_index
    from kernelforge.report.kept import keep

    model = Path(args.model) if args.model else None
    frames = [_gather(source, _name(model)) for source in sources]
    if model is not None and not any(frame.models for frame in frames):
        if not model.exists():
            raise ReportError(
                f"{args.model}: no bench of a model of this name, and no such file; "
                "measure it: kernelforge bench MODEL --compare-bundle generic"
            )
        output.note(
            f"no bench of {model.name}: only kernels are reported; "
            f"measure it: kernelforge bench {model} --compare-bundle generic"
        )
    written = []
    for source, frame in zip(sources, frames, strict=True):
        out = _out(args, frame, len(frames))
        paths = write_report(frame, out)
        output.text(str(paths[0]))
        if args.out is None and not source.kept:
            paths += keep(source.folder, out)
        written.append({"device": frame.slug, "files": paths, **_counts(frame)})
    index = write_index(REPORTS) if args.out is None else None
    if index is not None:
        output.text(str(index))
    output.document({"reports": written, "index": index})
    return 0


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
        return [_named(args)]
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


def _named(args: argparse.Namespace) -> _Source:
    """The device of a journal folder or a bundle that was named."""
    from kernelforge_runtime.bundle import read_manifest

    bundle = Path(args.bundle) if args.bundle is not None else None
    if bundle is not None:
        slug = read_manifest(bundle).device.slug
    else:
        slug = args.device or _slug_in(Path(args.journal))
    return _Source(slug, options.journal_folder(args.journal, slug), bundle or _bundle_of(slug))


def _slug_in(folder: Path) -> str:
    """The device that the last record of a journal folder names."""
    from kernelforge.report.bench_journal import BENCH_FILE, read_bench
    from kernelforge.report.frame import nothing
    from kernelforge.tune.journal import read_journal

    kernels = read_journal(folder / options.JOURNAL_FILE)
    benches = [] if kernels else read_bench(folder / BENCH_FILE)[0]
    if not kernels and not benches:
        raise ReportError(nothing(folder))
    return kernels[-1].device if kernels else benches[-1].device


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
