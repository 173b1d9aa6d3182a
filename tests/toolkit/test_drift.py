"""Drift of a device: seen, taken out of the trials' times, or left alone as noise."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.budget import Budget
from kernelforge.tune.drift import Drift, SharedDrift
from kernelforge.tune.journal import Journal
from kernelforge.tune.sampler import EnumeratedSampler
from kernelforge.tune.search import Search
from kernelforge.tune.workers import this_process
from kernelforge_runtime.abi.device_info import GENERIC
from tests.toolkit.synthetic_worker import Synthetic


def timed(ns: float, spread: float = 0.0) -> Measurement:
    samples = (ns - spread, ns, ns + spread)
    return Measurement(
        "small", "f32", "M8.K8", "v", Outcome.OK, median_ns=ns, spread_ns=spread, samples_ns=samples
    )


def drift(*times: tuple[int, float], spread: float = 0.0) -> Drift:
    found = Drift()
    for number, ns in times:
        found.add(number, timed(ns, spread))
    return found


def test_a_device_that_became_slower_has_its_later_times_corrected() -> None:
    found = drift((0, 100.0), (10, 120.0), (20, 140.0))
    assert found.moved
    for number, slowdown in ((0, 1.0), (5, 1.1), (10, 1.2), (15, 1.3), (20, 1.4), (30, 1.4)):
        assert found.slowdown_at(number) == pytest.approx(slowdown)
    corrected = found.correct(timed(240.0), 10)
    assert corrected.median_ns == 240.0
    assert corrected.corrected_ns == corrected.time_ns == pytest.approx(200.0)


def test_the_order_of_variants_measured_at_different_speeds_is_put_right() -> None:
    found = drift((0, 100.0), (20, 200.0))
    early, late = timed(90.0), timed(160.0)
    assert early.median_ns < late.median_ns
    assert found.correct(late, 20).time_ns < found.correct(early, 0).time_ns


def test_a_move_within_three_percent_is_no_drift() -> None:
    found = drift((0, 100.0), (10, 102.5))
    assert not found.moved
    assert found.slowdown_at(10) == 1.0


def test_a_move_within_the_noise_of_the_references_is_left_alone() -> None:
    assert drift((0, 100.0), (10, 120.0), spread=1.0).slowdown_at(10) == pytest.approx(1.2)
    assert drift((0, 100.0), (10, 120.0), spread=20.0).slowdown_at(10) == 1.0


def test_references_come_back_from_their_plain_form() -> None:
    found = drift((0, 100.0), (10, 130.0), spread=1.0)
    again = Drift(found.to_json())
    assert again.slowdown_at(7) == found.slowdown_at(7) != 1.0
    assert Drift().slowdown_at(3) == 1.0


def test_workers_that_share_a_study_lose_none_of_each_other_s_references() -> None:
    kept: dict[str, object] = {"session here:1": True}
    one, two = SharedDrift(kept), SharedDrift(kept)  # both look before either writes
    kept |= one.with_one("here:1", 0, timed(100.0))
    kept |= two.with_one("there:2", 1, timed(120.0))
    one, two = SharedDrift(kept), SharedDrift(kept)
    kept |= one.with_one("here:1", 10, timed(110.0))
    kept |= two.with_one("there:2", 11, timed(180.0))
    both = SharedDrift(kept)
    assert both.of("here:1").times_ns == [100.0, 110.0]
    assert both.of("there:2").times_ns == [120.0, 180.0]
    assert both.moved


def test_each_worker_s_times_are_held_against_the_first_reference_of_all() -> None:
    kept: dict[str, object] = {}
    for worker, number, ns in (("a:1", 0, 100.0), ("b:1", 3, 120.0), ("a:1", 10, 100.0)):
        kept |= SharedDrift(kept).with_one(worker, number, timed(ns))
    drift = SharedDrift(kept)
    assert drift.first is not None
    assert drift.first.ns == 100.0
    # The second one's device is slower by a fifth, and that is no property of its variants.
    assert drift.of("a:1").slowdown_at(5) == 1.0
    assert drift.of("b:1").slowdown_at(5) == pytest.approx(1.2)
    assert drift.of("b:1").correct(timed(60.0), 5).corrected_ns == pytest.approx(50.0)
    assert drift.of("c:1").slowdown_at(5) == 1.0
    assert SharedDrift({}).first is None


def test_references_of_an_earlier_version_and_foreign_ones_are_no_error() -> None:
    old = drift((0, 100.0), (10, 130.0)).to_json()
    found = SharedDrift({"references": old, "references x:1": "nonsense", "references y:1": [[1]]})
    assert found.of("any:1").slowdown_at(10) == pytest.approx(1.3)


def test_a_second_worker_times_the_default_on_its_own_device_at_once(tmp_path: Path) -> None:
    bench = Synthetic(0.0, rows=2)
    default = bench.family.space.declared_default
    sampler = EnumeratedSampler(bench.family.space.valid(GENERIC), [default], strategy="random")
    study = optuna.create_study(sampler=sampler)
    ns = 0.5 * bench.measure(default).median_ns
    others = SharedDrift({}).with_one("elsewhere:1", 0, timed(ns))
    for name, value in others.items():
        study.set_user_attr(name, value)
    journal = Journal(tmp_path / "journal.jsonl")
    search = Search(study, sampler, bench, journal, default, Budget(13))  # type: ignore[arg-type]
    search.run()
    assert study.user_attrs["references elsewhere:1"] == others["references elsewhere:1"]
    mine = search.drift.of(this_process()).references
    assert [r.number for r in mine] == [0, 10]
    assert next(m.phase for m in journal) == "drift"
    assert search.corrected()[-1].corrected_ns == pytest.approx(
        search.corrected()[-1].median_ns / 2
    )
