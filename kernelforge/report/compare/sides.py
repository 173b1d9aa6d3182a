"""One side of a comparison, from a bundle, a journal folder, a report folder, or a git revision."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from kernelforge.errors import ReportError
from kernelforge.measure.baseline import Ceilings
from kernelforge.measure.journal_lines import DAMAGE
from kernelforge.report.bench_journal import BENCH_FILE, read_bench
from kernelforge.report.cells import from_markdown
from kernelforge.report.compare.timing import Key, Side, Timing
from kernelforge.report.frame import CEILINGS_FILE, JOURNAL_FILE, devices_of
from kernelforge.report.kernels import KernelRow, kernel_rows
from kernelforge.report.models import ModelRow, model_rows
from kernelforge.tune.journal import read_journal
from kernelforge_runtime.bundle import Entry, read_manifest
from kernelforge_runtime.bundle.bundle import KERNELS_FILE, MANIFEST_FILE

log = logging.getLogger(__name__)

_ROUNDING = 0.01 / math.sqrt(12)
"""Standard deviation of what the second decimal of a table leaves out."""
_LAYOUT = re.compile(r"LAYOUT=(\w+)")
MAX_FILE = 64 << 20
MOST = 1e15
"""No time or speed of a report is above it, in any of the units."""
_FACTS = {"Processor": "processor", "Commit": "commit", "Bundle sha256": "bundle"}
_FILES = (MANIFEST_FILE, KERNELS_FILE, "kernels.csv", "models.csv", "ceilings.csv", "report.md")
_CEILINGS = {
    "memory read": "read_gbps",
    "memory copy, read plus written": "copy_gbps",
    "float32 multiply-add": "fma_gflops",
}


def read_side(name: str, journals: Path) -> Side:
    """Reads what a user named.

    Args:
        name: folder of a bundle, of journals or of a report; `FOLDER@DRIVER` or `FOLDER@DEVICE`,
            the journal's records of one driver or device; a device's slug; `REVISION` or
            `REVISION:FOLDER` of this git checkout.
        journals: folder of all devices' journals.

    Raises:
        ReportError: it is none of these, or holds no times.
        KernelForgeError: a file of it is damaged.
    """
    side = _read(name, journals)
    if not side.kernels and not side.models:
        raise ReportError(
            f"--compare {name}: no times in it; name a bundle, a journal folder of tune and bench, "
            "or a report folder"
        )
    return side


def _read(name: str, journals: Path) -> Side:
    path = Path(name)
    if path.is_file():  # a journal or a manifest named itself
        path = path.parent
    if found := _folder(name, path, ""):
        return found
    where, at, driver = name.rpartition("@")
    if at and driver and (found := _folder(name, Path(where), driver)):
        return found
    if re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) and (found := _folder(name, journals / name)):
        return found
    if path.is_dir():
        raise ReportError(
            f"--compare {name}: this folder has neither {MANIFEST_FILE}, {JOURNAL_FILE}, "
            f"{BENCH_FILE} nor kernels.csv"
        )
    return _revision(name)


def _folder(name: str, path: Path, driver: str = "") -> Side | None:
    """None where the folder holds nothing of the kind, or is none."""
    try:
        if (path / JOURNAL_FILE).is_file() or (path / BENCH_FILE).is_file():
            return _of_journals(name, path, driver)
        if driver:
            return None
        if (path / MANIFEST_FILE).is_file():
            return _of_bundle(name, path)
        if any((path / file).is_file() for file in ("kernels.csv", "models.csv")):
            return _of_report(name, path)
    except OSError as error:
        raise ReportError(f"--compare {name}: {error.strerror or error}") from error
    return None


def _of_journals(name: str, path: Path, driver: str) -> Side:
    side = Side(name)
    measurements = read_journal(path / JOURNAL_FILE)
    benches, ceilings = read_bench(path / BENCH_FILE)
    if driver:
        measurements = [m for m in measurements if driver in m.driver or driver == m.device]
        benches = [b for b in benches if driver in b.driver or driver == b.device]
    there = devices_of(measurements, benches)
    if len(there) > 1:
        raise ReportError(
            f"--compare {name}: its records are of {', '.join(sorted(there))}, whose times do not "
            f"mix; name one, as {path}@{there[0]}"
        )
    try:
        ceilings = Ceilings.from_json(json.loads((path / CEILINGS_FILE).read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, *DAMAGE) as error:
        log.warning("%s cannot be used: %s", path / CEILINGS_FILE, error)
    if ceilings is not None and (
        not driver or driver in ceilings.driver or driver == ceilings.device
    ):
        side.ceilings = {key: float(getattr(ceilings, key)) for key in _CEILINGS.values()}
    side.kernels = _kernels(kernel_rows(measurements, (), None))
    side.models = _models(model_rows([b for b in benches if not b.peer]))
    drivers = {m.driver for m in measurements} | {b.driver for b in benches}
    side.facts = {"device": ", ".join(there), "driver": ", ".join(sorted(drivers))}
    side.facts["bundle"] = ", ".join(sorted({b.bundle_sha256[:12] for b in benches} - {""}))
    return side


def _of_bundle(name: str, path: Path) -> Side:
    manifest = read_manifest(path)
    side = Side(
        name, _kernels(kernel_rows([], manifest.entries, None)) | _layouts(manifest.entries)
    )
    ceilings = dict(manifest.ceilings)
    side.ceilings = {k: float(ceilings[k]) for k in _CEILINGS.values() if k in ceilings}
    device = manifest.device
    side.facts = {
        "device": device.slug,
        "driver": device.driver,
        "processor": device.processor,
    }
    side.facts["KernelForge"] = manifest.toolchain.kernelforge
    return side


def _kernels(rows: Iterable[KernelRow]) -> dict[Key, Timing]:
    return {
        (row.family, row.precision, _plain(row.problem)): Timing(
            row.name,
            row.median_ns,
            row.spread_ns / row.median_ns,
            row.samples,
            row.variant,
            f"{row.median_ns / 1e3:.2f} µs",
            run=str(row.seed or ""),
            beside=row.default_ns,
            rivals={name: (str(seed or ""), ns) for name, (seed, ns) in row.timed.items()},
        )
        for row in rows
        if math.isfinite(row.median_ns) and row.median_ns > 0
    }


def _layouts(entries: Iterable[Entry]) -> dict[Key, Timing]:
    """Of problems with kernels for several layouts of the weights, each."""
    groups: dict[Key, list[Entry]] = {}
    for entry in entries:
        key: Key = (entry.family, entry.precision, _plain(str(entry.problem)))
        groups.setdefault(key, []).append(entry)
    found: dict[Key, Timing] = {}
    for key, group in groups.items():
        for entry in group if len(group) > 1 else ():
            layout = _LAYOUT.search(entry.variant)
            of = f"{layout[1] if layout else ''}{' limited' if entry.signature.is_limited else ''}"
            for timing in _kernels(kernel_rows([], [entry], None)).values():
                found[*key, of] = replace(timing, name=f"{timing.name} {of}", beside=math.nan)
    return found


def _models(rows: Iterable[ModelRow]) -> dict[Key, Timing]:
    found: dict[Key, Timing] = {}
    for row in rows:
        r = row.record
        if not (math.isfinite(r.median) and r.median > 0):
            continue
        kind = "generic" if r.is_generic else "tuned"
        found[r.model, r.weights, r.test, kind] = Timing(
            f"{r.model} {r.weights} {r.test}{' generic' if r.is_generic else ''}",
            1.0 / r.median,
            r.spread / r.median,
            len(r.tok_per_s),
            f"{r.bundle} {r.bundle_sha256[:12]}".strip(),
            f"{r.median:.2f} tok/s",
            run=r.time,
        )
    return found


def _of_report(name: str, path: Path) -> Side:
    """The CSV files of a report; its markdown tells where the numbers are from."""
    side = Side(name, facts=_facts(path))
    for line, cells in _csv(path / "kernels.csv"):
        where = f"{path / 'kernels.csv'} line {line}"
        family, precision, problem = (_cell(cells, c, where) for c in ("family", "precision",
                                                                        "problem"))  # fmt: skip
        _cell(cells, "median_us", where)
        us = _number(cells, "median_us", where)
        if us > 0:
            side.kernels[family, precision, _plain(problem)] = Timing(
                f"{family} {precision} {problem}",
                us * 1e3,
                _number(cells, "spread_percent", where) / 100,
                int(_number(cells, "samples", where, 0.0)),
                cells.get("variant", ""),
                f"{us:.2f} µs",
                _ROUNDING / us,
                beside=_number(cells, "default_us", where) * 1e3,
            )
    for line, cells in _csv(path / "models.csv"):
        where = f"{path / 'models.csv'} line {line}"
        model, weights, test, bundle = (
            _cell(cells, c, where) for c in ("model", "weights", "test", "bundle")
        )
        _cell(cells, "tok_per_s", where)
        speed = _number(cells, "tok_per_s", where)
        if speed > 0:
            kind = "generic" if bundle == "generic" else "tuned"
            sha = side.facts.get("bundle", "")[:12] if kind == "tuned" else ""
            side.models[model, weights, test, kind] = Timing(
                f"{model} {weights} {test}{' generic' if kind == 'generic' else ''}",
                1.0 / speed,
                _number(cells, "spread_percent", where) / 100,
                int(_number(cells, "repetitions", where, 0.0)),
                f"{bundle} {sha}".strip(),
                f"{speed:.2f} tok/s",
                _ROUNDING / speed,
            )
    for line, cells in _csv(path / "ceilings.csv"):
        if (key := _CEILINGS.get(cells.get("ceiling", ""))) is not None:
            side.ceilings[key] = _number(cells, "value", f"{path / 'ceilings.csv'} line {line}")
    return side


def _facts(path: Path) -> dict[str, str]:
    """What the markdown's list of facts says; nothing where there is no such file."""
    try:
        text = (path / "report.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {"device": path.name}
    if title := re.match(r"# (.*)", text):
        found["device"] = from_markdown(title[1])
        found["driver"] = from_markdown(text.partition("\n\n")[2].partition("\n")[0])
    if command := re.search(r"^kernelforge report --device (\S+)$", text, re.MULTILINE):
        found["device"] = command[1]  # journals and bundles know the device by it
    for key, name in _FACTS.items():
        if line := re.search(rf"^\* {key}: (.*)$", text, re.MULTILINE):
            found[name] = from_markdown(line[1])
    return found


def _csv(path: Path) -> Iterable[tuple[int, Mapping[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from error
    try:
        reader = csv.DictReader(text.splitlines(), restkey="", restval="")
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ReportError(f"{path}: no CSV of a report: {error}") from error


def _cell(cells: Mapping[str, str], column: str, where: str) -> str:
    if not cells.get(column):
        raise ReportError(f"{where}: no {column}; is it a report's CSV?")
    return cells[column]


def _number(cells: Mapping[str, str], column: str, where: str, missing: float = math.nan) -> float:
    """A finite number; `missing` of an empty cell."""
    text = cells.get(column) or ""
    if not text:
        return missing
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST:
        raise ReportError(f"{where}: {column} is {text[:40]!r}, expected a number from 0 up")
    return value


def _plain(problem: str) -> str:
    """The same text for equal problems, whatever the order of their dimensions."""
    return ".".join(sorted(problem.split(".")))


def _revision(name: str) -> Side:
    """Files of a commit of this checkout, read by git."""
    revision, _, folder = name.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./~^{}@-]*", revision) or ".." in folder:
        raise ReportError(f"--compare {name}: no such folder, device or git revision")
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise ReportError(
            f"--compare {name}: no such folder or measured device, and {revision} is no revision "
            "of a git checkout here"
        )
    sha = commit.decode().strip()
    folders = [folder.strip("/")] if folder else _report_folders(sha)
    if len(folders) != 1:
        have = ", ".join(f"{revision}:{place}" for place in folders) or "none"
        raise ReportError(f"--compare {name}: which report of this commit? there are: {have}")
    with tempfile.TemporaryDirectory() as unpacked:
        for file in _FILES:
            content = _git("cat-file", "blob", f"{sha}:{folders[0]}/{file}")
            if content is not None and len(content) <= MAX_FILE:
                (Path(unpacked) / file).write_bytes(content)
        side = _folder(name, Path(unpacked))
    if side is None:
        raise ReportError(
            f"--compare {name}: {folders[0]} has neither {MANIFEST_FILE} nor kernels.csv there"
        )
    side.facts["commit"] = sha[:12]
    return side


def _report_folders(sha: str) -> list[str]:
    listed = _git("ls-tree", "-r", "--name-only", sha, "--", "reports/") or b""
    files = listed.decode("utf-8", "replace").splitlines()
    return sorted(f.rpartition("/")[0] for f in files if f.endswith("/kernels.csv"))


def _git(*arguments: str) -> bytes | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
