"""The record of every measurement ever made in a tuning folder: append-only JSON lines.

Reports and bundles are made from it; Optuna's own storage is only needed to go on searching.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from kernelforge.errors import MeasureError, TuneError
from kernelforge.measure.measurement import Measurement

log = logging.getLogger(__name__)


class Journal:
    """One file, one measurement a line; safe against being killed at any moment.

    A line goes to the disk whole or not at all, followed by fsync. What a killed process left half
    written is closed with a line end by the next writer and skipped by readers.

    Raises:
        TuneError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ready = False

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
            self._prepare()
            _append(self.path, line.encode() + b"\n")
        except OSError as error:
            raise TuneError(
                f"cannot write {self.path}: {error.strerror}; free space or choose another folder "
                "with --journal: all that was measured before is kept"
            ) from error

    def _prepare(self) -> None:
        if self._ready:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        self._ready = True

    def of_trials(self) -> dict[str, Measurement]:
        """Trial -> measurement, for every trial that the journal has to its end."""
        return {trial: m for trial, m in _lines(self.path) if trial}

    def __iter__(self) -> Iterator[Measurement]:
        return iter(read_journal(self.path))


def _append(path: Path, data: bytes) -> None:
    """Adds all of it, or nothing.

    A full disk takes a part without an error, and refuses only the rest.
    """
    with path.open("ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


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
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TuneError(f"cannot read journal {path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found.append((str(record.get("trial", "")), Measurement.from_json(record)))
        except (ValueError, TypeError, AttributeError, MeasureError) as error:
            log.warning("%s line %d is damaged and was skipped (%s)", path, number, error)
    return found
