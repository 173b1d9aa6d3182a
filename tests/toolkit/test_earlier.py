"""Results of earlier runs come back from the journal, as far as the bundle was made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.render import render
from kernelforge.tune.crossing import PHASE, missing
from kernelforge.tune.earlier import earlier_results, manifest_here, with_crossed
from kernelforge.tune.study import TuneResult
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Entry, Fingerprint, Manifest
from kernelforge_runtime.dtypes import F32
from tests.runtime.bundle_files import DEVICE, SIBLING, TOOLCHAIN, entry, write_bundle
from tests.toolkit.small_family import small_family

FAMILY = small_family()
ONE, TWO = Problem(M=96, K=64), Problem(M=64, K=64)
TEMPLATE = "1" * 64


def measured(workgroup: int, ns: float, seed: int = 1, problem: Problem = ONE, **changes: object):
    """A final measurement of five samples."""
    params = {"WORKGROUP": workgroup, "ROWS": 1, "FAULT": "none"}
    made = Measurement(
        "small", "f32", str(problem), FAMILY.variant(F32, params).name, Outcome.OK,
        median_ns=ns, samples_ns=(ns,) * 5, seed=seed, phase="final", template_sha256=TEMPLATE,
        spirv_sha256=f"{workgroup:064x}", device=DEVICE.slug,
        driver=f"{DEVICE.driver_name} {DEVICE.driver_info}",
    )  # fmt: skip
    return replace(made, **changes)


def packed(*workgroups: int, problem: Problem = ONE) -> list[Entry]:
    return [
        entry(problem, "small", precision="f32", module_sha256=f"{w:064x}") for w in workgroups
    ]  # fmt: skip


def earlier(journal: list[Measurement], entries: list[Entry], done=()) -> list[TuneResult]:
    manifest = Manifest(Fingerprint.of(DEVICE), TOOLCHAIN, tuple(entries))
    families = {"small": FAMILY}
    return earlier_results(journal, manifest, DEVICE, done, families.get, lambda family: TEMPLATE)


def widths(found: tuple[Measurement, ...]) -> list[str]:
    return [m.variant.rpartition("WORKGROUP")[2] for m in found]


def test_the_last_finals_count_and_what_was_crossed_after_them() -> None:
    journal = [
        measured(16, 90, 1), measured(32, 50, 1), measured(8, 40, 1, phase=PHASE),
        measured(16, 30, 7, phase="trial"), measured(64, 35, 8, phase="trial"),
        measured(16, 100, 2), measured(32, 80, 2), measured(8, 70, 5, phase=PHASE),
    ]  # fmt: skip
    (found,) = earlier(journal, packed(8))
    assert widths(found.finalists) == ["16", "32", "8"]
    assert [m.median_ns for m in found.finalists] == [100, 80, 70]
    assert found.default.median_ns == 100
    assert found.best.median_ns == 70
    assert widths(found.trials) == ["16", "64"]
    assert found.problem == ONE


def test_the_problem_is_the_same_however_its_dimensions_are_ordered() -> None:
    journal = [measured(16, 100), measured(32, 80)]
    assert len(earlier(journal, packed(32, problem=Problem(K=64, M=96)))) == 1
    done = earlier(journal, packed(32))
    assert earlier(journal, packed(32), done) == []


def test_what_is_not_of_this_device_template_and_bundle_is_left_out() -> None:
    journal = [measured(16, 100), measured(32, 80)]
    assert len(earlier(journal, packed(32))) == 1
    assert earlier(journal, packed(64)) == []  # the bundle was made of something else
    assert earlier(journal, packed(32, problem=TWO)) == []
    for change in ({"driver": "another"}, {"device": "another"}, {"template_sha256": "9" * 64}):
        assert earlier([replace(m, **change) for m in journal], packed(32)) == []
    wrong = [replace(m, outcome=Outcome.WRONG_RESULT) for m in journal]
    assert earlier(wrong, packed(32)) == []
    assert earlier([replace(m, phase="trial") for m in journal], packed(32)) == []
    gone = [replace(journal[1], variant="small/f32/OTHER1"), *journal]
    assert widths(earlier(gone, packed(32))[0].finalists) == ["16", "32"]
    assert earlier([replace(m, family="gone") for m in journal], packed(32)) == []


def test_what_an_edited_template_makes_alike_still_counts() -> None:
    rendered = {
        w: render(FAMILY, F32, {"WORKGROUP": w, "ROWS": 1, "FAULT": "none"}).sha256
        for w in (16, 32, 64)
    }
    journal = [
        measured(w, ns, template_sha256="9" * 64, glsl_sha256=rendered[w])
        for w, ns in ((16, 100), (32, 80), (64, 70))
    ]
    (found,) = earlier(journal, packed(64))
    assert widths((found.best,)) == ["64"]
    assert {m.template_sha256 for m in found.finalists} == {TEMPLATE}
    other = [journal[0], journal[1], replace(journal[2], glsl_sha256="8" * 64)]
    assert earlier(other, packed(64)) == []
    (found,) = earlier(other, packed(32))
    assert widths((found.best,)) == ["32"]
    assert [m.ok for m in found.finalists] == [True, True, False]


def test_winners_of_earlier_runs_are_wanted_at_today_s_problems_and_the_other_way_round() -> None:
    old = earlier([measured(16, 100), measured(32, 80)], packed(32))
    today = replace(
        old[0], problem=TWO, best=measured(8, 5, problem=TWO), default=measured(16, 9, problem=TWO),
        finalists=(measured(16, 9, problem=TWO), measured(8, 5, problem=TWO)),
    )  # fmt: skip
    everything = [today, *old]
    assert [n[-2:] for n in missing(today, everything, FAMILY, DEVICE)] == ["32"]
    assert [n[-2:] for n in missing(old[0], everything, FAMILY, DEVICE)] == ["P8"]


def test_a_bundle_of_another_device_or_none_has_no_part(tmp_path: Path) -> None:
    assert manifest_here(tmp_path / "none", DEVICE) is None
    path = write_bundle(tmp_path / "one", DEVICE)
    assert manifest_here(path, DEVICE) is not None
    assert manifest_here(path, SIBLING) is None
    assert manifest_here(path, replace(DEVICE, driver_info="2.0")) is None


def test_finals_that_were_kept_get_back_what_was_crossed_after_them_and_new_ones_do_not() -> None:
    journal = [
        measured(16, 90, 1), measured(8, 40, 9, phase=PHASE),
        measured(16, 100, 2), measured(32, 80, 2), measured(64, 35, 8, phase="trial"),
        measured(8, 90, 5, phase=PHASE), measured(8, 70, 6, phase=PHASE),
        measured(64, 60, 5, phase=PHASE, template_sha256="2" * 64),
        measured(64, 60, 5, phase=PHASE, device="another"),
        measured(64, 60, 5, phase=PHASE, problem=TWO),
    ]  # fmt: skip

    def found(seed: int) -> TuneResult:
        finals = (measured(16, 100, seed), measured(32, 80, seed))
        result = TuneResult("small", "f32", ONE, finals[1], finals[0], finals, (), 4, 0.0, "")
        template = lambda family: TEMPLATE  # noqa: E731
        (whole,) = with_crossed([result], journal, DEVICE, lambda name: FAMILY, template)
        return whole

    kept, new = found(seed=2), found(seed=3)
    assert widths(kept.finalists) == ["16", "32", "8"]
    assert kept.best.median_ns == 70
    assert (widths(new.finalists), new.best.median_ns) == (["16", "32"], 80)
