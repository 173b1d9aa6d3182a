"""Where studies are kept: torn, full, foreign, taken away, or a database that fails."""

from __future__ import annotations

import gc
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from kernelforge.errors import TuneError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.objective import CLOCK, WORKER, age_s, release_orphans
from kernelforge.tune.storage import explained, open_storage
from kernelforge.tune.study_file import StorageError, StudyFile, set_aside
from tests.toolkit.test_faults import full_disk

LINES = [{"op_code": i, "worker_id": "w", "text": "x" * 9} for i in range(3)]


def written(path: Path) -> bytes:
    StudyFile(path).append_logs(LINES)
    return path.read_bytes()


def test_a_file_cut_at_any_byte_of_its_last_line_loses_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "studies"
    whole = written(path)
    last = len(whole.splitlines(keepends=True)[-1])
    new = {"op_code": 9, "worker_id": "v"}
    for cut in range(1, last + 1):
        path.write_bytes(whole[:-cut])
        reader = StudyFile(path)
        assert list(reader.read_logs(0)) == LINES[:2]
        StudyFile(path).append_logs([new])
        assert list(reader.read_logs(2)) == [new]
        assert list(StudyFile(path).read_logs(0)) == [*LINES[:2], new]


def test_a_worker_goes_on_behind_what_another_one_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / "studies"
    one = optuna.create_study(storage=open_storage(path), study_name="s")
    other = optuna.load_study(storage=open_storage(path), study_name="s")
    one.ask()
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"' + b"k" * 70_000)  # killed here
    other.ask()
    one.ask()
    for study in (one, other, optuna.load_study(storage=open_storage(path), study_name="s")):
        assert [trial.number for trial in study.get_trials()] == [0, 1, 2]


def test_on_a_full_disk_nothing_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "studies"
    whole = written(path)
    with full_disk(len(whole) + 20), pytest.raises(OSError, match="File too large"):
        StudyFile(path).append_logs(LINES)
    assert path.read_bytes() == whole


def test_a_file_that_was_taken_away_is_not_begun_anew_by_who_still_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "studies"
    study = optuna.create_study(storage=open_storage(path))
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        study.ask()
    assert not path.exists()


def test_a_file_in_use_is_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "studies"
    storage = open_storage(path)
    optuna.create_study(storage=storage)
    with pytest.raises(StorageError, match="another run is tuning with it"):
        set_aside(path, "old")
    del storage
    gc.collect()
    set_aside(path, "old")
    assert not path.exists()
    assert (tmp_path / "old").stat().st_size > 0
    set_aside(path, "older")  # there is nothing left
    path.write_text("new")
    set_aside(path, "old")
    assert (tmp_path / "old").stat().st_size > 3
    assert (tmp_path / "old.1").read_text() == "new"


@pytest.mark.parametrize("text", [b"# Notes\nno end of line", b"SQLite format 3\0", b'{"op":1}'])
def test_what_is_no_file_of_studies_is_refused_and_left_as_it_is(
    tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "notes.md"
    path.write_bytes(text)
    with pytest.raises(StorageError, match="is no file of studies"):
        open_storage(path)
    assert path.read_bytes() == text
    with pytest.raises(StorageError, match="cannot open tuning storage"):
        open_storage(tmp_path)


def test_damage_in_the_middle_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "studies"
    whole = written(path).splitlines(keepends=True)
    path.write_bytes(whole[0] + b'{"op_code":1\n' + whole[2])
    with pytest.raises(StorageError, match=r"studies: a line in the middle .* --no-resume"):
        list(StudyFile(path).read_logs(0))


@pytest.mark.parametrize("line", [b'{"op_code":9999}', b'{"op_code":4,"worker_id":"x"}'])
def test_a_line_that_no_study_writes_is_one_line_that_says_what_to_do(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "studies"
    path.write_bytes(line + b"\n")
    with pytest.raises(StorageError, match=r"studies: a line of it .* --no-resume") as caught:
        open_storage(path)
    assert "\n" not in str(caught.value)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="cannot open tuning storage") as caught:
        open_storage("nosuch://tuner:hunter2@127.0.0.1/none")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(TuneError, match=r"unable to open database file; give --storage") as caught:
        open_storage(f"sqlite:///{tmp_path}/none/studies.db")
    assert "\n" not in str(caught.value)


def test_a_database_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    held = [open_storage(f"sqlite:///{path}")]
    held.append(open_storage(f"sqlite:///file:{path}?mode=ro&uri=true"))
    told = r"failed: .*readonly database.*same command again"
    with pytest.raises(StorageError, match=told), explained():
        optuna.create_study(storage=held[1])
    for storage in held:
        assert isinstance(storage, RDBStorage)
        storage.remove_session()
        storage.engine.dispose()


def test_two_tuners_on_one_journal_spoil_none_of_each_other_s_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    one = Measurement("small", "f32", "M8.K8", "small/f32/ROWS1", Outcome.OK, median_ns=1.0)
    mine, other = Journal(path), Journal(path)
    mine.append(one)
    other.append(one)
    whole = path.read_bytes()
    line = json.dumps({"torn": "x" * 40}).encode()
    for cut in range(1, len(line)):
        path.write_bytes(whole + line[:cut])  # the other one was killed here
        mine.append(one)
        assert read_journal(path) == [one] * 3


def trial(start: datetime, **attributes: object) -> optuna.trial.FrozenTrial:
    made = create_trial(state=TrialState.RUNNING)
    made.datetime_start, made.user_attrs = start, attributes
    return made


def test_the_age_of_a_trial_is_that_of_its_worker_s_clock_and_never_young_for_ever() -> None:
    ago, far = timedelta(seconds=30), timedelta(hours=9)
    here = datetime.now()
    assert age_s(trial(here - ago), here - ago) == pytest.approx(30, abs=5)
    there = (datetime.now(UTC) - ago + far).replace(tzinfo=None)  # its wall clock shows
    assert age_s(trial(there, **{CLOCK: far.total_seconds()}), there) == pytest.approx(30, abs=5)
    assert age_s(trial(here), here + far) == pytest.approx(far.total_seconds(), abs=5)
    assert age_s(trial(here), None) > 1e9


def test_a_trial_that_runs_in_another_time_zone_is_not_taken_for_dead(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(tmp_path / "studies"))
    for hours in (-9, 9):
        offset = timedelta(hours=hours)
        start = (datetime.now(UTC) + offset).replace(tzinfo=None)
        study.add_trial(trial(start, **{CLOCK: offset.total_seconds(), WORKER: "elsewhere:1"}))
    study.add_trial(trial(datetime.now() + timedelta(hours=5), **{WORKER: "elsewhere:2"}))
    assert release_orphans(study, study._storage, Journal(tmp_path / "journal.jsonl")) == 1
    states = [t.state.is_finished() for t in study.get_trials()]
    assert states == [False, False, True]
