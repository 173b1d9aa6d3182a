"""gemm with K in parts: sums that meet in memory, the same bits every time."""

import numpy as np
import pytest

from kernelforge.compile import compile_variant
from kernelforge.families.gemm import GEMM
from kernelforge.measure.verify import verify
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import MAX_SCRATCH_BYTES
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.plan import Dispatch, Plan
from tests.families.running import assert_close, run

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SMALL = {"BM": 16, "BT": 8, "BK": 32, "TM": 2, "TT": 4, "WORKGROUP": 16}
WIDE = {"BM": 64, "BT": 32, "TM": 8, "TT": 4, "WORKGROUP": 64, "PREFETCH": True}
WIDE |= {"ADDRESS": True}  # checked access to so many takes long to compile


def params_for(device, precision, x=32, y=32, **changes):
    """A variant that the device can run; the space keeps wide tiles from software devices."""
    params = {**GEMM.space.declared_default, "X": x, "Y": y, **changes}
    if reason := GEMM.fits(precision, params, device.info):
        pytest.skip(f"{device.info.name}: {reason}")
    return params


@pytest.mark.parametrize(
    ("precision", "split", "m", "k", "t", "x", "y", "change"),
    [
        (F32, 2, 96, 64, 5, 32, 32, {}),
        (F32, 8, 32, 1056, 31, 32, 32, SMALL),
        (F32, 8, 32, 96, 9, 32, 32, {}),  # most parts of K are empty
        (F16, 4, 160, 544, 37, 16, 16, {"ADDRESS": True}),
        (BF16, 8, 96, 480, 33, 32, 16, SMALL),
        (Q8, 4, 160, 544, 37, 32, 32, WIDE),
        (NF4, 2, 224, 1056, 9, 16, 32, WIDE),
        (F32, 8, 320, 96, 37, 32, 32, WIDE),
    ],
    ids=str,
)
def test_parts_of_k_add_up_with_every_epilogue(
    device, rng, precision, split, m, k, t, x, y, change
):
    """Rows of random routes; the residual is added once, not once per part."""
    problem = Problem(M=m, K=k, S=3, T=t, X=x, Y=y)
    params = params_for(device, precision, x, y, SPLIT_GRID=split, **change)
    given = GEMM.inputs(problem, precision, rng)
    expected = GEMM.oracle(problem, precision, given, {})
    found = run(device, GEMM, precision, params, problem, given)
    assert_close(GEMM, problem, found, expected, params)


def test_the_tuner_s_check_accepts_it_though_its_memory_starts_as_poison(device):
    params = params_for(device, F16, SPLIT_GRID=4)
    problem = Problem(M=96, K=544, S=2, T=37, X=32, Y=32)
    result = verify(device, GEMM, F16, params, problem, seed=3)
    assert result.ok, result.reason


def test_many_runs_of_one_plan_give_the_same_bits(device, rng):
    """Who arrives last differs from run to run; the order of the sums does not.

    Two products of different sizes take turns with the plan's memory, so that an arrival which
    one forgot would make the other one start early.
    """
    modules, buffers, sizes = [], [], []
    for m, k, t, split in ((96, 544, 70, 8), (160, 480, 33, 4)):
        problem = Problem(M=m, K=k, S=1, T=t, X=32, Y=32)
        params = params_for(device, F32, SPLIT_GRID=split)
        given = GEMM.inputs(problem, F32, rng)
        given["route"][:, 2] = 0
        module = compile_variant(GEMM, F32, params)
        bound = {}
        for binding in module.signature.bindings:
            if not binding.is_own:
                bound[binding.name] = device.buffer(binding.nbytes(problem), binding.name)
                bound[binding.name].upload(given[binding.name])
        modules.append(module)
        buffers.append(bound)
        sizes.append(problem)
    calls = [Dispatch(*c) for c in zip(modules, sizes, buffers, strict=True)]
    try:
        first = None
        with Plan(device, [*calls, *calls]) as plan:
            for _ in range(5):
                for bound in buffers:
                    bound["out_y"].fill(0x7FC0DEAD)
                plan.run()
                found = [bound["out_y"].download(np.uint32) for bound in buffers]
                first = first or found
                for now, then in zip(found, first, strict=True):
                    np.testing.assert_array_equal(now, then)
        assert all(np.isfinite(one.view(np.float32)).all() for one in first)
    finally:
        for bound in buffers:
            for buffer in bound.values():
                buffer.close()


def test_the_tuner_may_share_out_k_where_tiles_are_few_and_nowhere_else(device):
    def splits(**dims):
        problem = Problem(**dims, S=1, X=32, Y=32)
        return {p["SPLIT_GRID"] for p in GEMM.valid(F32, device.info, problem)}

    assert splits(M=256, K=3072, T=16) == {1, 2, 4, 8}
    assert splits(M=768, K=256, T=16) == {1, 2}
    assert splits(M=768, K=64, T=16) == {1}
    assert splits(M=3072, K=3072, T=1024) == {1}


def test_a_problem_whose_partial_sums_are_too_large_is_not_served(device):
    params = params_for(device, F32, SPLIT_GRID=8)
    module = compile_variant(GEMM, F32, params)
    large = Problem(M=4096, K=4096, S=1, T=256, X=32, Y=32)
    assert MAX_SCRATCH_BYTES < 8 * 4096 * 256 * 4
    assert not module.signature.serves(large)
    with pytest.raises(PlanError, match="at most 16 MiB per buffer of its own"):
        Plan(device, [Dispatch(module, large, {})])
