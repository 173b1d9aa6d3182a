"""Tuning twice, and measuring a bundle's claims again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge.measure.claims import Claim, remeasure
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.repeated import Repetition, tune_twice
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import open_bundle
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.vk import Device
from tests.runtime.bundle_files import entry, write_bundle
from tests.toolkit.cli_process import kernelforge, known_ceilings, one_line, tune_here
from tests.toolkit.small_family import needs_compiler, small_family

ROOT = Path(__file__).parents[2]
QUICK = Effort(sample_ns=2e5, samples=4, longest_sample_ns=2e6)

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


def test_two_tunings_share_nothing_and_their_winners_take_turns(llvmpipe: Device) -> None:
    needs_compiler()
    task = TuneTask(small_family(), F32, Problem(M=67, K=64))
    found = tune_twice(llvmpipe, task, Budget(4), effort=QUICK)
    assert len(found.first.trials) == len(found.second.trials) == 4
    assert {m.seed for m in found.first.trials}.isdisjoint(m.seed for m in found.second.trials)
    assert found.ratio >= 1.0
    if found.first.best.variant == found.second.best.variant:
        assert found.first_ns == found.second_ns  # one program, timed once
    slower = replace(found, first_ns=100.0, second_ns=106.0)
    assert not slower.alike
    assert Repetition(found.first, found.second, 104.0, 100.0, found.interval).alike


def test_claims_are_measured_again_beside_the_default(
    llvmpipe: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_compiler()
    bundle_of = "--family", "copy", "--problem", "L=1,B=1,E=4096", "--trials", "3"
    journal = known_ceilings(tmp_path / "j")
    asked = "--device", "llvmpipe", "--out", tmp_path, "--journal", journal
    assert tune_here(monkeypatch, *bundle_of, *asked) == 0
    told = kernelforge(
        "inspect", tmp_path / "llvmpipe", "--remeasure", "--device", "llvmpipe", "--json"
    )
    assert told.returncode == 0, told.stderr
    claims = json.loads(told.stdout)["claims"]
    assert claims
    for claim in claims:
        assert claim["why_not"] == ""
        assert claim["ratio"] == pytest.approx(claim["now_ns"] / claim["claimed_ns"])
        assert claim["rounds"] >= 3
        assert claim["device_ratio"] > 0
    text = kernelforge(
        "inspect", tmp_path / "llvmpipe", "--remeasure", "--device", "llvmpipe", "--quiet"
    )
    assert f"of {len(claims)} claims hold within 2 %" in text.stdout
    none = kernelforge("inspect", tmp_path / "llvmpipe", "--remeasure", "--family", "gemv")
    assert none.returncode == 2
    assert "no kernel of that family" in one_line(none.stderr, "kernelforge inspect: ")


def test_what_cannot_be_measured_again_says_why(llvmpipe: Device, tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path), llvmpipe.info)
    (claim,) = remeasure(bundle, llvmpipe, bundle.entries)
    assert claim.why_not == "this version has no such family"


def test_a_claim_is_judged_with_and_without_the_device_s_own_change() -> None:
    claim = Claim(entry(), now_ns=1100.0, spread_ns=1.0, rounds=7, default_now_ns=1650.0)
    assert claim.ratio == pytest.approx(1.1)
    assert claim.device_ratio == pytest.approx(1.1)
    assert claim.steady_ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [("gemv", "expected FAMILY/PRECISION"), ("gemv/f16:M=33,K=7", "multiples of 32")],
)
def test_the_script_says_what_is_wrong_in_one_line(wrong: str, says: str) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "retune_twice.py"), wrong]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert says in one_line(done.stderr, "retune_twice: ")
