"""Layouts of weights: the same products, whatever order the weights lie in."""

from __future__ import annotations

import numpy as np
import pytest

from kernelforge.families.gemm import GEMM
from kernelforge.families.gemv import GEMV
from kernelforge.measure.workspace import host_bytes
from kernelforge.weight_layouts import LAYOUT, layout_name
from kernelforge_runtime.abi.signature import Binding
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8, QUANTIZED
from kernelforge_runtime.ops.weight_layout import packed
from tests.families.running import assert_close, declared, run

FORMATS = [F32, BF16, F16, Q8, NF4]
LAYOUTS = [value for value in LAYOUT.values if value != "rows"]
ONE = {"REDUCE": "shared", "WORKGROUP": 4, "LANES": 4}
FOUR = {"REDUCE": "shared", "WORKGROUP": 16, "LANES": 4, "ADDRESS": True}
TILE = {"FORM": "tile", "WORKGROUP": 64, "BT": 32, "TT": 4}
TILE |= {"ADDRESS": True}  # checked access takes long to compile, and conformance has it
# Of fewer sums the driver would write out the loop over BK, and compile it for seconds.
NARROW = {**TILE, "BM": 32, "TM": 4, "TT": 8, "BK": 16, "WORKGROUP": 32}
CASES = {
    "rows of four groups": (GEMV, 1, {**FOUR, "ROWS": 8, "LAYOUT": "by32"}),
    "more rows than lie together": (GEMV, 2, {**ONE, "ROWS": 16, "LAYOUT": "by4", "ADDRESS": True}),
    "one word at a time": (GEMV, 1, {**ONE, "ROWS": 8, "VEC": 1, "LAYOUT": "by8"}),
    "sparse": (GEMV, 0, {**ONE, "ROWS": 4, "VEC": 2, "INPUT": "sparse", "LAYOUT": "by4"}),
    "several tokens": (GEMV, 3, {**ONE, "ROWS": 4, "COLS": 2, "LAYOUT": "gap"}),
    "a narrow tile": (GEMM, 1, {**NARROW, "LAYOUT": "by32"}),
    "a tile beyond the last row": (
        GEMM,
        2,
        {**TILE, "BM": 64, "TM": 8, "BK": 32, "PREFETCH": True, "LAYOUT": "by4"},
    ),
    "short loads": (GEMM, 1, {**NARROW, "VEC": 2, "LAYOUT": "gap"}),
    "a broadcast": (
        GEMM,
        2,
        {"FORM": "broadcast", "WORKGROUP": 8, "TM": 2, "TT": 4, "LAYOUT": "by8"},
    ),
}
EVERY_FORMAT = ("rows of four groups", "a narrow tile")
"""Cases that are tried in all of them; the others in one of plain floats and one of blocks."""


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(
    ("case", "precision"),
    [
        (case, precision)
        for case in CASES
        for precision in (FORMATS if case in EVERY_FORMAT else (BF16, NF4))
    ],
    ids=str,
)
def test_every_layout_gives_the_row_major_result_to_the_bit(device, rng, case, precision):
    family, corner, change = CASES[case]
    problem = family.corner_problems[corner]
    params = {**declared(family, problem), **change}
    if why := family.fits(precision, params, device.info):
        pytest.skip(f"{device.info.name}: {why}")
    given = family.inputs(problem, precision, rng)
    found = run(device, family, precision, params, problem, given)
    assert_close(family, problem, found, family.oracle(problem, precision, given, {}), params)
    plain = run(device, family, precision, {**params, "LAYOUT": "rows"}, problem, given)
    np.testing.assert_array_equal(found["out_y"], plain["out_y"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", FORMATS, ids=str)
def test_the_loader_packs_as_the_tuner_does(rng, precision, layout):
    problem = GEMV.corner_problems[1]
    given = GEMV.inputs(problem, precision, rng)
    name = layout_name(layout, precision)
    binding = Binding("weight", precision, ("M", "K"), layout=name)
    loaded = packed(given["weight"], precision, (("weight", name),))
    assert loaded.nbytes == binding.nbytes(problem) >= given["weight"].nbytes
    assert host_bytes(binding, problem, given).tobytes() == loaded.tobytes()
    if layout.startswith("by"):
        assert loaded.tobytes() != given["weight"].tobytes()
        np.testing.assert_array_equal(np.sort(loaded), np.sort(given["weight"].reshape(-1)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", [GEMV, GEMM], ids=["gemv", "gemm"])
def test_scales_stay_row_major(family, layout):
    for precision in QUANTIZED:
        params = {**family.space.declared_default, "LAYOUT": layout}
        layouts = family.signature(precision, params).layouts
        assert layouts == (("weight", layout_name(layout, precision)),)
