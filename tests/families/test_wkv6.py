"""wkv6: segments, chunks, shared and own decays, decays that are 0 or 1, thousands of tokens."""

import numpy as np
import pytest

from kernelforge.families.wkv6 import WKV6
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"WORKGROUP": 16, "LANES": 1, "ROWS": 2, "STAGE": 4},
    {"WORKGROUP": 32, "LANES": 4, "ROWS": 2, "ADDRESS": False},
    {"WORKGROUP": 8, "LANES": 8, "ROWS": 4},
    {"WORKGROUP": 4, "LANES": 4, "ROWS": 4, "STAGE": 1},
)
NOBODY = 2**32 - 1


def whole(tokens):
    """One segment of all tokens."""
    return np.uint32([[0, tokens, 0, 0]])


def problem_of(tokens, heads=2, size=32, segments=1, decays=None):
    """Rows that are wider than r, k and v; one decay for each token unless said otherwise."""
    return Problem(
        T=tokens, H=heads, N=size, B=segments, P=4 * heads * size,
        D=tokens if decays is None else decays,
    )  # fmt: skip


def test_a_token_is_read_before_the_update_and_gets_its_bonus(device, rng):
    problem = problem_of(1, heads=1, size=16)
    given = WKV6.inputs(problem, F32, rng)
    given["state"][:] = 0
    r, k, v = given["in_p"][0, :48].astype(np.float64).reshape(3, 16)
    expected = {
        "out_y": ((r * k * given["bonus"][0]).sum() * v)[None, None],
        "state": (v[:, None] * k)[None, None],
    }
    for params in variants(WKV6, F32, device, problem, {"LANES": 4, "WORKGROUP": 4}):
        found = run(device, WKV6, F32, params, problem, given)
        assert_close(WKV6, problem, found, expected, params)


@pytest.mark.parametrize("valid", [0, 1, 5])
def test_tokens_of_no_segment_change_neither_output_nor_state(device, rng, valid):
    problem = problem_of(8)
    given = WKV6.inputs(problem, F32, rng)
    given["segment"] = whole(valid)
    given["in_p"][valid:] = np.nan
    expected = WKV6.oracle(problem, F32, given, {})
    for params in variants(WKV6, F32, device, problem, *SHAPES):
        found = run(device, WKV6, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][valid:], given["out_y"][valid:])
        if not valid:
            np.testing.assert_array_equal(found["state"], given["state"])
        assert_close(WKV6, problem, found, expected, params)


def test_padding_may_hold_any_first_token_and_slot(device, rng):
    problem = problem_of(4, segments=3)
    given = WKV6.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[NOBODY, 0, NOBODY, 7], [0, 3, 1, 0], [NOBODY, 0, 1, 0]])
    expected = WKV6.oracle(problem, F32, given, {})
    for params in variants(WKV6, F32, device, problem, *SHAPES):
        found = run(device, WKV6, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"][[0, 2]], given["state"][[0, 2]])
        assert_close(WKV6, problem, found, expected, params)


@pytest.mark.parametrize("shared", [False, True])
def test_a_chunk_is_the_same_as_its_tokens_one_by_one(device, rng, shared):
    problem, one = problem_of(11, decays=1 if shared else 11), problem_of(1)
    given = WKV6.inputs(problem, F32, rng)
    given["segment"] = whole(11)
    for params in variants(WKV6, F32, device, problem, *SHAPES):
        chunk = run(device, WKV6, F32, params, problem, given)
        state, rows = given["state"], []
        for t in range(11):
            single = {
                "in_p": given["in_p"][t],
                "decay": given["decay"][0 if shared else t],
                "bonus": given["bonus"],
                "state": state,
                "segment": whole(1),
                "out_y": given["out_y"][0],
            }
            found = run(device, WKV6, F32, params, one, single)
            state = found["state"]
            rows.append(found["out_y"][0])
        np.testing.assert_array_equal(chunk["out_y"], np.stack(rows), err_msg=str(params))
        np.testing.assert_array_equal(chunk["state"], state)


def test_segments_in_one_dispatch_equal_each_alone(device, rng):
    problem = problem_of(16, segments=4)
    given = WKV6.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[9, 6, 2, 0], [0, 1, 3, 9], [4, 0, 1, 0], [1, 8, 0, 4]])
    for params in variants(WKV6, F32, device, problem, *SHAPES):
        found = run(device, WKV6, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][15], given["out_y"][15])
        np.testing.assert_array_equal(found["state"][1], given["state"][1])
        for first, count, slot, _ in given["segment"].tolist():
            if not count:
                continue
            alone = {
                "in_p": given["in_p"][first : first + count],
                "decay": given["decay"][first : first + count],
                "bonus": given["bonus"],
                "state": given["state"][slot],
                "segment": whole(count),
                "out_y": given["out_y"][:count],
            }
            one = run(device, WKV6, F32, params, problem_of(count), alone)
            np.testing.assert_array_equal(found["out_y"][first : first + count], one["out_y"])
            np.testing.assert_array_equal(found["state"][slot], one["state"][0])


@pytest.mark.parametrize("raw", [100.0, 10.0, -20.0])
def test_decays_of_zero_and_one_are_exact(device, rng, raw):
    """exp(-exp(10)) underflows to 0 and exp(-exp(-20)) rounds to 1: nothing is kept, or all."""
    problem = problem_of(1, heads=1, decays=1)
    given = WKV6.inputs(problem, F32, rng)
    given["decay"][:] = raw
    given["in_p"][:, 32:64] = 0  # k: nothing new
    kept = given["state"] if raw < 0 else np.zeros_like(given["state"])
    for params in variants(WKV6, F32, device, problem, *SHAPES):
        found = run(device, WKV6, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"], kept)


@pytest.mark.parametrize("decays", ["as in models", "one for all", "0 and 1 mixed", "near 1"])
def test_thousands_of_tokens_stay_finite_and_near_float64(device, rng, decays):
    """Largest error of 4096 tokens against float64, relative to the largest value, on both devices.

    y: 9.6e-8 as in models, 3.9e-6 one for all, 4.8e-6 mixed, 1.3e-6 near 1; state: 1.7e-7, 4.8e-6,
    4.4e-6 and 2e-6.
    """
    problem = problem_of(4096, heads=1, decays=1 if decays == "one for all" else None)
    given = WKV6.inputs(problem, F32, rng)
    given["segment"] = whole(4096)
    if decays == "0 and 1 mixed":
        given["decay"][:] = rng.choice([10, -20], problem["N"])  # a channel stays what it is
    elif decays == "near 1":
        given["decay"][:] = rng.uniform(-12, -6, given["decay"].shape)
    expected = WKV6.oracle(problem, F32, given, {})
    for params in variants(WKV6, F32, device, problem, SHAPES[0])[-1:]:
        found = run(device, WKV6, F32, params, problem, given)
        assert all(np.isfinite(array).all() for array in found.values())
        assert_close(WKV6, problem, found, expected, params)


def test_heads_do_not_see_each_other(device, rng):
    problem = problem_of(4, heads=3)
    given = WKV6.inputs(problem, F32, rng)
    given["segment"] = whole(4)
    changed = {n: a.copy() for n, a in given.items()}
    changed["in_p"][:, :288].reshape(4, 3, 3, 32)[:, :, 1] += 1
    changed["state"][:, 1] = 7
    changed["decay"][:, 1] -= 1
    for params in variants(WKV6, F32, device, problem, *SHAPES):
        a, b = (run(device, WKV6, F32, params, problem, g) for g in (given, changed))
        for name in ("out_y", "state"):
            kept = [np.delete(x[name], 1, 1) for x in (a, b)]
            np.testing.assert_array_equal(*kept)
            assert not np.array_equal(a[name], b[name])
