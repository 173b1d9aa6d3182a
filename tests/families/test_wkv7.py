"""wkv7: segments, chunks, padding, extreme decays and removals, and thousands of tokens."""

import numpy as np
import pytest

from kernelforge.families.wkv7 import WKV7
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"WORKGROUP": 16, "LANES": 1, "ROWS": 2},
    {"WORKGROUP": 64, "LANES": 4, "ROWS": 1},
    {"WORKGROUP": 8, "LANES": 8, "ROWS": 4},
    {"WORKGROUP": 4, "LANES": 4, "ROWS": 4, "ADDRESS": True},
    {"WORKGROUP": 8, "LANES": 4, "ROWS": 2, "ADDRESS": True, "STAGE": 4},
    {"WORKGROUP": 8, "LANES": 1, "ROWS": 1, "ADDRESS": True, "STAGE": 1},
)
NOBODY = 2**32 - 1
R, W, K, V, A, B = range(6)


def whole(tokens):
    """One segment of all tokens."""
    return np.uint32([[0, tokens, 0, 0]])


@pytest.mark.parametrize("valid", [0, 1, 5])
def test_tokens_of_no_segment_change_neither_output_nor_state(device, rng, valid):
    problem = Problem(T=8, H=2, N=32, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = whole(valid)
    given["in_s"][:, valid:] = np.nan
    expected = WKV7.oracle(problem, F32, given, {})
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        found = run(device, WKV7, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][valid:], given["out_y"][valid:])
        if not valid:
            np.testing.assert_array_equal(found["state"], given["state"])
        assert_close(WKV7, problem, found, expected, params)


def test_padding_may_hold_any_first_token_and_slot(device, rng):
    problem = Problem(T=4, H=2, N=32, B=3)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[NOBODY, 0, NOBODY, 7], [0, 3, 1, 0], [NOBODY, 0, 1, 0]])
    expected = WKV7.oracle(problem, F32, given, {})
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        found = run(device, WKV7, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"][[0, 2]], given["state"][[0, 2]])
        np.testing.assert_array_equal(found["out_y"][3], given["out_y"][3])
        assert_close(WKV7, problem, found, expected, params)


def test_a_count_beyond_the_step_runs_the_step_and_no_more(device, rng):
    problem = Problem(T=3, H=1, N=32, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = whole(3)
    expected = WKV7.oracle(problem, F32, given, {})
    given["segment"] = whole(NOBODY)
    for params in variants(WKV7, F32, device, problem):
        assert_close(WKV7, problem, run(device, WKV7, F32, params, problem, given), expected)


def test_a_chunk_is_the_same_as_its_tokens_one_by_one(device, rng):
    problem, one = Problem(T=11, H=2, N=64, B=1), Problem(T=1, H=2, N=64, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = whole(11)
    for params in variants(WKV7, F32, device, problem, *SHAPES[:2], *SHAPES[4:]):
        chunk = run(device, WKV7, F32, params, problem, given)
        state, rows = given["state"], []
        for t in range(11):
            single = {
                "in_s": given["in_s"][:, t : t + 1],
                "state": state,
                "segment": whole(1),
                "out_y": given["out_y"][:1],
            }
            found = run(device, WKV7, F32, params, one, single)
            state = found["state"]
            rows.append(found["out_y"][0])
        np.testing.assert_array_equal(chunk["out_y"], np.stack(rows))
        np.testing.assert_array_equal(chunk["state"], state)


def test_segments_in_one_dispatch_equal_each_alone(device, rng):
    problem = Problem(T=16, H=2, N=32, B=4)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[9, 6, 2, 0], [0, 1, 3, 9], [4, 0, 1, 0], [1, 8, 0, 4]])
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        found = run(device, WKV7, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][15], given["out_y"][15])
        np.testing.assert_array_equal(found["state"][1], given["state"][1])
        for first, count, slot, _ in given["segment"].tolist():
            if not count:
                continue
            alone = {
                "in_s": np.ascontiguousarray(given["in_s"][:, first : first + count]),
                "state": given["state"][slot],
                "segment": whole(count),
                "out_y": given["out_y"][:count],
            }
            one = run(device, WKV7, F32, params, Problem(T=count, H=2, N=32, B=1), alone)
            np.testing.assert_array_equal(found["out_y"][first : first + count], one["out_y"])
            np.testing.assert_array_equal(found["state"][slot], one["state"][0])


@pytest.mark.parametrize("decay", [np.exp(-0.6065306597), 0.9999999, 1.0])
def test_the_ends_of_the_decay_s_range_are_right(device, rng, decay):
    """Sigmoid is at most 1, so that a decay is at least exp(-e^-0.5), about 0.545."""
    problem = Problem(T=64, H=1, N=32, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["in_s"][W] = decay
    expected = WKV7.oracle(problem, F32, given, {})
    for params in variants(WKV7, F32, device, problem, *SHAPES[:3], SHAPES[4]):
        assert_close(
            WKV7, problem, run(device, WKV7, F32, params, problem, given), expected, params
        )


def slowly_decaying(given, rng):
    given["in_s"][W] = 0.9999


def decays_at_both_ends(given, rng):
    """Every key channel is at one end of the range, where it stays; rates are 0 or 1."""
    ends = rng.choice([np.exp(-0.6065306597), 0.9999999], given["in_s"].shape[2:])
    given["in_s"][W] = ends
    given["in_s"][B] = -given["in_s"][A] * rng.choice([0, 1], given["in_s"].shape[1:])


def one_key_only(given, rng):
    """All removals along one direction, with rate 1 and almost no decay: the state cannot grow."""
    given["in_s"][W] = 0.9999999
    given["in_s"][A] = given["in_s"][A, :1]
    given["in_s"][B] = -given["in_s"][A]
    given["in_s"][K] = 30 * given["in_s"][B]


@pytest.mark.parametrize("extreme", [None, slowly_decaying, decays_at_both_ends, one_key_only])
def test_thousands_of_tokens_stay_finite_and_near_float64(device, rng, extreme):
    """Error against float64 of 4096 tokens, relative to the largest value, on both devices alike:

    1.2e-7 with decays over their range, 3.4e-7 slow, 7.3e-7 both ends, 4.5e-6 one key only.
    """
    problem = Problem(T=4096, H=1, N=32, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = whole(problem["T"])
    if extreme is not None:
        extreme(given, rng)
    expected = WKV7.oracle(problem, F32, given, {})
    for params in variants(WKV7, F32, device, problem, SHAPES[2])[-1:]:
        found = run(device, WKV7, F32, params, problem, given)
        assert all(np.isfinite(found[name]).all() for name in found)
        assert_close(WKV7, problem, found, expected, params)


def test_heads_do_not_see_each_other(device, rng):
    problem = Problem(T=4, H=3, N=32, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["segment"] = whole(4)
    changed = {n: a.copy() for n, a in given.items()}
    changed["in_s"][:, :, 1] += 1
    changed["state"][:, 1] = 7
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        a, b = (run(device, WKV7, F32, params, problem, g) for g in (given, changed))
        for name in ("out_y", "state"):
            kept = [np.delete(x[name], 1, 1) for x in (a, b)]
            np.testing.assert_array_equal(*kept)
            assert not np.array_equal(a[name], b[name])


def test_a_state_that_is_carried_along_without_decay_or_input_stays_as_it_is(device, rng):
    problem = Problem(T=5, H=1, N=32, B=1)
    given = WKV7.inputs(problem, F32, rng)
    given["in_s"][W], given["in_s"][K:] = 1, 0
    for params in variants(WKV7, F32, device, problem, *SHAPES):
        found = run(device, WKV7, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"], given["state"])
