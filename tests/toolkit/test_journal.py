"""The journal of measurements: whole lines survive, whatever happens to the last one."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest

from kernelforge.errors import MeasureError, TuneError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.journal import Journal, read_journal


def one(number: int, outcome: Outcome = Outcome.OK) -> Measurement:
    return Measurement(
        family="gemv",
        precision="f16",
        problem="M8.K8",
        variant=f"gemv/f16/ROWS{number}",
        outcome=outcome,
        median_ns=100.0 * number,
        spread_ns=1.5,
        samples_ns=(100.0, 101.5),
        max_error=math.inf if outcome is Outcome.WRONG_RESULT else 1e-6,
    )


def test_a_measurement_comes_back_as_it_was() -> None:
    for measurement in (one(1), one(2, Outcome.WRONG_RESULT)):
        assert Measurement.from_json(measurement.to_json()) == measurement


def test_a_measurement_without_times_comes_back_with_nan() -> None:
    blank = Measurement("gemv", "f16", "M8.K8", "gemv/f16/ROWS1", Outcome.REJECTED, "too large")
    back = Measurement.from_json(blank.to_json())
    assert math.isnan(back.median_ns)
    assert back.reason == "too large"
    assert not back.ok


def test_a_line_of_another_form_is_a_named_error() -> None:
    with pytest.raises(MeasureError, match="outcome"):
        Measurement.from_json({"family": "gemv"})


def test_measurements_are_read_in_the_order_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "journal.jsonl")
    for number in (1, 2, 3):
        journal.append(one(number))
    assert list(journal) == [one(1), one(2), one(3)]


def test_a_missing_journal_is_empty(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_skipped_and_the_next_writer_starts_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(one(1))
    Journal(path).append(one(2))
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) // 3):
        path.write_bytes(whole[:-cut])
        with caplog.at_level(logging.ERROR):
            kept = read_journal(path)
        assert kept in ([one(1)], [one(1), one(2)])
        Journal(path).append(one(3))
        assert read_journal(path) == [*kept, one(3)]


def test_damage_in_the_middle_is_reported_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(one(1))
    with path.open("a") as file:
        file.write('{"family": 3\n')
    Journal(path).append(one(2))
    with caplog.at_level(logging.WARNING):
        assert read_journal(path) == [one(1), one(2)]
    assert "line 2 is damaged" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TuneError, match="cannot write"):
        Journal(tmp_path / "file" / "journal.jsonl").append(one(1))


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_is_no_file_is_neither_read_for_ever_nor_written_to(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(TuneError, match=r"cannot read journal .*: it is no regular file"):
        read_journal(path)
    with pytest.raises(TuneError, match=r"cannot write .*: it is no regular file"):
        Journal(path).append(one(1))
