"""Random layouts for tests."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from kernelforge_runtime.layout import Layout, Mode

SIZES = st.integers(1, 9)


@st.composite
def layouts(draw, shape=None):
    """Layouts that memory nests: digits of every axis in any order, some with gaps behind them."""
    shape = shape or tuple(draw(st.lists(SIZES, min_size=1, max_size=3)))
    terms = []
    for letter in "MKT"[: len(shape)]:
        divisors = list(
            itertools.accumulate(
                draw(st.lists(st.integers(2, 4), max_size=2)), lambda a, b: a * b, initial=1
            )
        )
        for low, high in itertools.zip_longest(divisors, divisors[1:]):
            term = letter + (f"/{low}" if low > 1 else "") + (f"%{high // low}" if high else "")
            terms.append(term + draw(st.sampled_from(("", "", "+1", "+3"))))
    name = " ".join(draw(st.permutations(terms)))
    return Layout.from_name(name, dict(zip("MKT", shape, strict=False)))


@st.composite
def selections(draw, size):
    """Layouts that reach fewer than `size` elements, nested or with strides of any kind."""
    shape, strides, reached = [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        stride = draw(st.sampled_from([s for s in (0, 1, 2, 3, 4, 6, 8, 12, 24) if s < size]))
        most = (size - 1 - reached) // stride + 1 if stride else 4
        shape.append(draw(st.integers(1, max(1, min(most, 12)))))
        strides.append(stride)
        reached += (shape[-1] - 1) * stride
    axes = tuple((Mode(n, s),) for n, s in zip(shape, strides, strict=True))
    return Layout(tuple(shape), axes)
