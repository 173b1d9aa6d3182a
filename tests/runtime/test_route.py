"""A route's code: its parts side by side in one word, and what cannot be said."""

import itertools

import pytest

from kernelforge_runtime.abi.route import (
    ACTIVATION_MASK,
    ACTIVATIONS,
    ADD,
    BIAS,
    GATE,
    HALVE,
    MAX_STRIDE,
    STRIDE_SHIFT,
    route_code,
)
from kernelforge_runtime.errors import PlanError


def test_a_plain_product_is_code_0():
    assert route_code() == 0


def test_every_part_is_read_back_from_the_code_alone():
    flags = list(itertools.product((False, True), repeat=4))
    for name, (bias, gate, add, halve) in itertools.product(ACTIVATIONS, flags):
        if bias and gate:
            continue
        for stride in (0, 1, MAX_STRIDE):
            code = route_code(name, bias, gate, add, halve, stride)
            assert 0 <= code < 2**32
            assert code & ACTIVATION_MASK == ACTIVATIONS[name]
            assert [bool(code & bit) for bit in (BIAS, GATE, ADD, HALVE)] == [
                bias,
                gate,
                add,
                halve,
            ]
            assert code >> STRIDE_SHIFT == stride


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"activation": "gelu"}, "activation 'gelu': have none, relu2"),
        ({"bias": True, "gate": True}, "bias or gate, not both"),
        ({"stride": MAX_STRIDE + 1}, "aux stride 16777216"),
        ({"stride": -1}, "aux stride -1"),
    ],
)
def test_what_a_route_cannot_say_is_refused(wrong, reason):
    with pytest.raises(PlanError, match=reason):
        route_code(**wrong)
