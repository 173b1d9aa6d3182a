"""The chunked recurrences are their sequential siblings: same buffers, same results, any decays."""

import numpy as np
import pytest

from kernelforge.compile import missing_extensions
from kernelforge.families.wkv6 import WKV6
from kernelforge.families.wkv6_chunk import WKV6_CHUNK
from kernelforge.families.wkv6_chunk_coop import WKV6_CHUNK_COOP
from kernelforge.families.wkv7 import WKV7
from kernelforge.families.wkv7_chunk import WKV7_CHUNK
from kernelforge.families.wkv7_chunk_coop import WKV7_CHUNK_COOP
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

# The last one is without subgroups, which both devices can do.
SHAPES = (
    {"CHUNK": 16, "WORKGROUP": 16, "LANES": 4, "ROWS": 2},
    {"CHUNK": 32, "WORKGROUP": 8, "LANES": 1, "ROWS": 1},
)
# The second has chunks of several matrices of tokens.
MATRICES = (
    {"CHUNK": 8, "SUBGROUPS": 2, "ROWS": 16},
    {"CHUNK": 32, "SUBGROUPS": 1, "ROWS": 8},
)
NOBODY = 2**32 - 1
R, W, K, V, A, B = range(6)


def whole(tokens):
    """One segment of all tokens."""
    return np.uint32([[0, tokens, 0, 0]])


def problem_of(family, tokens, heads=1, size=16, segments=1, decays=None):
    """Rows of wkv6 are wider than r, k and v, and every token has decays unless said otherwise."""
    dims = {"T": tokens, "H": heads, "N": size, "B": segments}
    if "D" in family.dims:
        dims |= {"P": 4 * heads * size, "D": decays or tokens}
    return Problem(**dims)


def possible(family, device, problem):
    """Variants to try; skips where the device or the compiler can do none."""
    if not family.requires:
        return variants(family, F32, device, problem, *SHAPES)[-len(SHAPES) :]
    if not device.info.cooperative_shapes:
        pytest.skip(f"{device.info.name} has no cooperative matrices")
    if missing := missing_extensions(family):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")
    found = variants(family, F32, device, problem, *MATRICES)[-len(MATRICES) :]
    if device.info.device_type == "cpu":
        assert len(found) == len(MATRICES), "a form is not possible: nothing would test it"
    return found


def run_near_float64(device, family, problem, given):
    expected = family.oracle(problem, F32, given, {})
    for params in possible(family, device, problem):
        found = run(device, family, F32, params, problem, given)
        assert all(np.isfinite(array).all() for array in found.values()), params
        assert_close(family, problem, found, expected, params)


CHUNKED = (WKV6_CHUNK, WKV7_CHUNK, WKV6_CHUNK_COOP, WKV7_CHUNK_COOP)
each = pytest.mark.parametrize("family", CHUNKED, ids=lambda f: f.name)


@pytest.mark.parametrize(
    ("chunked", "recurrent"), list(zip(CHUNKED, (WKV6, WKV7, WKV6, WKV7), strict=True))
)
def test_a_model_may_use_either_form(chunked, recurrent):
    assert chunked.dims == recurrent.dims
    sides = [f.signature(F32, f.space.declared_default) for f in (chunked, recurrent)]
    assert sides[0].bindings == sides[1].bindings
    assert sides[0].push_constants == sides[1].push_constants


@each
@pytest.mark.parametrize("count", [0, 1, 5, 16, 17, 33])
def test_a_last_chunk_may_be_short_and_tokens_of_no_segment_are_left_alone(
    device, rng, family, count
):
    problem = problem_of(family, 35, heads=2)
    given = family.inputs(problem, F32, rng)
    given["segment"] = whole(count)
    if "in_p" in given:
        given["in_p"][count:] = np.nan
    else:
        given["in_s"][:, count:] = np.nan
    expected = family.oracle(problem, F32, given, {})
    for params in possible(family, device, problem):
        found = run(device, family, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][count:], given["out_y"][count:])
        if not count:
            np.testing.assert_array_equal(found["state"], given["state"])
        assert_close(family, problem, found, expected, params)


@each
def test_padding_may_hold_any_first_token_and_slot(device, rng, family):
    problem = problem_of(family, 24, segments=3)
    given = family.inputs(problem, F32, rng)
    given["segment"] = np.uint32([[NOBODY, 0, NOBODY, 7], [0, 23, 1, 0], [NOBODY, 0, 1, 0]])
    expected = family.oracle(problem, F32, given, {})
    for params in possible(family, device, problem):
        found = run(device, family, F32, params, problem, given)
        np.testing.assert_array_equal(found["state"][[0, 2]], given["state"][[0, 2]])
        np.testing.assert_array_equal(found["out_y"][23], given["out_y"][23])
        assert_close(family, problem, found, expected, params)


def models_own(given, rng):
    """What the family draws: decays over the whole range of trained models."""


def near_one(given, rng):
    if "decay" in given:
        given["decay"][:] = rng.uniform(-12, -6, given["decay"].shape)
    else:
        given["in_s"][W] = 1 - rng.uniform(1e-7, 1e-3, given["in_s"].shape[1:])


def zero_and_one_in_turns(given, rng):
    """Within a channel, token by token: quotients of products would be 0 / 0."""
    if "decay" in given:
        given["decay"][:] = rng.choice([10.0, 100.0, -20.0, 0.0], given["decay"].shape)
    else:
        given["in_s"][W] = rng.choice([0.0, 1e-30, 1.0, 0.5], given["in_s"].shape[1:])


def near_zero(given, rng):
    """Products over a chunk leave the range of float32: their reciprocals would be infinite."""
    if "decay" in given:
        given["decay"][:] = rng.uniform(2, 4, given["decay"].shape)
    else:
        given["in_s"][W] = rng.uniform(1e-20, 1e-3, given["in_s"].shape[1:])


def one_key_only(given, rng):
    """All tokens write, and in wkv7 remove, along one direction, and nothing decays: the triangular
    system has no small entries, and powers of it would cancel."""
    if "decay" in given:
        given["decay"][:] = -20
        rows = given["in_p"]
        size = given["bonus"].shape[1]
        rows[:, size : 2 * size] = rows[0, size : 2 * size]
    else:
        given["in_s"][W] = 0.9999999
        given["in_s"][A] = given["in_s"][A, :1]
        given["in_s"][B] = -given["in_s"][A]
        given["in_s"][K] = 3 * given["in_s"][B]


@each
@pytest.mark.parametrize(
    "extreme", [models_own, near_one, zero_and_one_in_turns, near_zero, one_key_only]
)
def test_a_thousand_tokens_stay_finite_and_near_float64(device, rng, family, extreme):
    problem = problem_of(family, 1000)
    given = family.inputs(problem, F32, rng)
    given["segment"] = whole(1000)
    extreme(given, rng)
    run_near_float64(device, family, problem, given)


@pytest.mark.parametrize(("family", "size"), [(WKV6_CHUNK, 8), (WKV6_CHUNK_COOP, 16)])
def test_decays_shared_by_all_tokens_are_read_once_for_all(device, rng, family, size):
    problem = problem_of(family, 70, heads=2, size=size, decays=1)
    run_near_float64(device, family, problem, family.inputs(problem, F32, rng))


@pytest.mark.parametrize("family", CHUNKED[2:], ids=lambda f: f.name)
@pytest.mark.parametrize("large", [1e-9, 1e9])
def test_what_float16_cannot_hold_is_multiplied_all_the_same(device, rng, family, large):
    """State, keys and values far beyond its range, or below: powers of two bring them into it."""
    problem = problem_of(family, 50, heads=2)
    given = family.inputs(problem, F32, rng)
    given["state"] *= np.float32(large)
    if "in_p" in given:
        given["in_p"][:, 32:96] *= np.float32(large**0.5)
    else:
        given["in_s"][K] *= np.float32(large**2)
        given["in_s"][V] /= np.float32(large)
    run_near_float64(device, family, problem, given)


@pytest.mark.parametrize("family", CHUNKED[:2], ids=lambda f: f.name)
def test_shared_memory_is_counted_before_a_variant_is_compiled(family):
    for size in (16, 32, 64):
        valid = family.valid(F32, GENERIC, problem_of(family, 64, size=size))
        assert valid, f"no variant for a head of {size} in 16 KiB"
        longest = max(p["CHUNK"] for p in valid)
        assert longest < 64 or size == 16  # 64 tokens of 32 keys are more than 16 KiB
