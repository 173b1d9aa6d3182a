"""A search goes through every fault there is: each ends its own trial, under its own name."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelforge.errors import TuneError
from kernelforge.measure.isolated import Patience
from kernelforge.measure.measurement import ENDED, Measurement, Outcome
from kernelforge.measure.supervisor import Supervisor
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.quarantine import quarantined
from kernelforge.tune.study import Isolation, TuneResult, tune_problem
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import DeviceLostError
from kernelforge_runtime.vk import Device
from tests.toolkit.faulty_family import (
    BROKEN,
    EVERY,
    GONE,
    HARMLESS,
    OUTCOMES,
    WORKER,
    WRONG,
    faulty_family,
)
from tests.toolkit.small_family import needs_compiler, small_family

ROOT = Path(__file__).parents[2]
PROBLEM = Problem(M=67, K=64)
QUICK = Effort(sample_ns=1e5, samples=3, longest_sample_ns=1e6)
# The floor is long for a hang, but a healthy trial on a machine under load must fit into it.
PATIENCE = Patience(factor=2.0, floor_s=5.0, ceiling_s=20.0, pauses_s=(0.1, 0.2))

pytestmark = [
    pytest.mark.vulkan,
    pytest.mark.glslang,
    pytest.mark.skipif(sys.platform != "linux", reason="process groups are looked up in Linux"),
]


@pytest.fixture
def device(llvmpipe: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    needs_compiler()
    # The kernels break rules on purpose, and each worker starts faster without the layer.
    monkeypatch.setenv("KERNELFORGE_VALIDATION", "0")
    return llvmpipe


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(WORKER) as opened:
        yield opened


def tune(
    device: Device,
    folder: Path,
    supervisor: Supervisor | None,
    faults: tuple[str, ...],
    rows: int = 32,
    trials: int = 1000,
    storage: str = "optuna.log",
    **changes: Any,
) -> TuneResult:
    journal = Journal(folder / "journal.jsonl")
    isolation = None
    if supervisor is not None:
        avoid = quarantined(journal, device.info)
        isolation = Isolation(supervisor, changes.pop("patience", PATIENCE), avoid)
    return tune_problem(
        device, faulty_family(faults, rows), F32, PROBLEM, Budget(trials), journal,
        folder / storage, effort=QUICK, isolation=isolation, **changes,
    )  # fmt: skip


def fault(measurement: Measurement) -> str:
    return measurement.variant.split("FAULT=")[1].split(".")[0]


def expected(name: str) -> set[str]:
    if name in HARMLESS:
        return {"OK"}
    if name in WRONG:
        return {"WRONG_RESULT"}
    if name in BROKEN:
        return {"COMPILE_FAILED"}
    # A worker that gets no processor time while the shader spins may be killed before it tells.
    return {OUTCOMES[name], "HUNG"} if name == "endless" else {OUTCOMES[name]}


def none_left(groups: set[int]) -> bool:
    for _ in range(600):  # as a rule none is there at the first look
        alive = []
        for group in groups:
            try:
                os.killpg(group, 0)
                alive.append(group)
            except ProcessLookupError:
                continue
        if not alive:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_search_among_every_fault_records_each_as_what_it_was_and_finishes(
    device: Device, supervisor: Supervisor, tmp_path: Path
) -> None:
    groups: set[int] = set()

    def note(_: object) -> None:
        if supervisor.pid is not None:
            groups.add(supervisor.pid)

    result = tune(device, tmp_path, supervisor, EVERY, rows=512, on_progress=note)
    assert result.space_size == len(result.trials) >= 200
    misnamed = [m for m in result.trials if m.outcome.value not in expected(fault(m))]
    assert not misnamed
    seen = Counter(fault(m) for m in result.trials)
    assert set(seen) == set(EVERY)
    assert all(m.reason for m in result.trials if not m.ok)
    assert fault(result.best) in HARMLESS
    assert all(fault(m) in HARMLESS for m in result.finalists if m.ok)
    assert len([m for m in read_journal(tmp_path / "journal.jsonl") if m.phase == "trial"]) == len(
        result.trials
    )
    assert supervisor.losses >= 2 * (len(OUTCOMES) - 1)  # out of memory leaves the worker alive
    supervisor.close()
    assert len(groups) > 10
    assert none_left(groups)


def test_what_ended_a_worker_is_not_run_again_not_even_in_another_study(
    device: Device, tmp_path: Path
) -> None:
    deadly = ("none", "killed", "aborted", "lost")
    with Supervisor(WORKER) as first:
        tune(device, tmp_path, first, deadly)
        assert first.losses == 6
    with Supervisor(WORKER) as second:
        again = tune(device, tmp_path, second, deadly, storage="another.log")
        assert second.losses == 0
        assert second.started == 1
    lost = [m for m in again.trials if not m.ok]
    assert len(lost) == 6
    assert all(m.reason.startswith("not run again: ") and m.note == ENDED for m in lost)
    assert {m.outcome.value for m in lost} == {OUTCOMES[name] for name in deadly[1:]}


def test_a_device_that_does_not_come_back_ends_the_search_and_the_next_one_goes_on(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    monkeypatch.setenv(GONE, str(gone))

    def lose(progress: Any) -> None:
        if progress.number == 2:
            gone.touch()

    with Supervisor(WORKER) as supervisor:
        with pytest.raises(TuneError, match=r"3 variants in a row were lost, .* did not come back"):
            tune(device, tmp_path, supervisor, ("none",), on_progress=lose)
        assert supervisor.losses == 3 + len(PATIENCE.pauses_s)
        gone.unlink()
        result = tune(device, tmp_path, supervisor, ("none",))
    outcomes = Counter(m.outcome for m in result.trials)
    assert outcomes[Outcome.DEVICE_LOST] == 3
    assert outcomes[Outcome.OK] == result.space_size - 3


def test_losses_in_a_row_do_not_stop_a_search_while_the_device_is_fine(
    device: Device, supervisor: Supervisor, tmp_path: Path
) -> None:
    result = tune(device, tmp_path, supervisor, ("none", "killed", "aborted", "exited"), rows=8)
    assert len(result.trials) == result.space_size
    assert result.best.ok


@pytest.mark.parametrize(("name", "outcome"), [("brittle", "ABORTED"), ("fickle", "CRASHED")])
def test_a_finalist_that_dies_in_the_finals_is_dropped_and_the_others_are_still_compared(
    device: Device, supervisor: Supervisor, tmp_path: Path, name: str, outcome: str
) -> None:
    late = {"WORKGROUP": 32, "ROWS": 1, "FAULT": name}
    result = tune(device, tmp_path, supervisor, ("none", name), trials=2, warm=[late])
    assert [fault(m) for m in result.trials] == ["none", name]
    assert all(m.ok for m in result.trials)
    assert [(fault(m), m.outcome.value) for m in result.finalists] == [
        ("none", "OK"),
        (name, outcome),
    ]
    assert len(result.best.samples_ns) >= 3
    assert fault(result.best) == "none"
    assert quarantined(Journal(tmp_path / "journal.jsonl"), device.info)


def test_a_worker_that_dies_between_two_trials_is_replaced_and_nobody_is_blamed(
    device: Device, supervisor: Supervisor, tmp_path: Path
) -> None:
    def stab(progress: Any) -> None:
        if progress.number in (2, 4) and supervisor.pid is not None:
            os.kill(supervisor.pid, signal.SIGKILL)
            while supervisor.pid is not None:  # a signal takes a moment to end a process
                time.sleep(0.001)

    result = tune(device, tmp_path, supervisor, ("none",), rows=16, on_progress=stab)
    assert all(m.ok for m in result.trials)
    assert supervisor.started == 3


def test_a_family_that_no_other_process_can_make_is_a_named_error(
    device: Device, supervisor: Supervisor, tmp_path: Path
) -> None:
    family = small_family(tolerance=2.0)
    with pytest.raises(Exception, match=r"names no source.*--in-process"):
        tune_problem(
            device, family, F32, PROBLEM, Budget(2), Journal(tmp_path / "journal.jsonl"),
            tmp_path / "optuna.log", isolation=Isolation(supervisor),
        )  # fmt: skip


PARENT = """
import sys
from pathlib import Path
from kernelforge.measure.supervisor import Supervisor
from kernelforge_runtime.vk import open_device
from tests.toolkit.faulty_family import WORKER
from tests.toolkit.test_faults import tune
with open_device("llvmpipe") as device, Supervisor(WORKER) as supervisor:
    say = lambda p: print(p.last.variant, supervisor.pid, flush=True)
    tune(device, Path(sys.argv[1]), supervisor, ("none", sys.argv[2]), on_progress=say)
"""


@pytest.mark.parametrize("name", ["stuck", "endless"])
def test_killed_in_the_middle_of_a_trial_nothing_is_lost_and_no_process_stays(
    device: Device, supervisor: Supervisor, tmp_path: Path, name: str
) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), name],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    finished: list[str] = []
    group = 0
    for line in parent.stdout:
        variant, pid = line.split()
        finished.append(variant)
        group = int(pid) if pid != "None" else 0
        if len(finished) >= 3 and group:
            break
    time.sleep(0.2)  # by now the worker is at the next one
    parent.send_signal(signal.SIGKILL)
    parent.stdout.close()
    parent.wait()
    assert group, "the search ended by itself"
    assert none_left({group})
    result = tune(device, tmp_path, supervisor, ("none", name))
    assert [m.variant for m in result.trials][: len(finished)] == finished
    names = [m.variant for m in result.trials]
    assert len(set(names)) == len(names) == result.space_size


def test_a_journal_cut_in_the_middle_of_a_line_loses_that_line_only(
    device: Device, supervisor: Supervisor, tmp_path: Path
) -> None:
    tune(device, tmp_path, supervisor, ("none", "wrong"), trials=4)
    path = tmp_path / "journal.jsonl"
    before = read_journal(path)
    path.write_bytes(path.read_bytes()[:-40])
    result = tune(device, tmp_path, supervisor, ("none", "wrong"), trials=8)
    assert read_journal(path)[: len(before) - 1] == before[:-1]
    assert len({m.variant for m in result.trials}) == len(result.trials) == 8


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file may become longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_on_a_full_disk_keeps_whole_lines_only(tmp_path: Path) -> None:
    one = Measurement("small", "f32", "M8.K8", "small/f32/ROWS1", Outcome.OK, median_ns=1.0)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(one)
    size = journal.path.stat().st_size
    with full_disk(size + 50), pytest.raises(TuneError, match=r"cannot write .*free space"):
        journal.append(one)
    assert journal.path.stat().st_size == size
    journal.append(one)
    assert len(read_journal(journal.path)) == 2


def test_a_full_disk_ends_a_search_with_one_line_and_it_goes_on_when_there_is_room(
    device: Device, supervisor: Supervisor, tmp_path: Path
) -> None:
    # Started before: the driver keeps the memory of its device in files that count too.
    supervisor.start()
    with full_disk(12_000), pytest.raises(TuneError, match=r"free space") as caught:
        tune(device, tmp_path, supervisor, ("none",), rows=128)
    assert not isinstance(caught.value.__cause__, DeviceLostError)
    kept = [m for m in read_journal(tmp_path / "journal.jsonl") if m.phase == "trial"]
    assert kept
    result = tune(device, tmp_path, supervisor, ("none",), rows=128)
    assert list(result.trials[: len(kept) - 1]) == kept[:-1]
    assert len({m.variant for m in result.trials}) == len(result.trials) == result.space_size
