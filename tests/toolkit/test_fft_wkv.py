"""The recurrences of RWKV-4 and 5 by Fourier transform equal those that walk along the tokens."""

import numpy as np
import pytest

from kernelforge.errors import MeasureError
from kernelforge.families.wkv4 import WKV4
from kernelforge.families.wkv6 import WKV6
from kernelforge.measure.fft_wkv import (
    numpy_convolve,
    transform_size,
    wkv4_by_fft,
    wkv5_by_fft,
)
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32


def drawn(family, problem, seed=0):
    return family.inputs(problem, F32, np.random.default_rng(seed))


def apart(found, wanted):
    """The furthest of any element, relative to its size where that is above one."""
    return max(
        float((np.abs(found[n] - wanted[n]) / np.maximum(1, np.abs(wanted[n]))).max())
        for n in wanted
    )


def same(family, by_fft, problem, given):
    return apart(by_fft(problem, given), family.oracle(problem, F32, given, {}))


@pytest.mark.parametrize("tokens", [1, 2, 3, 37, 1024, 4096])
def test_rwkv4_by_transform_equals_the_sequential_oracle(tokens) -> None:
    problem = Problem(T=tokens, C=8, B=1, P=24)
    given = drawn(WKV4, problem)
    given["in_p"][:, 8:16] /= 3  # keys of a spread of one, as trained models have them
    assert same(WKV4, wkv4_by_fft, problem, given) < 1e-10


def test_rwkv4_segments_are_apart_and_padding_is_left_alone() -> None:
    problem = Problem(T=127, C=4, B=7, P=12)
    given = drawn(WKV4, problem, 1)
    assert same(WKV4, wkv4_by_fft, problem, given) < 1e-6  # keys of a spread of three


@pytest.mark.parametrize("shift", [-1e4, -700, 700, 1e4])
def test_no_size_of_the_keys_overflows(shift) -> None:
    problem = Problem(T=64, C=8, B=1, P=24)
    given = drawn(WKV4, problem)
    given["in_p"][:, 8:16] = given["in_p"][:, 8:16] / 3 + np.float32(shift)
    assert same(WKV4, wkv4_by_fft, problem, given) < 1e-7


def test_the_empty_state_of_rwkv4_gives_what_the_oracle_gives() -> None:
    problem = Problem(T=5, C=4, B=1, P=12)
    given = drawn(WKV4, problem)
    given["state"][:, :2], given["state"][:, 2] = 0, -1e30
    assert same(WKV4, wkv4_by_fft, problem, given) < 1e-10


def test_keys_too_far_apart_for_a_transform_are_refused() -> None:
    problem = Problem(T=5, C=4, B=1, P=12)
    given = drawn(WKV4, problem)
    given["in_p"][2, 4:8] = 90
    with pytest.raises(MeasureError, match=r"apart: transforms are exact up to 20"):
        wkv4_by_fft(problem, given)


@pytest.mark.parametrize(
    "sizes",
    [
        {"T": 1, "H": 2, "N": 8, "B": 1, "P": 48},
        {"T": 17, "H": 3, "N": 16, "B": 3, "P": 148},
        {"T": 4096, "H": 1, "N": 8, "B": 1, "P": 24},
        {"T": 300, "H": 1, "N": 128, "B": 1, "P": 384},  # in several parts
    ],
)
def test_rwkv5_by_transform_equals_the_sequential_oracle(sizes) -> None:
    problem = Problem(D=1, **sizes)
    assert same(WKV6, wkv5_by_fft, problem, drawn(WKV6, problem)) < 1e-10


def test_decays_that_depend_on_the_token_are_refused() -> None:
    problem = Problem(T=5, H=1, N=8, B=1, P=24, D=5)
    with pytest.raises(MeasureError, match=r"decays of each token \(D=5\)"):
        wkv5_by_fft(problem, drawn(WKV6, problem))


def test_a_convolution_does_not_run_into_its_beginning() -> None:
    rng = np.random.default_rng(0)
    for tokens in (1, 2, 5, 64):
        assert transform_size(tokens) >= 2 * tokens - 1
        x, g = rng.standard_normal((2, tokens))
        assert np.allclose(numpy_convolve(x, g), np.convolve(x, g)[:tokens])
