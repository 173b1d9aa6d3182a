"""Where a report's numbers come from: the device's card, versions, bundle and commit."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kernelforge import __version__
from kernelforge.compile import find_compiler
from kernelforge.errors import CompileError
from kernelforge.measure.measurement import Measurement
from kernelforge.report.bench_journal import BenchRecord
from kernelforge.report.kernels import KernelRow
from kernelforge_runtime.bundle import Bundle, Fingerprint

COMMIT_FILE = "commit.txt"
"""Beside kept measurements: of the checkout that first reported them."""
Facts = tuple[tuple[str, str], ...]
"""Label to text."""


def card(known: Fingerprint | None) -> Facts:
    """What a bundle knows of its device, besides name and driver."""
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


def provenance(
    bundle: Bundle | None,
    measurements: Sequence[Measurement],
    kernels: Sequence[KernelRow],
    benches: Sequence[BenchRecord],
    time: str,
    commit: str,
) -> Facts:
    """What made the numbers.

    Args:
        bundle: the device's, if there is one.
        measurements: of kernels.
        kernels: rows that came of them.
        benches: of models.
        time: of the newest record, or "".
        commit: see `commit_of`.
    """
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
    known = {(row.family, row.precision, row.problem) for row in kernels if row.samples}
    lost = [m for m in measurements if (m.family, m.precision, m.problem) not in known]
    facts = [
        ("Newest record", time or "none has a date"),
        ("Records", ", ".join(records) or "the bundle's own"),
        ("Without a winner", _without_winner(lost)),
        ("KernelForge", __version__),
        ("Commit", commit or "not a checkout"),
        ("glslang", compiled),
        ("Bundle", f"{bundle.slug}, {len(bundle.manifest.entries)} kernels" if bundle else "none"),
        ("Bundle sha256", bundle.sha256 if bundle else "none"),
    ]
    return tuple((label, text) for label, text in facts if text)


def _without_winner(lost: Sequence[Measurement]) -> str:
    """Problems that were searched and have no row: nobody should take them for forgotten."""
    problems = len({(m.family, m.precision, m.problem) for m in lost})
    if not problems:
        return ""
    return f"{problems} {'problem' if problems == 1 else 'problems'}: {outcomes(lost)}"


def outcomes(found: Sequence[Measurement]) -> str:
    """`3 OK, 2 WRONG_RESULT`, the most frequent first."""
    counts = Counter(m.outcome.value for m in found)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


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
