"""What loading takes of the host's memory: little more than the device's own share of it."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.vk.buffer import Buffer
from tests.models.checkpoints import random_rwkv7

MOST_FILES = 2.3
"""Resident memory of a load where the device is the host, in sizes of the file."""
LOAD = """
import sys
import kernelforge_runtime as kf


def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024


with kf.open_device("llvmpipe") as device:
    kernels = kf.load_bundle(device)
    before = peak()
    kf.load_model(sys.argv[1], device, kernels, weights="f16").close()
    print(peak() - before)
"""


def halve(weights):
    weights |= {name: array.astype(np.float16) for name, array in weights.items()}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("sizes", [{"layers": 6, "width": 640}, {"vocab": 120_000, "width": 128}])
def test_a_load_in_f16_peaks_below_its_share(sizes, tmp_path, llvmpipe):
    path = random_rwkv7(tmp_path / "m.safetensors", change=halve, **sizes)
    # Not getrusage: its peak begins with that of whoever started the process.
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    size = path.stat().st_size
    assert size > 60e6  # the driver takes some 20 MB to make kernels, whatever the model
    assert int(done.stdout) < MOST_FILES * size, f"{int(done.stdout) / size:.2f} sizes of the file"


@pytest.mark.parametrize("weights", ["f16", "q8"])
def test_where_the_host_does_not_see_the_memory_it_never_holds_a_whole_matrix(
    weights, tmp_path, llvmpipe, monkeypatch
):
    path = random_rwkv7(tmp_path / "m.safetensors", change=halve, width=128, vocab=4096)
    bind, visible = Buffer._bind, ("step inputs", "staging")
    kernels = KernelSet.open(llvmpipe.info)
    with kf.load_model(path, llvmpipe, kernels, weights) as model:
        expected, _ = model.forward([5, 6])
    monkeypatch.setattr(
        Buffer, "_bind", lambda self, mapped, doing: bind(self, self.name in visible, doing)
    )
    monkeypatch.setattr("kernelforge_runtime.ops.device_weights.JOB_ELEMENTS", 1 << 13)
    monkeypatch.setattr("kernelforge_runtime.ops.matrix_place.AT_ONCE", 1 << 13)
    monkeypatch.setattr("kernelforge_runtime.stored_matrix.PIECE_ELEMENTS", 1 << 12)
    monkeypatch.setattr("kernelforge_runtime.vk.staging.STAGING_BYTES", 1 << 18)
    peaks = {}

    def told(done, total, name):
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        with kf.load_model(path, llvmpipe, kernels, weights, progress=told) as model:
            tracemalloc.stop()
            assert not any(b.mapped is not None for b in model._ops.store.arena._blocks)
            np.testing.assert_array_equal(model.forward([5, 6])[0], expected)
    finally:
        tracemalloc.stop()
    whole = 4096 * 128 * 4
    held = peaks["head.weight"] - min(peaks.values())
    assert held < whole / 2, f"{held} bytes at once, the matrix has {whole} in float32"
