"""The measurements behind a report, kept beside it: whoever has the pages can make them again."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from kernelforge.errors import ReportError
from kernelforge.report.bench_journal import BENCH_FILE
from kernelforge.report.formats import PARETO_FILE
from kernelforge.report.frame import CEILINGS_FILE, JOURNAL_FILE
from kernelforge.report.provenance import COMMIT_FILE, commit_of
from kernelforge.report.writing import write_files

FOLDER = "measured"
MAX_BYTES = 256 << 20
"""Of one file, unpacked: a damaged one must not fill the disk."""
_FILES = (JOURNAL_FILE, BENCH_FILE, CEILINGS_FILE, PARETO_FILE)


def keep(journals: Path, out: Path) -> list[Path]:
    """Puts a device's journals beside its report, packed; the same journals give the same bytes.

    Raises:
        ReportError: one cannot be read or written.
    """
    found: dict[str, str | bytes] = {}
    try:
        for name in _FILES:
            if (journals / name).is_file():
                found[f"{name}.gz"] = gzip.compress((journals / name).read_bytes(), mtime=0)
    except OSError as error:
        raise ReportError(f"{journals}: cannot be read: {error.strerror or error}") from error
    if not found:
        return []
    found[COMMIT_FILE] = f"{commit_of(journals)}\n"
    return write_files(out / FOLDER, found)


def has_kept(out: Path) -> bool:
    """Whether a report folder has measurements beside it."""
    return any((out / FOLDER / f"{name}.gz").is_file() for name in (JOURNAL_FILE, BENCH_FILE))


@contextlib.contextmanager
def unpacked(out: Path) -> Iterator[Path]:
    """A journal folder of the measurements beside a report, for as long as it is needed.

    Raises:
        ReportError: a file is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="kernelforge-") as folder:
        for name in _FILES:
            path = out / FOLDER / f"{name}.gz"
            if not path.is_file():
                continue
            try:
                with gzip.open(path) as packed:
                    content = packed.read(MAX_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ReportError(f"{path}: damaged ({error}); delete it") from error
            if len(content) > MAX_BYTES:
                raise ReportError(f"{path}: more than {MAX_BYTES >> 20} MiB unpacked; delete it")
            (Path(folder) / name).write_bytes(content)
        if (out / FOLDER / COMMIT_FILE).is_file():
            shutil.copyfile(out / FOLDER / COMMIT_FILE, Path(folder) / COMMIT_FILE)
        yield Path(folder)
