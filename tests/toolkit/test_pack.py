"""Packing: only verified kernels, the same bytes every time, all or nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kernelforge.errors import PackError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.pack import Toolchain, Winner, choose, pack, winner
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import open_bundle
from tests.runtime.bundle_files import DEVICE, SAXPY, SIGNATURE, TOOLCHAIN, with_constant

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Checked:
    ok: bool = True
    seed: int = 3
    max_error: float = 1e-7
    tolerance: float = 1e-5


def candidate(size: int = 64, median_ns: float = 1000.4, rows: int = 1, **changes: Any) -> Winner:
    module = ShaderModule(f"saxpy/f32/ROWS{rows}", with_constant(rows), SIGNATURE)
    result = Winner(
        family="saxpy",
        precision="f32",
        problem=Problem(N=size),
        module=module,
        median_ns=median_ns,
        spread_ns=10.6,
        trials=9,
        default_ns=2000.0,
        verification=Checked(),
        template_sha256="a" * 64,
        glsl_sha256="b" * 64,
    )
    return replace(result, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_packed_bundle_opens_and_says_what_was_measured(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "new" / "tuned",
        DEVICE,
        [candidate(64), candidate(128, rows=2), candidate(256, rows=2)],
        toolchain=TOOLCHAIN,
        ceilings={"read_bandwidth_gbps": 12.5},
    )
    assert path == tmp_path / "new" / "tuned" / "example-x1"
    bundle = open_bundle(path, DEVICE)
    bundle.check()
    assert [entry.problem["N"] for entry in bundle.entries] == [64, 128, 256]
    first = bundle.entries[0]
    assert (first.median_ns, first.spread_ns, first.default_ns, first.trials) == (1000, 11, 2000, 9)
    assert (first.verified.seed, first.verified.max_abs_error) == (3, 1e-7)
    assert bundle.manifest.ceilings == (("read_bandwidth_gbps", 12.5),)
    assert bundle.manifest.toolchain == TOOLCHAIN
    assert len({entry.module_sha256 for entry in bundle.entries}) == 2
    assert [p.name for p in path.parent.iterdir()] == ["example-x1"]


def test_packing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    winners = [candidate(n, rows=n) for n in (1, 2, 3)]
    once = contents(pack(tmp_path / "a", DEVICE, winners))
    assert contents(pack(tmp_path / "b", DEVICE, winners[::-1])) == once
    time.sleep(0.01)
    assert contents(pack(tmp_path / "a", DEVICE, winners)) == once
    twin = replace(DEVICE, device_uuid="77" * 16)
    assert contents(pack(tmp_path / "c", twin, winners)) == once


def test_only_verified_kernels_are_packed(tmp_path: Path) -> None:
    wrong = candidate(2, verification=Checked(ok=False))
    with pytest.raises(PackError, match="saxpy/f32/ROWS1 on N2: its result was not verified"):
        pack(tmp_path, DEVICE, [candidate(1), wrong])
    for bad in (
        candidate(median_ns=float("nan")),
        candidate(verification=Checked(max_error=1e999)),
    ):
        with pytest.raises(PackError, match="is not a number"):
            pack(tmp_path, DEVICE, [bad])
    with pytest.raises(PackError, match="nothing to pack for example-x1"):
        pack(tmp_path, DEVICE, [])
    assert list(tmp_path.iterdir()) == []


def test_what_the_reader_would_refuse_is_not_packed(tmp_path: Path) -> None:
    old = contents(pack(tmp_path, DEVICE, [candidate()]))
    lie = ShaderModule("saxpy/f32/X", SAXPY, replace(SIGNATURE, workgroup=32))
    for bad, words in (
        (candidate(module=lie), "the signature says 32"),
        (candidate(family="Saxpy"), "family"),
        (candidate(template_sha256="?"), "template_sha256"),
        (candidate(module=replace(lie, spirv=b"not SPIR-V, but long enough!")), "little-endian"),
    ):
        with pytest.raises(PackError, match=words) as caught:
            pack(tmp_path, DEVICE, [bad])
        assert "\n" not in str(caught.value)
    with pytest.raises(PackError, match="two winners"):
        pack(tmp_path, DEVICE, [candidate(), candidate(rows=2)])
    for name in ("..", "...", ".hidden"):
        with pytest.raises(PackError, match="cannot name a folder"):
            pack(tmp_path, replace(DEVICE, name=name), [candidate()])
    assert contents(tmp_path / "example-x1") == old
    assert [p.name for p in tmp_path.iterdir()] == ["example-x1"]


def test_merge_keeps_other_problems_of_the_same_template(tmp_path: Path) -> None:
    old = [
        candidate(1, 50.0),
        candidate(2, 60.0, rows=2),
        candidate(3, family="scale", module=ShaderModule("scale/f32", SAXPY, SIGNATURE)),
    ]
    pack(tmp_path, DEVICE, old, toolchain=TOOLCHAIN, ceilings={"peak_gflops": 1.0})
    path = pack(tmp_path, DEVICE, [candidate(1, 70.0, rows=3)], toolchain=TOOLCHAIN, merge=True)
    bundle = open_bundle(path, DEVICE)
    bundle.check()
    found = {(e.family, e.problem["N"]): e.median_ns for e in bundle.entries}
    assert found == {("saxpy", 1): 70, ("saxpy", 2): 60, ("scale", 3): 1000}
    assert bundle.manifest.ceilings == (("peak_gflops", 1.0),)

    changed = candidate(4, template_sha256="c" * 64)
    path = pack(
        tmp_path,
        DEVICE,
        [changed],
        toolchain=TOOLCHAIN,
        merge=True,
        template_hashes={"scale": "a" * 64},
    )
    assert [(e.family, e.problem["N"]) for e in open_bundle(path).entries] == [
        ("saxpy", 4),
        ("scale", 3),
    ]
    stale = {"scale": "d" * 64}
    pack(tmp_path, DEVICE, [changed], toolchain=TOOLCHAIN, merge=True, template_hashes=stale)
    assert [e.family for e in open_bundle(path).entries] == ["saxpy"]
    pack(tmp_path, DEVICE, old, toolchain=TOOLCHAIN)
    pack(
        tmp_path, DEVICE, [changed], toolchain=TOOLCHAIN, merge=True, template_hashes=stale,
        is_same=lambda entry: entry.family == "scale",
    )  # fmt: skip
    found = {(e.family, e.template_sha256) for e in open_bundle(path).entries}
    assert found == {("saxpy", "c" * 64), ("scale", "d" * 64)}
    pack(tmp_path, DEVICE, [candidate(9)])
    assert [e.problem["N"] for e in open_bundle(path).entries] == [9]


def test_merge_keeps_nothing_of_another_driver_or_compiler(tmp_path: Path) -> None:
    pack(tmp_path, DEVICE, [candidate(1)], toolchain=TOOLCHAIN)
    newer = replace(DEVICE, driver_version=999)
    path = pack(tmp_path, newer, [candidate(2)], toolchain=TOOLCHAIN, merge=True)
    assert [e.problem["N"] for e in open_bundle(path).entries] == [2]
    other = Toolchain(TOOLCHAIN.kernelforge, "12.0.0", TOOLCHAIN.flags)
    pack(tmp_path, newer, [candidate(3)], toolchain=other, merge=True)
    assert [e.problem["N"] for e in open_bundle(path).entries] == [3]


def test_merge_keeps_nothing_of_another_processor(tmp_path: Path) -> None:
    fast, slow = (replace(DEVICE, processor=name) for name in ("Fast 9000", "Slow 10"))
    pack(tmp_path, fast, [candidate(1)], toolchain=TOOLCHAIN)
    path = pack(tmp_path, slow, [candidate(2)], toolchain=TOOLCHAIN, merge=True)
    found = open_bundle(path)
    assert [e.problem["N"] for e in found.entries] == [2]
    assert found.manifest.device.processor == "Slow 10"


def test_merge_with_kernels_of_a_processor_not_known_claims_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(tmp_path, DEVICE, [candidate(1)], toolchain=TOOLCHAIN)
    here = replace(DEVICE, processor="Fast 9000")
    path = pack(tmp_path, here, [candidate(2)], toolchain=TOOLCHAIN, merge=True)
    found = open_bundle(path)
    assert [e.problem["N"] for e in found.entries] == [1, 2]
    assert found.manifest.device.processor == ""
    assert "a processor not known" in caplog.text
    replaced = [candidate(1), candidate(2)]
    pack(tmp_path, here, replaced, toolchain=TOOLCHAIN, merge=True)
    assert open_bundle(path).manifest.device.processor == "Fast 9000"


def test_merge_with_a_damaged_bundle_is_an_error(tmp_path: Path) -> None:
    path = pack(tmp_path, DEVICE, [candidate()])
    (path / "kernels.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PackError, match=r"was not written: .*kernels\.safetensors"):
        pack(tmp_path, DEVICE, [candidate()], merge=True)
    pack(tmp_path, DEVICE, [candidate()])
    open_bundle(path, DEVICE).check()


def test_the_generic_bundle_is_packed_like_any_other(tmp_path: Path) -> None:
    unmeasured = candidate(median_ns=0.0, spread_ns=0.0, default_ns=0.0, trials=0)
    assert open_bundle(pack(tmp_path, GENERIC, [unmeasured])).manifest.device.generic


def test_unwritable_output_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match=r"cannot be written: .*; free space or choose") as caught:
        pack(tmp_path / "file", DEVICE, [candidate()])
    assert "\n" not in str(caught.value)
    with pytest.raises(PackError, match="cannot be written"):
        pack("/proc/kernelforge", DEVICE, [candidate()])


def test_folders_that_hold_more_than_a_bundle_are_left_alone(tmp_path: Path) -> None:
    path = pack(tmp_path, DEVICE, [candidate()])
    (path / "notes.txt").write_text("mine")
    with pytest.raises(PackError, match=r"also holds 'notes\.txt'"):
        pack(tmp_path, DEVICE, [candidate()])
    assert (path / "notes.txt").read_text() == "mine"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackError, match="is a link"):
        pack(tmp_path, DEVICE, [candidate()])


CHILD = """
import itertools, resource, signal, sys
from tests.toolkit.test_pack import DEVICE, candidate, pack
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    pack(sys.argv[1], DEVICE, [candidate(7, rows=7)])
print("ready", flush=True)
for turn in itertools.count():
    pack(sys.argv[1], DEVICE, [candidate(n, rows=turn % 5 + 1) for n in range(1, 4 + turn % 9)])
"""


def child(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), mode],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = contents(pack(tmp_path, DEVICE, [candidate(n) for n in (1, 2)]))
    with child(tmp_path, "full") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "PackError: bundle" in errors.splitlines()[-1]
    assert "cannot be written: File too large" in errors.splitlines()[-1]
    assert contents(tmp_path / "example-x1") == old
    assert [p.name for p in tmp_path.iterdir()] == ["example-x1"]


def test_a_bundle_is_never_half_written(tmp_path: Path) -> None:
    pack(tmp_path, DEVICE, [candidate()])
    rng = random.Random(1)
    for _ in range(4):
        with child(tmp_path, "loop") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            end = time.monotonic() + 0.1 + 0.05 * rng.random()
            while time.monotonic() < end:  # a reader never sees half of one and half of another
                open_bundle(tmp_path / "example-x1", DEVICE)
            process.send_signal(signal.SIGKILL)
        open_bundle(tmp_path / "example-x1", DEVICE).check()
    pack(tmp_path, DEVICE, [candidate()])
    assert [p.name for p in tmp_path.iterdir()] == ["example-x1"]  # what the killed left is gone


def test_choose_takes_the_fastest_verified_variant() -> None:
    chosen = choose(
        [
            candidate(1, 50.0, 1),
            candidate(1, 40.0, 2),
            candidate(1, 10.0, 3, verification=Checked(ok=False)),
            candidate(2, 90.0, 1),
            candidate(2, 80.0, 1),
        ]
    )
    assert [(w.problem["N"], w.median_ns) for w in chosen] == [(1, 40.0), (2, 80.0)]
    assert choose([]) == []


def laid_out(layout: str, **changes: Any) -> Winner:
    made = candidate(**changes)
    x, *rest = SIGNATURE.bindings
    signature = replace(SIGNATURE, bindings=(replace(x, layout=layout), *rest))
    return replace(made, module=replace(made.module, signature=signature))


def test_the_fastest_of_every_layout_is_kept_and_packed(tmp_path: Path) -> None:
    tiled = [laid_out("N/4 N%4", rows=1, median_ns=20), laid_out("N/4 N%4", rows=2, median_ns=30)]
    plain = [candidate(rows=3, median_ns=90), candidate(rows=4, median_ns=80)]
    chosen = choose([*tiled, *plain])
    assert [(w.module.name[-1], w.module.signature.layouts) for w in chosen] == [
        ("4", ()),
        ("1", (("x", "N/4 N%4"),)),
    ]
    bundle = open_bundle(pack(tmp_path, DEVICE, chosen, toolchain=TOOLCHAIN), DEVICE)
    assert [entry.median_ns for entry in bundle.entries] == [80, 20]
    again = pack(tmp_path, DEVICE, [laid_out("N/4 N%4", median_ns=9)], merge=True,
                 toolchain=TOOLCHAIN)  # fmt: skip
    assert [entry.median_ns for entry in open_bundle(again).entries] == [80, 9]


def test_choose_shares_modules_within_the_slack() -> None:
    candidates = [
        candidate(1, 100.0, 1),
        candidate(1, 102.0, 2),
        candidate(2, 100.0, 2),
        candidate(3, 100.0, 3),
        candidate(3, 104.0, 2),
    ]
    names = [w.module.name[-1] for w in choose(candidates)]
    assert names == ["1", "2", "3"]
    names = [w.module.name[-1] for w in choose(candidates, slack=0.03)]
    assert names == ["2", "2", "3"]
    assert choose(candidates[::-1], slack=0.03) == choose(candidates, slack=0.03)


def test_a_winner_is_made_from_a_measurement() -> None:
    module = ShaderModule("saxpy/f32/ROWS1", SAXPY, SIGNATURE)
    measured = Measurement(
        family="saxpy",
        precision="f32",
        problem="N64",
        variant=module.name,
        outcome=Outcome.OK,
        median_ns=12.0,
        spread_ns=1.0,
        max_error=0.5,
        tolerance=1.0,
        seed=4,
        template_sha256="a" * 64,
        glsl_sha256="b" * 64,
        spirv_sha256=module.sha256,
    )
    made = winner(measured, module, trials=3, default_ns=20.0)
    assert (made.problem, made.median_ns, made.verification.ok) == (Problem(N=64), 12.0, True)
    wrong = replace(measured, outcome=Outcome.WRONG_RESULT)
    assert not winner(wrong, module, 3, 20.0).verification.ok
    with pytest.raises(PackError, match="measure it again"):
        winner(replace(measured, spirv_sha256="f" * 64), module, 3, 20.0)


def test_beside_a_kernel_for_multiples_one_for_all_sizes_is_packed(tmp_path: Path) -> None:
    aligned = ShaderModule(
        "saxpy/f32/ROWS9", with_constant(9), replace(SIGNATURE, multiples=(("N", 32),))
    )
    some = [
        candidate(64, 900, module=aligned),
        candidate(64, 1000, rows=1),
        candidate(64, 1100, rows=2),
        candidate(128, 900, module=aligned),
        candidate(128, 800, rows=2),  # here the other has no purpose
    ]
    chosen = choose(some)
    assert [(w.problem["N"], w.module.name[-1]) for w in chosen] == [
        (64, "1"),
        (64, "9"),
        (128, "2"),
    ]
    bundle = open_bundle(pack(tmp_path, DEVICE, chosen, toolchain=TOOLCHAIN), DEVICE)
    assert [e.signature.is_limited for e in bundle.entries] == [False, True, False]
