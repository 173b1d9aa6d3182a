"""wkv7: chunks, padding beyond step[0], extreme decays, and a thousand tokens."""

import numpy as np
import pytest

from kernelforge.families.wkv7 import WKV7
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, unwritten, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"WORKGROUP": 16, "LANES": 1, "ROWS": 2},
    {"WORKGROUP": 64, "LANES": 4, "ROWS": 1},
    {"WORKGROUP": 8, "LANES": 8, "ROWS": 4},
    {"WORKGROUP": 4, "LANES": 4, "ROWS": 4, "ADDRESS": True},
)


@pytest.mark.parametrize("valid", [0, 1, 5])
def test_tokens_beyond_the_step_change_neither_output_nor_state(device, rng, valid):
    problem = Problem(T=8, H=2, N=32)
    given = WKV7.inputs(problem, F32, rng)
    given["step"][0] = valid
    given["in_s"][:, valid:] = np.nan
    shorter = {**given, "in_s": given["in_s"][:, :valid]}
    expected = (
        WKV7.oracle(Problem(T=max(valid, 1), H=2, N=32), F32, shorter, {})
        if valid
        else {"state": given["state"]}
    )
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        found = run(device, WKV7, F32, params, problem, given)
        assert unwritten(found["out_y"][valid:]).all(), params
        if valid:
            assert_close(
                WKV7, problem, {"out_y": found["out_y"][:valid]}, {"out_y": expected["out_y"]}
            )
        assert_close(WKV7, problem, found, {"state": expected["state"]}, params)


def test_a_step_beyond_the_chunk_runs_the_chunk_and_no_more(device, rng):
    problem = Problem(T=3, H=1, N=32)
    given = WKV7.inputs(problem, F32, rng)
    expected = WKV7.oracle(problem, F32, given, {})
    given["step"][0] = 2**32 - 1
    for params in variants(WKV7, F32, device, problem):
        assert_close(WKV7, problem, run(device, WKV7, F32, params, problem, given), expected)


def test_a_chunk_is_the_same_as_its_tokens_one_by_one(device, rng):
    problem, one = Problem(T=11, H=2, N=64), Problem(T=1, H=2, N=64)
    given = WKV7.inputs(problem, F32, rng)
    for params in variants(WKV7, F32, device, problem, *SHAPES[:2]):
        whole = run(device, WKV7, F32, params, problem, given)
        state, rows = given["state"], []
        for t in range(11):
            single = {
                "in_s": given["in_s"][:, t : t + 1],
                "state": state,
                "step": np.uint32([1, 0, 0, 0]),
            }
            found = run(device, WKV7, F32, params, one, single)
            state = found["state"]
            rows.append(found["out_y"][0])
        np.testing.assert_array_equal(whole["out_y"], np.stack(rows))
        np.testing.assert_array_equal(whole["state"], state)


@pytest.mark.parametrize("decay", [np.exp(-0.6065306597), 0.9999999, 1.0])
def test_the_ends_of_the_decay_s_range_are_right(device, rng, decay):
    """Sigmoid is at most 1, so that a decay is at least exp(-e^-0.5), about 0.545."""
    problem = Problem(T=64, H=1, N=32)
    given = WKV7.inputs(problem, F32, rng)
    given["in_s"][1] = decay
    expected = WKV7.oracle(problem, F32, given, {})
    for params in variants(WKV7, F32, device, problem, *SHAPES[:3]):
        assert_close(
            WKV7, problem, run(device, WKV7, F32, params, problem, given), expected, params
        )


@pytest.mark.parametrize("decay", [None, 0.9999])
def test_a_thousand_tokens_stay_finite_and_near_float64(device, rng, decay):
    """Error of the largest value: 1.3e-7 on both devices; 8.5e-7 with slow decay on llvmpipe."""
    problem = Problem(T=1024, H=1, N=64)
    given = WKV7.inputs(problem, F32, rng)
    if decay is not None:
        given["in_s"][1] = decay
    expected = WKV7.oracle(problem, F32, given, {})
    for params in variants(WKV7, F32, device, problem, SHAPES[2]):
        found = run(device, WKV7, F32, params, problem, given)
        for name in ("out_y", "state"):
            assert np.isfinite(found[name]).all()
            error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
            assert error < 3e-6, f"{name} {error} {params}"


def test_heads_do_not_see_each_other(device, rng):
    problem = Problem(T=4, H=3, N=32)
    given = WKV7.inputs(problem, F32, rng)
    changed = {n: a.copy() for n, a in given.items()}
    changed["in_s"][:, :, 1] += 1
    changed["state"][1] = 7
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        a, b = (run(device, WKV7, F32, params, problem, g) for g in (given, changed))
        for name, axis in (("out_y", 1), ("state", 0)):
            kept = [np.delete(x[name], 1, axis) for x in (a, b)]
            np.testing.assert_array_equal(*kept)
            assert not np.array_equal(a[name], b[name])


def test_a_state_that_is_carried_along_without_decay_or_input_stays_as_it_is(device, rng):
    problem = Problem(T=5, H=1, N=32)
    given = WKV7.inputs(problem, F32, rng)
    given["in_s"][1], given["in_s"][2:] = 1, 0
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        found = run(device, WKV7, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"], given["state"])
