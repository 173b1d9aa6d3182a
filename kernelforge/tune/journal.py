"""The record of every measurement ever made in a tuning folder: append-only JSON lines.

Reports and bundles are made from it; Optuna's own storage is only needed to go on searching.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from kernelforge.errors import TuneError
from kernelforge.measure.journal_lines import read_lines, require_regular
from kernelforge.measure.measurement import Measurement
from kernelforge.tune.file_lock import CAN_LOCK, hold


class Journal:
    """One file, one measurement a line; safe against being killed at any moment.

    A line goes to the disk whole or not at all, followed by fsync. What a killed process left half
    written is closed with a line end by the next writer and skipped by readers. Several processes
    may write to it.

    Raises:
        TuneError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, measurement: Measurement, trial: str = "") -> None:
        """Adds one measurement; it is on the disk when this returns.

        Args:
            measurement: what was measured.
            trial: which trial of which study it ends, if any; see `of_trials`.
        """
        # The time is for reports, which must not depend on when they are made.
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        record = {"time": time, **measurement.to_json(), **({"trial": trial} if trial else {})}
        line = json.dumps(record, separators=(",", ":"), allow_nan=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_whole(self.path, line.encode() + b"\n")
        except OSError as error:
            raise TuneError(
                f"cannot write {self.path}: {error.strerror}; free space or choose another folder "
                "with --journal: all that was measured before is kept"
            ) from error

    def of_trials(self) -> dict[str, Measurement]:
        """Trial -> measurement, for every trial that the journal has to its end."""
        return {trial: m for trial, m in _lines(self.path) if trial}

    def __iter__(self) -> Iterator[Measurement]:
        return iter(read_journal(self.path))


def append_whole(path: Path, data: bytes) -> None:
    """Adds lines to a file: all of them, or nothing.

    A full disk takes a part without an error, and refuses only the rest.
    """
    with path.open("ab+", buffering=0) as file:
        require_regular(file, path)
        if CAN_LOCK:
            hold(file)  # nobody else's line is cut off where this one does not fit
        start = file.seek(0, os.SEEK_END)
        if start and not _ends_a_line(file, start):
            data = b"\n" + data
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


def _ends_a_line(file: IO[bytes], at: int) -> bool:
    file.seek(at - 1)
    return file.read(1) == b"\n"


def read_journal(path: Path) -> list[Measurement]:
    """Every whole measurement of a journal, in order; damaged lines are skipped with a warning.

    Returns:
        An empty list where there is no such file.

    Raises:
        TuneError: the file exists but cannot be read.
    """
    return [measurement for _, measurement in _lines(path)]


def _lines(path: Path) -> list[tuple[str, Measurement]]:
    """Every whole line: its trial, and its measurement."""
    try:
        return read_lines(path, lambda record: (_trial(record), Measurement.from_json(record)))
    except OSError as error:
        raise TuneError(f"cannot read journal {path}: {error.strerror}") from error


def _trial(record: dict[str, Any]) -> str:
    return str(record.get("trial", ""))
