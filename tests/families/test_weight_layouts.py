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
from tests.families.running import assert_close, run, variants

FORMATS = [F32, BF16, F16, Q8, NF4]
LAYOUTS = [value for value in LAYOUT.values if value != "rows"]
GEMV_SHAPES = (
    {"REDUCE": "subgroup", "WORKGROUP": 16, "LANES": 4, "ROWS": 8},
    {"REDUCE": "shared", "WORKGROUP": 16, "LANES": 4, "ROWS": 8},
    {"REDUCE": "shared", "WORKGROUP": 32, "LANES": 8, "ROWS": 1, "ADDRESS": True},
    {"REDUCE": "hybrid", "WORKGROUP": 64, "LANES": 64, "ROWS": 32, "UNROLL": 1},
    {"REDUCE": "shared", "WORKGROUP": 4, "LANES": 4, "ROWS": 8, "VEC": 1, "INPUT": "sparse"},
    {"REDUCE": "shared", "WORKGROUP": 4, "LANES": 4, "ROWS": 4, "COLS": 2, "UNROLL": 1},
)
TILE = {"FORM": "tile", "WORKGROUP": 64, "BM": 32, "BT": 32, "TM": 4, "TT": 4}
GEMM_SHAPES = (
    {**TILE, "BK": 16},
    {**TILE, "BK": 32, "ADDRESS": True},
    {**TILE, "BM": 64, "TM": 8, "PREFETCH": True, "BK": 16},
    {**TILE, "WORKGROUP": 16, "BM": 16, "BT": 16, "BK": 16},
    {"FORM": "broadcast", "WORKGROUP": 8, "TM": 1, "TT": 8},
    {"FORM": "broadcast", "WORKGROUP": 8, "TM": 4, "TT": 4, "ADDRESS": True},
)


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize("precision", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("family", "shapes"), [(GEMV, GEMV_SHAPES), (GEMM, GEMM_SHAPES)], ids=["gemv", "gemm"]
)
def test_every_layout_gives_the_row_major_result_to_the_bit(device, rng, family, shapes, precision):
    """Layouts and shapes meet in turns: all pairs would take minutes to compile."""
    compared = set()
    for turn, problem in enumerate(family.corner_problems[:4]):
        given = family.inputs(problem, precision, rng)
        expected = family.oracle(problem, precision, given, {})
        for number, shape in enumerate(shapes):
            changes = [{**shape, "LAYOUT": layout} for layout in LAYOUTS]
            tried = variants(family, precision, device, problem, *changes)[1:]
            if not tried:
                continue
            params = tried[(turn + number) % len(tried)]
            found = run(device, family, precision, params, problem, given)
            assert_close(family, problem, found, expected, params)
            plain = run(device, family, precision, {**params, "LAYOUT": "rows"}, problem, given)
            np.testing.assert_array_equal(found["out_y"], plain["out_y"], str(params))
            compared.add(params["LAYOUT"])
    assert compared == set(LAYOUTS)


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
