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
from kernelforge_runtime.bundle import Entry, KernelSet, open_bundle, select
from kernelforge_runtime.bundle.signature import signature_from_json
from kernelforge_runtime.dtypes import F16, F32, NF4, Q8, U32
from kernelforge_runtime.errors import BundleError, PlanError
from kernelforge_runtime.layout import Layout, LayoutError
from kernelforge_runtime.ops.device_weights import DeviceWeights
from kernelforge_runtime.ops.vocabulary import Part
from kernelforge_runtime.ops.weight_layout import choose_layouts, packed
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.weight_formats import WeightFormats
from tests.runtime.bundle_files import DEVICE, SIGNATURE, entry, write_bundle
from tests.runtime.kernels import kernel

TILES = (("weight", "M/32 K/4 M%32 K%4"),)
WEIGHT = Binding("weight", F32, ("M", "K"), layout=TILES[0][1])
TILED = replace(SIGNATURE, bindings=(replace(SIGNATURE.bindings[0], layout="N/4 N%4"),))
TILED_N = (("x", "N/4 N%4"),)


def laid_out(layout):
    return replace(SIGNATURE.bindings[0], layout=layout)


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
    assert bundles[0].layouts("saxpy", "f32") == [TILED_N]
    with pytest.raises(BundleError, match=r"no kernel for saxpy f32 N1024, x laid out as 'N'"):
        kernels.select("saxpy", "f32", problem, (("x", "N"),))


def test_a_problem_has_one_kernel_of_each_layout(tmp_path):
    problem = Problem(N=1024)
    both = [entry(problem, signature=TILED), entry(problem)]
    bundle = open_bundle(write_bundle(tmp_path / "both", DEVICE, both))
    assert bundle.layouts("saxpy", "f32") == [(), TILED_N]
    assert [len(bundle.problems("saxpy", "f32", o)) for o in ((), TILED_N)] == [1, 1]


@pytest.mark.parametrize("layout", ["N/4 N%8", "N%4", "M", "N N", "N/4 N%4 N"])
def test_a_layout_that_does_not_fit_its_own_problem_is_refused_in_one_line(layout):
    signature = replace(SIGNATURE, bindings=(laid_out(layout), SIGNATURE.bindings[1]))
    with pytest.raises(BundleError, match=r"^binding x: layout '.*") as error:
        Entry.from_json(entry(signature=signature).to_json())
    assert "\n" not in str(error.value)


AXES = (Binding("weight", F32, ("M", "K")), *SIGNATURE.bindings)
BY4, BY8 = "M/4 K/4 M%4 K%4", "M/8 K/4 M%8 K%4"


def offer(family, layout, median, m=64, bits=32):
    """An entry of a product; what its module computes matters to nobody here."""
    signature = replace(
        SIGNATURE,
        bindings=(replace(AXES[0], layout=layout), *AXES[1:]),
        fixed=(("X", bits), ("Y", bits)),
    )
    tokens = 1 if family == "gemv" else 256
    problem = Problem(M=m, K=64, S=1, T=tokens, X=bits, Y=bits)
    return entry(problem, family, signature=signature, median_ns=median)


def chosen(folder, entries, activations=F32, rows=64, k=64):
    bundle = open_bundle(write_bundle(folder / str(len(list(folder.iterdir()))), DEVICE, entries))
    found = choose_layouts(KernelSet([bundle]), F32, rows, k, activations)
    return dict(found).get("weight", "")


def test_decode_chooses_the_layout_of_those_that_both_families_have(tmp_path):
    decode = [offer("gemv", "", 100), offer("gemv", BY4, 50), offer("gemv", BY8, 70)]
    assert chosen(tmp_path, [*decode, offer("gemm", "", 10)]) == ""
    prefill = [offer("gemm", "", 10), offer("gemm", BY8, 90)]
    assert chosen(tmp_path, [*decode, *prefill]) == BY8
    assert chosen(tmp_path, [*decode, *prefill, offer("gemm", BY4, 95)]) == BY4


def test_prefill_chooses_where_decode_is_as_good_as_equal(tmp_path):
    decode = [offer("gemv", "", 102), offer("gemv", BY4, 100)]
    assert chosen(tmp_path, [*decode, offer("gemm", "", 10), offer("gemm", BY4, 12)]) == ""
    assert chosen(tmp_path, [*decode, offer("gemm", "", 12), offer("gemm", BY4, 10)]) == BY4


def test_times_are_compared_at_the_nearest_problem_alone(tmp_path):
    near = [offer("gemv", "", 100), offer("gemv", BY4, 110)]
    far = [offer("gemv", "", 900, m=4096), offer("gemv", BY4, 5, m=4096)]
    prefill = [offer("gemm", "", 10), offer("gemm", BY4, 10)]
    assert chosen(tmp_path, [*near, *far, *prefill]) == ""
    assert chosen(tmp_path, [*near, *far, *prefill], rows=4096) == BY4


def test_a_layout_must_serve_every_type_of_activations(tmp_path):
    full = [offer("gemv", BY4, 5), offer("gemm", BY4, 5)]
    assert chosen(tmp_path, full) == BY4
    assert chosen(tmp_path, full, F16) == ""


def test_row_major_wins_where_nothing_was_measured(tmp_path):
    entries = [offer(family, layout, 0) for family in ("gemm", "gemv") for layout in ("", BY4)]
    assert chosen(tmp_path, entries) == ""


@pytest.mark.parametrize(
    "layout", ["M K+9999", "M/99 M%99 K", "K/2 M K%2+1", "M/4 K M%4", "M K/64 K%64+32"]
)
def test_a_layout_that_wastes_memory_or_does_not_fit_is_not_taken(tmp_path, layout):
    entries = [offer("gemv", layout, 5, m=64), offer("gemm", layout, 5, m=64)]
    found = chosen(tmp_path, entries, rows=32, k=64)
    assert found == (layout if layout == "M/4 K M%4" else "")


def test_only_weights_are_packed(tmp_path):
    entries = [
        replace(e, signature=replace(e.signature, bindings=(*AXES[:1], laid_out("N"), AXES[2])))
        for e in (offer("gemv", "", 5), offer("gemm", "", 5))
    ]
    with_n = [replace(e, problem=Problem(**{**e.problem, "N": 4})) for e in entries]
    assert chosen(tmp_path, with_n) == ""


@pytest.mark.parametrize("dtype", [Q8, NF4], ids=str)
def test_words_of_weights_are_packed_by_the_weight(dtype, rng):
    per_word = 32 // dtype.bits
    words = rng.integers(0, 2**32, (64, 128 // per_word), np.uint32)
    found = packed(words, dtype, (("weight", "M/32 K/16 M%32 K%16"),))
    run = 16 // per_word
    expected = words.reshape(2, 32, 128 // 16, run).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(found, expected.reshape(-1))
    assert packed(words, dtype, ()) is words
    with pytest.raises(LayoutError, match="neighbours along axis 1"):
        packed(words, dtype, (("weight", "K M"),))


def test_the_tuner_packs_a_familys_row_major_arrays(rng):
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    got = host_bytes(WEIGHT, Problem(M=64, K=8), {"weight": weight})
    assert got.tobytes() == packed(weight, F32, TILES).tobytes()


def test_a_kernel_reads_what_the_loader_packed(device, rng):
    """A row per invocation: in tiles, neighbours in the subgroup read neighbours in memory."""
    shapes = [(40, 61), (7, 64)]  # stacked, each padded to whole blocks of rows
    parts = [Part(f"w{i}", rng.standard_normal(s).astype(np.float32)) for i, s in enumerate(shapes)]
    seen = []
    store = DeviceWeights(device, WeightFormats(F32), lambda form, rows, k: TILES)
    store.on_upload = lambda name, count: seen.append((name, count))
    matrix = store.matrix(parts)
    assert (matrix.rows, matrix.k, matrix.layouts) == (96, 64, TILES)
    assert seen == [("w0", 40 * 61), ("w1", 7 * 64)]
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
