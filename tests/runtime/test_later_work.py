"""Work that is left for later is done by threads, told of in order, and dropped once it fails."""

import threading
import time

import pytest

from kernelforge_runtime.ops import later_work
from kernelforge_runtime.ops.later_work import LaterWork


@pytest.mark.parametrize("threads", [1, 4])
def test_all_jobs_are_done_before_what_follows_them_is_told(threads, monkeypatch):
    monkeypatch.setattr(later_work, "MOST_THREADS", threads)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    work, done, told = LaterWork(), set(), []
    for number in range(20):
        work.add(lambda number=number: done.add(number))
        if number % 5 == 4:
            work.tell(lambda number=number: told.append((number, done >= {*range(number + 1)})))
    assert not done and not told
    work.run()
    assert told == [(4, True), (9, True), (14, True), (19, True)] and len(done) == 20
    work.run()  # nothing is done twice
    assert len(told) == 4


def test_a_job_that_fails_ends_the_others_once_those_that_run_are_done(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    work, failed, finished = LaterWork(), threading.Event(), []

    def slow():
        assert failed.wait(30)
        finished.append("slow")

    def fail():
        failed.set()
        raise ValueError("a damaged tensor")

    work.add(fail)
    work.add(slow)
    for _ in range(500):  # five seconds of two threads
        work.add(lambda: finished.append(time.sleep(0.02)))
    work.tell(lambda: finished.append("told"))
    with pytest.raises(ValueError, match="a damaged tensor"):
        work.run()
    assert finished.count("slow") == 1 and "told" not in finished
    assert len(finished) < 500


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_to_begin_does_so_at_once_and_gives_what_it_found(threads, monkeypatch):
    monkeypatch.setattr(later_work, "MOST_THREADS", threads)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    work, begun = LaterWork(), threading.Event()
    found = work.begin(lambda: begun.set() or 7)
    assert begun.wait(30)
    assert found() == 7
    work.run()
    assert found() == 7


def test_what_is_to_begin_is_done_at_the_end_even_where_no_thread_was_free(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    work, done = LaterWork(), []
    found = [
        work.begin(lambda number=number: time.sleep(0.05) or done.append(number) or number)
        for number in range(8)
    ]
    work.run()
    assert sorted(done) == [*range(8)]
    assert [wait() for wait in found] == [*range(8)]


def test_what_fails_once_it_began_is_told_to_who_waits_for_it_alone(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    work, done = LaterWork(), []

    def fail():
        raise ValueError("a damaged tensor")

    found = work.begin(fail)
    work.add(lambda: done.append("other"))
    work.run()
    assert done == ["other"]
    with pytest.raises(ValueError, match="a damaged tensor"):
        found()


def test_dropped_work_is_not_begun_and_what_runs_is_waited_for(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    work, begun, done = LaterWork(), threading.Barrier(3), []

    def slow():
        begun.wait(30)
        time.sleep(0.5)
        done.append("slow")

    for job in (slow, slow, lambda: done.append("never")):
        work.begin(job)
    work.add(lambda: done.append("never"))
    begun.wait(30)
    work.drop()
    assert done == ["slow", "slow"]
