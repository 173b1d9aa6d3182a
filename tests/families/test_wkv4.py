"""wkv4: the first token, segments, chunks, and exponents that overflow anything but this form."""

import numpy as np
import pytest

from kernelforge.families.wkv4 import WKV4
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"WORKGROUP": 8, "VEC": 4, "TOKENS": 1},
    {"WORKGROUP": 32, "VEC": 2, "TOKENS": 8, "ADDRESS": True},
    {"WORKGROUP": 32, "VEC": 1, "SPLIT": 4},
    {"WORKGROUP": 16, "VEC": 4, "SPLIT": 8, "TOKENS": 2, "ADDRESS": True},
    {"WORKGROUP": 64, "VEC": 2, "SPLIT": 2},
)
SERIAL = SHAPES[:2]
NOBODY = 2**32 - 1
EMPTY = np.float32(-1e30)


def whole(tokens):
    """One segment of all tokens."""
    return np.uint32([[0, tokens, 0, 0]])


def problem_of(tokens, channels=36, segments=1):
    return Problem(T=tokens, C=channels, B=segments, P=4 * channels)


def empty(given):
    """The state before the first token."""
    given["state"][:] = 0
    given["state"][:, 2] = EMPTY


def meaning(arrays):
    """y, and of the state what does not depend on its reference exponent: n / d and d's logarithm.

    The exponent follows p + w, which float32 rounds; n and d make up for that.
    """
    n, d, p = np.moveaxis(arrays["state"].astype(np.float64), 1, 0)
    state = np.stack([n / d, np.log(d) + p, np.zeros_like(p)], 1)
    return {"out_y": arrays["out_y"], "state": state.astype(np.float32)}


def test_the_first_token_s_result_is_its_value(device, rng):
    problem = problem_of(1)
    given = WKV4.inputs(problem, F32, rng)
    empty(given)
    r, k, v = given["in_p"][0, :108].reshape(3, 36)
    for params in variants(WKV4, F32, device, problem, *SERIAL):
        found = run(device, WKV4, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"][0], [v, np.ones(36), k])
        assert_close(WKV4, problem, found, {"out_y": (r * v)[None]}, params)


@pytest.mark.parametrize("valid", [0, 1, 5, 33])
def test_tokens_of_no_segment_change_neither_output_nor_state(device, rng, valid):
    problem = problem_of(40)
    given = WKV4.inputs(problem, F32, rng)
    given["segment"] = whole(valid)
    given["in_p"][valid:] = np.nan
    expected = WKV4.oracle(problem, F32, given, {})
    for params in variants(WKV4, F32, device, problem, *SHAPES):
        found = run(device, WKV4, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][valid:], given["out_y"][valid:])
        if not valid:
            np.testing.assert_array_equal(found["state"], given["state"])
        assert_close(WKV4, problem, found, expected, params)


def test_padding_may_hold_any_first_token_and_slot(device, rng):
    problem = problem_of(40, segments=3)
    given = WKV4.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[NOBODY, 0, NOBODY, 7], [0, 39, 1, 0], [NOBODY, 0, 1, 0]])
    expected = WKV4.oracle(problem, F32, given, {})
    for params in variants(WKV4, F32, device, problem, *SHAPES):
        found = run(device, WKV4, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"][[0, 2]], given["state"][[0, 2]])
        np.testing.assert_array_equal(found["out_y"][39], given["out_y"][39])
        assert_close(WKV4, problem, found, expected, params)


def test_a_chunk_is_the_same_as_its_tokens_one_by_one(device, rng):
    problem, one = problem_of(11), problem_of(1)
    given = WKV4.inputs(problem, F32, rng)
    given["segment"] = whole(11)
    empty(given)
    for params in variants(WKV4, F32, device, problem, *SERIAL):
        chunk = run(device, WKV4, F32, params, problem, given)
        state, rows = given["state"], []
        for t in range(11):
            single = {
                "in_p": given["in_p"][t],
                "param": given["param"],
                "state": state,
                "segment": whole(1),
                "out_y": given["out_y"][0],
            }
            found = run(device, WKV4, F32, params, one, single)
            state = found["state"]
            rows.append(found["out_y"][0])
        np.testing.assert_array_equal(chunk["out_y"], np.stack(rows))
        np.testing.assert_array_equal(chunk["state"], state)


def test_segments_in_one_dispatch_equal_each_alone(device, rng):
    problem = problem_of(80, segments=4)
    given = WKV4.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[46, 33, 2, 0], [0, 1, 3, 9], [4, 0, 1, 0], [1, 45, 0, 4]])
    for params in variants(WKV4, F32, device, problem, *SHAPES):
        found = run(device, WKV4, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][79], given["out_y"][79])
        np.testing.assert_array_equal(found["state"][1], given["state"][1])
        for first, count, slot, _ in given["segment"].tolist():
            if not count:
                continue
            alone = {
                "in_p": given["in_p"][first : first + count],
                "param": given["param"],
                "state": given["state"][slot],
                "segment": whole(count),
                "out_y": given["out_y"][:count],
            }
            one = run(device, WKV4, F32, params, problem_of(count), alone)
            np.testing.assert_array_equal(found["out_y"][first : first + count], one["out_y"])
            np.testing.assert_array_equal(found["state"][slot], one["state"][0])


def test_channels_do_not_see_each_other(device, rng):
    problem = problem_of(40)
    given = WKV4.inputs(problem, F32, rng)
    changed = {n: a.copy() for n, a in given.items()}
    changed["in_p"][:, :108].reshape(40, 3, 36)[:, 1:, 5] += 3
    changed["param"][:, 5] -= 1
    changed["state"][:, :, 5] = 7
    for params in variants(WKV4, F32, device, problem, *SHAPES):
        a, b = (run(device, WKV4, F32, params, problem, g) for g in (given, changed))
        for name in ("out_y", "state"):
            kept = [np.delete(x[name], 5, -1) for x in (a, b)]
            np.testing.assert_array_equal(*kept)
            assert not np.array_equal(a[name], b[name])


def alternating(k, rng):
    """+60 and -60 from token to token, +80 and -80 in every other channel."""
    k[0::2], k[1::2] = 60, -60
    k[:, ::2] *= 80 / 60


def in_stretches(k, rng):
    """Hundreds of tokens high, then hundreds low: what is low must vanish and not divide 0 by 0."""
    k[:] = -80
    for start in range(0, len(k), 1000):
        k[start : start + 300] = 80
        k[start + 300 : start + 500] = -60


def low_only(k, rng):
    k[:] = -80 + rng.standard_normal(k.shape)


@pytest.mark.parametrize("keys", [None, alternating, in_stretches, low_only])
def test_thousands_of_tokens_stay_finite_and_near_float64(device, rng, keys):
    """Largest error of 4096 tokens against float64, in every work division and on both devices.

    Of y relative to the largest |y|: 2.6e-6 with random keys, 2.5e-7 alternating, 2.6e-6 in
    stretches, 4e-7 low only. Of n / d: 8.9e-6, 5.8e-7, 1.4e-6, 4.8e-7 likewise; of log(d) + p,
    absolute: 5.1e-5, 1.5e-5, 2.3e-5, 1.5e-5, where a unit in the last place of p is 7.6e-6.
    """
    problem = problem_of(4096)
    given = WKV4.inputs(problem, F32, rng)
    given["segment"] = whole(4096)
    empty(given)
    # exp(-20) rounds p + w to p, exp(10) forgets everything at once; and bonuses of every size.
    given["param"][0] = -np.exp(rng.choice([-20, -14, -8, -3, 0, 10], 36))
    given["param"][1] = rng.choice([-60, -1, 0, 2, 60], 36)
    if keys is not None:
        keys(given["in_p"][:, 36:72], rng)
    expected = meaning(WKV4.oracle(problem, F32, given, {}))
    for params in variants(WKV4, F32, device, problem, *SHAPES):
        found = run(device, WKV4, F32, params, problem, given)
        assert all(np.isfinite(array).all() for array in found.values()), params
        assert_close(WKV4, problem, meaning(found), expected, params)
