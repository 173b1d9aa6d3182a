"""Layouts of words, and layouts composed with others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kernelforge_runtime.layout import Layout, LayoutError, Mode, transform
from tests.runtime.layouts import SIZES, layouts, selections

# Words that hold several elements


@given(st.sampled_from((2, 4, 8)), st.data())
def test_words_lie_where_their_elements_do(per_word, data):
    m, groups = data.draw(SIZES), data.draw(SIZES)
    block = per_word * data.draw(st.integers(1, 3))
    terms = data.draw(st.permutations(("M/4", f"K/{block}", "M%4")))
    sizes = {"M": m, "K": groups * block}
    layout = Layout.from_name(" ".join([*terms, f"K%{block}"]), sizes)
    elements = np.arange(1, m * groups * block + 1, dtype=np.uint8).reshape(m, -1)
    packed = transform(elements, Layout.row_major(elements.shape), layout)
    word = {2: "<u2", 4: "<u4", 8: "<u8"}[per_word]
    by_word = layout.words(1, per_word)
    got = transform(elements.view(word), Layout.row_major(by_word.shape), by_word)
    np.testing.assert_array_equal(got, packed.view(word))


@pytest.mark.parametrize("name", ["K M", "M K%2 K/2", "M+1 K+1", "M/3 K M%3"])
def test_elements_that_are_apart_make_no_word(name):
    layout = Layout.from_name(name, {"M": 6, "K": 8})
    with pytest.raises(LayoutError, match="no 4 neighbours along axis 1"):
        layout.words(1, 4)
    assert layout.words(1, 1) == layout


# Composition


def composed(outer, inner):
    """The composition, or None where it has no strides."""
    try:
        return outer.compose(inner)
    except LayoutError:
        return None


@given(layouts(), st.data())
def test_composing_follows_one_layout_and_then_the_other(outer, data):
    inner = data.draw(selections(outer.size))
    both = composed(outer, inner)
    assume(both is not None)
    expected = outer.places().reshape(-1)[inner.places()]
    np.testing.assert_array_equal(both.places(), expected)


@given(layouts(), st.data())
def test_composition_is_associative(first, data):
    second = data.draw(selections(first.size))
    third = data.draw(selections(second.size))
    left_part, right_part = composed(first, second), composed(second, third)
    assume(left_part is not None and right_part is not None)
    left, right = composed(left_part, third), composed(first, right_part)
    assume(left is not None and right is not None)
    np.testing.assert_array_equal(left.places(), right.places())


@given(layouts())
def test_row_major_is_neutral_in_composition(layout):
    plain = Layout.row_major(layout.shape)
    both = composed(layout, plain)
    if both is None:  # padding of a later axis, that row-major indices do not count
        assert layout.room[1:] != layout.shape[1:]
    else:
        np.testing.assert_array_equal(both.places(), layout.places())
    if layout.cosize <= 64:
        memory = Layout.row_major((64,))
        np.testing.assert_array_equal(memory.compose(layout).places(), layout.places())


def test_a_column_of_a_tiled_matrix_is_a_composition():
    tiled = Layout.from_name("M/4 K/2 M%4 K%2", {"M": 8, "K": 6})
    column = tiled.compose(Layout((8,), ((Mode(8, 6),),)))
    np.testing.assert_array_equal(column.places(), tiled.places()[:, 0])
    assert column.axes == ((Mode(2, 24), Mode(4, 2)),)


def test_selections_without_strides_are_refused():
    tiled = Layout.column_major((2, 2))
    diagonal_sum = Layout((2, 2), ((Mode(2, 1),), (Mode(2, 1),)))  # index 1 + 1 carries
    with pytest.raises(LayoutError, match="strides cannot say"):
        tiled.compose(diagonal_sum)
    with pytest.raises(LayoutError, match="offsets up to 4 in a tensor"):
        tiled.compose(Layout.row_major((5,)))
    with pytest.raises(LayoutError, match="steps of 2 cut a digit that counts to 3"):
        Layout.column_major((3, 3)).compose(Layout((3,), ((Mode(3, 2),),)))


@given(layouts())
def test_simplifying_keeps_every_offset(layout):
    simple = layout.simplified()
    np.testing.assert_array_equal(simple.places(), layout.places())
    assert all(len(s) <= len(a) for s, a in zip(simple.axes, layout.axes, strict=True))
