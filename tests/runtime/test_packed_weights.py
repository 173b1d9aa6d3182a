"""Weights in the layout that kernels want: named in a manifest, chosen, packed, and read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kernelforge.measure.verify import compare
from kernelforge.measure.workspace import host_bytes
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.bundle import KernelSet, common_layout, open_bundle, select
from kernelforge_runtime.bundle.signature import signature_from_json
from kernelforge_runtime.dtypes import F32, NF4, Q8, U32
from kernelforge_runtime.errors import BundleError, PlanError
from kernelforge_runtime.layout import Layout, LayoutError
from kernelforge_runtime.ops.device_weights import DeviceWeights, packed_as
from kernelforge_runtime.ops.vocabulary import Part
from kernelforge_runtime.plan import Dispatch, Plan
from tests.runtime.bundle_files import DEVICE, SIGNATURE, entry, write_bundle
from tests.runtime.kernels import kernel

TILES = (("weight", "M/32 K/4 M%32 K%4"),)
WEIGHT = Binding("weight", F32, ("M", "K"), layout=TILES[0][1])
TILED = replace(SIGNATURE, bindings=(replace(SIGNATURE.bindings[0], layout="N/4 N%4"),))
TILED_N = (("x", "N/4 N%4"),)


def test_a_binding_takes_the_bytes_of_its_layout():
    assert WEIGHT.nbytes({"M": 64, "K": 8}) == 4 * 64 * 8
    assert WEIGHT.nbytes({"M": 33, "K": 5}) == 4 * 64 * 8
    assert replace(WEIGHT, layout="").nbytes({"M": 33, "K": 5}) == 4 * 33 * 5
    scale = Binding("scale", U32, ("M", "K/64"), layout="K M")
    assert scale.memory({"M": 2, "K": 192}) == Layout.column_major((2, 3))
    assert Binding("weight", NF4, ("M", "K"), layout="M K").nbytes({"M": 2, "K": 64}) == 64


@pytest.mark.parametrize("shape", [("M", 4), ("M", "M"), ("N", "K"), ("M",)])
def test_a_layout_that_does_not_fit_the_shape_is_refused(shape):
    with pytest.raises(PlanError, match="binding weight: "):
        Binding("weight", F32, shape, layout="M K").nbytes({"M": 4, "N": 4, "K": 4})


def test_manifests_have_a_layout_only_where_there_is_one():
    plain = SIGNATURE.to_json()
    assert all(len(binding) == 4 for binding in plain["bindings"])
    assert signature_from_json(plain) == SIGNATURE
    written = json.loads(json.dumps(TILED.to_json()))
    assert written["bindings"] == [["x", "f32", ["N"], "read", "N/4 N%4"]]
    assert signature_from_json(written) == Signature.from_json(written) == TILED
    assert (SIGNATURE.layouts, TILED.layouts) == ((), TILED_N)


@pytest.mark.parametrize("layout", ["", "x" * 97, "n", "N\n", "N;", 3, None])
def test_hostile_layouts_are_refused(layout):
    data = TILED.to_json()
    data["bindings"][0][4] = layout
    with pytest.raises(BundleError, match="binding layout"):
        signature_from_json(data)


def test_only_what_is_read_may_have_a_layout():
    data = SIGNATURE.to_json()
    data["bindings"][1].append("N")
    with pytest.raises(BundleError, match="binding y: only what is read"):
        signature_from_json(data)


def test_kernels_for_another_layout_are_not_selected(tmp_path):
    problem = Problem(N=1024)
    own = write_bundle(tmp_path / "own", DEVICE, [entry(problem, signature=TILED)])
    generic = write_bundle(tmp_path / "generic", GENERIC, [entry(median_ns=0, default_ns=0)])
    bundles = [open_bundle(own), open_bundle(generic)]
    assert select(bundles, "saxpy", "f32", problem, TILED_N).bundle is bundles[0]
    assert select(bundles, "saxpy", "f32", problem).bundle is bundles[1]
    kernels = KernelSet(bundles)
    assert kernels.select("saxpy", "f32", problem, TILED_N).bundle is bundles[0]
    assert kernels.select("saxpy", "f32", problem).bundle is bundles[1]
    assert kernels.common_layout(["saxpy"], "f32") == TILED_N
    assert kernels.common_layout(["saxpy"], "f32", {"N": 4}) == TILED_N
    assert kernels.common_layout(["saxpy"], "f16") == ()


def offer(family, size, layouts, median, default=100, fixed=()):
    binding = replace(SIGNATURE.bindings[0], layout=dict(layouts).get("x", ""))
    signature = replace(SIGNATURE, bindings=(binding,), fixed=fixed)
    return entry(Problem(N=size), family, signature=signature, median_ns=median, default_ns=default)


def test_the_common_layout_is_the_cheapest_that_every_family_has():
    a, b = (("x", "N/4 N%4"),), (("x", "N/8 N%8"),)
    both = [offer("gemv", 1, a, 50), offer("gemv", 2, b, 60), offer("gemm", 1, b, 70)]
    assert common_layout([]) == ()
    assert common_layout(both) == b  # gemm has no kernel for a
    assert common_layout([*both, offer("gemm", 2, a, 10)]) == a
    assert common_layout([*both, offer("gemm", 2, (), 90)]) == b
    assert common_layout([*both, offer("gemm", 2, (), 90), offer("gemv", 3, (), 10)]) == ()
    assert common_layout([*both, offer("other", 1, (), 99)]) == ()


def test_a_layout_must_serve_every_set_of_compiled_in_dimensions():
    a = (("x", "N/4 N%4"),)
    half, full = (("X", 16),), (("X", 32),)
    entries = [offer("gemv", 1, a, 1, fixed=full), offer("gemv", 1, (), 90, fixed=half)]
    assert common_layout(entries[:1]) == a
    assert common_layout(entries) == ()
    assert common_layout([*entries, offer("gemv", 2, a, 1, fixed=half)]) == a


def test_row_major_wins_where_nothing_was_measured():
    a = (("x", "N/4 N%4"),)
    entries = [offer("gemv", 1, a, 0, 0), offer("gemv", 2, (), 0, 0)]
    assert common_layout(entries) == common_layout(entries[::-1]) == ()


@pytest.mark.parametrize("dtype", [Q8, NF4], ids=str)
def test_words_of_weights_are_packed_by_the_weight(dtype, rng):
    per_word = 32 // dtype.bits
    words = rng.integers(0, 2**32, (64, 128 // per_word), np.uint32)
    packed = packed_as(words, "weight", (("weight", "M/32 K/16 M%32 K%16"),), per_word)
    run = 16 // per_word
    expected = words.reshape(2, 32, 128 // 16, run).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(packed, expected.reshape(-1))
    assert packed_as(words, "scale", TILES) is words
    with pytest.raises(LayoutError, match="neighbours along axis 1"):
        packed_as(words, "weight", (("weight", "K M"),), per_word)


def test_a_layout_that_pads_beyond_reason_is_refused():
    for name in ("M K+9999999", "M/9999 M%9999 K"):
        with pytest.raises(BundleError, match="for 1024 elements"):
            packed_as(np.zeros((32, 32), np.float32), "weight", (("weight", name),))


def test_the_tuner_packs_a_familys_row_major_arrays(rng):
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    got = host_bytes(WEIGHT, Problem(M=64, K=8), {"weight": weight})
    assert got.tobytes() == packed_as(weight, "weight", TILES).tobytes()


def test_a_kernel_reads_what_the_loader_packed(device, rng):
    """A row per invocation: in tiles, neighbours in the subgroup read neighbours in memory."""
    shapes = [(40, 61), (7, 64)]  # stacked, each padded to whole blocks of rows
    parts = [Part(f"w{i}", rng.standard_normal(s).astype(np.float32)) for i, s in enumerate(shapes)]
    seen = []
    store = DeviceWeights(
        device, F32, lambda form: TILES, lambda name, size: seen.append((name, size))
    )
    matrix = store.matrix(parts)
    assert (matrix.rows, matrix.k, matrix.layouts) == (96, 64, TILES)
    assert seen == [("w0", 4 * 96 * 64)]
    x = rng.standard_normal(64).astype(np.float32)
    body = """
    float sum = 0.0;
    if (i < M) {
        for (uint k = 0u; k < K; k++)
            sum += weight[((i / 32u * (K / 4u) + k / 4u) * 32u + i % 32u) * 4u + k % 4u] * x[k];
        y[i] = sum;
    }
    """
    bindings = (WEIGHT, Binding("x", F32, ("K",)), Binding("y", F32, ("M",), "write"))
    module = kernel(
        body, bindings, (PushConstant("M"), PushConstant("K")), grid=Grid((CeilDiv("M", 64),))
    )
    x_buffer, y_buffer = device.buffer(256), device.buffer(4 * 96)
    try:
        x_buffer.upload(x)
        operands = {"weight": matrix.weight, "x": x_buffer, "y": y_buffer}
        with Plan(device, [Dispatch(module, {"M": 96, "K": 64}, operands)]) as plan:
            plan.run()
        expected = np.zeros(96)
        for (row, count, _), part in zip(matrix.parts, parts, strict=True):
            width = part.weight.shape[1]
            expected[row : row + count] = part.weight.astype(np.float64) @ x[:width]
        got = y_buffer.download(np.float32)
    finally:
        x_buffer.close()
        y_buffer.close()
        store.arena.close()
    assert compare("y", got, expected, F32, reduction=64).ok
