"""VkFFT beside our kernels: what is said, kept and shown of it, and what where it is not there."""

import argparse
import importlib.util
import json
import textwrap

import numpy as np
import pytest

from kernelforge.cli.bench_fft import fft_limits
from kernelforge.cli.bench_peers import VKFFT, Absent
from kernelforge.cli.output import Output
from kernelforge.errors import PeerError
from kernelforge.families.wkv4 import WKV4
from kernelforge.measure.fft_wkv import wkv4_by_fft
from kernelforge.peers.fft import open_fft
from kernelforge.report.bench_journal import append_bench, read_limits
from kernelforge.report.cells import NONE
from kernelforge.report.fft import FftLimits, FormTime
from kernelforge.report.frame import gather
from kernelforge.report.tables import tables
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.toolkit.cli_process import kernelforge, tiny_model
from tests.toolkit.test_peers import record

FORMS = (
    FormTime("wkv4", 16, "wkv4", 0.1),
    FormTime("wkv4", 16, "fft", 0.4, 1e-6),
    FormTime("wkv4", 1024, "wkv4", 2.0),
    FormTime("wkv4", 1024, "fft", 1.5, 2e-6),
)
FAKE = """
    import numpy
    class device_type:
        CPU = 2
    class Device:
        def __init__(self, name, kind): self.name, self.type = name, kind
    class Platform:
        name = "Fake"
        def get_devices(self): return [Device("Some CPU", 2), Device("NVIDIA X 100", 4)]
    def get_platforms(): return [Platform()]
    def Context(devices): return devices
    def CommandQueue(context): return context
"""


def limits(copy: float = 10.0, **changes) -> FftLimits:
    values = {"label": "VkFFT 1", "gbps": {256: 9.0, 1024: 11.4}, "copy_gbps": copy}
    return FftLimits(**{**values, **changes})


def absent() -> Absent:
    return Absent(Output(argparse.Namespace(json=True, quiet=True)))


@pytest.mark.parametrize(("copy", "flagged"), [(10.0, False), (9.8, True), (13.5, True)])
def test_bandwidths_more_than_15_percent_apart_are_flagged(copy, flagged) -> None:
    found = limits(copy)
    assert found.flagged is flagged
    assert ("MORE THAN 15% APART" in found.sentence()) is flagged
    assert "11.40 GB/s at length 1024" in found.sentence()


def test_the_fastest_form_is_named_for_each_number_of_tokens() -> None:
    found = limits(forms=FORMS).crossovers()
    assert found == ["wkv4: fastest is wkv4 at 16, fft at 1024 tokens"]


def test_limits_survive_the_journal_and_are_a_table_of_the_report(tmp_path) -> None:
    path = tmp_path / "bench.jsonl"
    known = limits(9.0, forms=FORMS, sizes="64 channels")
    append_bench(path, [record()], None, {"fft": known.to_json()})
    assert FftLimits.from_json(read_limits(path, "fft") or {}) == known
    frame = gather(tmp_path, "d")
    (table,) = [table for table in tables(frame) if table.name == "fft"]
    assert len(table.rows) == len(known.gbps) + 2 + len(FORMS)
    assert ("bandwidth", NONE, "VkFFT beyond our copy", "26.67", "%", "over 15 %") in table.rows
    assert "MORE THAN 15% APART" in table.note


@pytest.mark.parametrize(
    "broken", [{"gbps": {}}, {"copy_gbps": 0}, {"forms": [{"form": "x"}]}, {"gbps": {"x": 1}}]
)
def test_a_damaged_record_of_vkfft_is_left_out_of_the_report(broken, tmp_path) -> None:
    data = {**limits(forms=FORMS).to_json(), **broken}
    append_bench(tmp_path / "bench.jsonl", [record()], None, {"fft": data})
    assert gather(tmp_path, "d").fft is None


@pytest.mark.parametrize(
    ("name", "cpu", "found"),
    [
        ("llvmpipe (LLVM 15)", True, "on Some CPU, Fake"),
        ("NVIDIA X 100", False, "on NVIDIA X 100, Fake"),
        ("NVIDIA X 200", False, ""),
    ],
)
def test_the_same_silicon_is_found_or_named_as_missing(
    name, cpu, found, tmp_path, monkeypatch
) -> None:
    (tmp_path / "pyopencl.py").write_text(textwrap.dedent(FAKE))
    (tmp_path / "pyvkfft").mkdir()
    (tmp_path / "pyvkfft" / "__init__.py").write_text("")
    (tmp_path / "pyvkfft" / "opencl.py").write_text("VkFFTApp = None")
    dist = tmp_path / "pyvkfft-9.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: pyvkfft\nVersion: 9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if found:
        with open_fft(name, cpu, None) as fft:
            assert fft.label == f"VkFFT (pyvkfft 9) through OpenCL {found}"
    else:
        message = "no OpenCL device is NVIDIA X 200; there is Some CPU, NVIDIA X 100"
        with pytest.raises(PeerError, match=message), open_fft(name, cpu, None):
            pass


def test_without_pyvkfft_there_is_one_line() -> None:
    class Device:
        info = argparse.Namespace(name="x", device_type="cpu")

    left_out, ceilings = absent(), argparse.Namespace(copy_gbps=1.0)
    assert fft_limits([VKFFT], Device, ceilings, "/nowhere/python", left_out) is None  # type: ignore[arg-type]
    assert left_out.reasons[VKFFT].startswith("/nowhere/python: cannot be started")
    left_out = absent()
    assert fft_limits([VKFFT], Device, None, None, left_out) is None  # type: ignore[arg-type]
    assert "no bandwidth of our copy" in left_out.reasons[VKFFT]
    assert fft_limits(["rwkv"], Device, None, None, left_out) is None  # type: ignore[arg-type]


def test_numpy_has_no_kernels_that_vkfft_could_be_held_against() -> None:
    done = kernelforge(
        "bench", tiny_model(), "--device", "cpu", "--pp", "0", "--tg", "1", "--reps", "1",
        "--peer", "vkfft", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["peers_left_out"]
    assert found["peer"] == "vkfft"
    assert done.stderr.startswith("peer vkfft is left out: it is held against kernels")


def test_vkfft_transforms_as_numpy_does() -> None:
    if importlib.util.find_spec("pyvkfft") is None or importlib.util.find_spec("pyopencl") is None:
        pytest.skip("no package pyvkfft: the extra fft has it, `make setup` installs it")
    rng = np.random.default_rng(0)
    problem = Problem(T=33, C=4, B=1, P=12)
    given = WKV4.inputs(problem, F32, rng)
    given["in_p"][:, 4:8] /= 3
    try:
        with open_fft("llvmpipe", True, None) as fft:
            found = wkv4_by_fft(problem, given, fft.convolve)
            assert fft.spent_s > 0
            assert fft.bandwidth(1 << 16, [256])[256] > 0
    except PeerError as error:
        if "no OpenCL device" in str(error) or "PLATFORM_NOT_FOUND" in str(error):
            pytest.skip(f"no OpenCL here: {error}")
        raise
    assert np.allclose(found["out_y"], WKV4.oracle(problem, F32, given, {})["out_y"], atol=1e-3)
