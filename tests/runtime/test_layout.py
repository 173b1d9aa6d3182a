"""Layouts: offsets, repacking and composition, against NumPy's own strides."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from kernelforge_runtime.dtypes import DTYPES
from kernelforge_runtime.layout import Layout, LayoutError, Mode, transform
from tests.runtime.layouts import SIZES, layouts

TYPES = sorted({dtype.numpy for dtype in DTYPES.values()} | {"<i4"})
LAYOUT_MODULES = ("digits", "layout", "names", "transform")


def indices(layout):
    return itertools.product(*map(range, layout.shape))


@st.composite
def pairs(draw):
    """Two layouts of one shape."""
    first = draw(layouts())
    return first, draw(layouts(first.shape))


def moved(array, source, target, fill):
    """What `transform` is to give, element by element."""
    out = np.full(target.cosize, fill, array.dtype)
    for index in indices(source):
        out[target.offset(*index)] = array[source.offset(*index)]
    return out


def numbered(layout, dtype="<u4"):
    """Memory of a layout, all of whose elements differ where the type can tell them apart."""
    return np.arange(1, layout.cosize + 1).astype(dtype)


@pytest.mark.parametrize("name", LAYOUT_MODULES)
def test_worked_examples_are_right(name):
    module = importlib.import_module(f"kernelforge_runtime.layout.{name}")
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.failed == 0
    examples = {"layout": 20, "transform": 1}
    assert result.attempted >= examples.get(name, 0)


# Against NumPy's strides


@given(st.lists(SIZES, min_size=1, max_size=4))
def test_row_and_column_major_are_numpys_orders(shape):
    count = np.arange(math.prod(shape))
    for layout, order in ((Layout.row_major(shape), "C"), (Layout.column_major(shape), "F")):
        np.testing.assert_array_equal(layout.places(), count.reshape(shape, order=order))
        assert layout.size == layout.cosize == count.size
        assert layout.room == layout.shape == tuple(shape)


@given(st.lists(st.tuples(SIZES, st.integers(0, 9)), min_size=1, max_size=3))
def test_plain_strides_are_those_of_as_strided(axes):
    layout = Layout(tuple(n for n, _ in axes), tuple((Mode(n, s),) for n, s in axes))
    memory = np.arange(layout.cosize)
    view = as_strided(memory, layout.shape, tuple(8 * s for _, s in axes))
    np.testing.assert_array_equal(layout.places(), view)
    assert layout.places().max() == layout.cosize - 1


@given(layouts())
def test_one_offset_is_that_of_all_places(layout):
    places = layout.places()
    assert places.shape == layout.shape
    assert all(layout.offset(*index) == places[index] for index in indices(layout))
    assert places.max() < layout.cosize


@given(st.data(), layouts())
def test_permuting_axes_transposes(data, layout):
    order = data.draw(st.permutations(range(len(layout.shape))))
    swapped = layout.permute(*order)
    np.testing.assert_array_equal(swapped.places(), layout.places().transpose(order))
    back = np.argsort(order).tolist()
    assert swapped.permute(*back) == layout


@given(SIZES, SIZES, st.integers(1, 5), st.integers(1, 5))
def test_tiles_are_numpys_pad_reshape_and_transpose(m, k, bm, bk):
    array = np.arange(1, m * k + 1, dtype=np.uint32).reshape(m, k)
    tiled = Layout.row_major((m, k)).tile(0, bm).tile(1, bk)
    padded = np.pad(array, ((0, -m % bm), (0, -k % bk)))
    rows, columns = padded.shape
    expected = padded.reshape(rows // bm, bm, columns // bk, bk).transpose(0, 2, 1, 3).reshape(-1)
    np.testing.assert_array_equal(transform(array, Layout.row_major((m, k)), tiled), expected)


@given(st.data(), SIZES, SIZES, st.integers(2, 5), st.integers(2, 5))
def test_a_name_is_the_shape_of_an_array_with_gaps(data, m, k, bm, bk):
    """Digits in any order, each with a gap: an array of that shape whose corner is used."""
    terms = data.draw(st.permutations((f"M/{bm}", f"M%{bm}", f"K/{bk}", f"K%{bk}")))
    gaps = data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
    name = " ".join(t + (f"+{g}" if g else "") for t, g in zip(terms, gaps, strict=True))
    extents = {f"M/{bm}": -(-m // bm), f"M%{bm}": bm, f"K/{bk}": -(-k // bk), f"K%{bk}": bk}
    memory = np.zeros([extents[t] + g for t, g in zip(terms, gaps, strict=True)], np.uint32)
    array = np.arange(1, m * k + 1, dtype=np.uint32).reshape(m, k)
    digits = np.pad(array, ((0, -m % bm), (0, -k % bk))).reshape(
        extents[f"M/{bm}"], bm, extents[f"K/{bk}"], bk
    )
    order = [(f"M/{bm}", f"M%{bm}", f"K/{bk}", f"K%{bk}").index(t) for t in terms]
    memory[tuple(slice(extents[t]) for t in terms)] = digits.transpose(order)
    layout = Layout.from_name(name, {"M": m, "K": k})
    got = transform(array, Layout.row_major((m, k)), layout)
    np.testing.assert_array_equal(got, memory.reshape(-1)[: got.size])
    assert not memory.reshape(-1)[got.size :].any()


# Moving elements


@given(pairs(), st.sampled_from(TYPES), st.integers(0, 100))
def test_moving_puts_every_element_in_its_place_and_fills_the_rest(both, dtype, fill):
    source, target = both
    array = numbered(source, dtype)
    got = transform(array, source, target, fill)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, moved(array, source, target, fill))


@given(pairs())
def test_moving_there_and_back_changes_no_element(both):
    source, target = both
    array = transform(numbered(source), source, source)  # zero where no element lies
    back = transform(transform(array, source, target, 9), target, source)
    np.testing.assert_array_equal(back, array)


@given(layouts(), st.data())
def test_moving_on_is_moving_at_once(first, data):
    second, third = (data.draw(layouts(first.shape)) for _ in range(2))
    array = numbered(first)
    steps = transform(transform(array, first, second), second, third)
    np.testing.assert_array_equal(steps, transform(array, first, third))


@pytest.mark.parametrize("dtype", TYPES)
def test_bits_of_every_type_survive(dtype, rng):
    layout = Layout.from_name("M/8 K/4 M%8 K%4", {"M": 21, "K": 30})
    plain = Layout.row_major((21, 30))
    size = np.dtype(dtype).itemsize
    array = rng.integers(0, 256, (21, 30 * size), np.uint8).view(dtype)  # with NaNs among them
    back = transform(transform(array, plain, layout), layout, plain)
    assert back.tobytes() == array.tobytes()


def test_blocks_that_cut_each_other_are_gathered_part_by_part():
    m, k = 1100, 1003  # more than is gathered at a time
    source = Layout.from_name("M/6 K M%6", {"M": m, "K": k})
    target = Layout.from_name("K/4 M/4 K%4 M%4", {"M": m, "K": k})
    plain = Layout.row_major((m, k))
    array = np.arange(m * k, dtype=np.uint32).reshape(m, k)
    by_gathering = transform(transform(array, plain, source), source, target)
    np.testing.assert_array_equal(by_gathering, transform(array, plain, target))


def test_what_has_one_place_for_many_elements_can_be_read_but_not_written():
    plain, same = Layout.row_major((3, 4)), Layout((3, 4), ((Mode(3, 0),), (Mode(4, 1),)))
    got = transform(np.arange(4), same, plain)
    np.testing.assert_array_equal(got.reshape(3, 4), np.tile(np.arange(4), (3, 1)))
    with pytest.raises(LayoutError, match="several elements share a place"):
        transform(got, plain, same)


def test_what_does_not_fit_is_refused():
    plain = Layout.row_major((3, 4))
    with pytest.raises(LayoutError, match=r"\(3, 4\) cannot take the layout of \(4, 3\)"):
        transform(np.zeros(12), plain, Layout.row_major((4, 3)))
    with pytest.raises(LayoutError, match="11 elements; the layout reaches 12"):
        transform(np.zeros(11), plain, plain)


@given(st.lists(st.tuples(SIZES, st.integers(0, 20)), min_size=1, max_size=3))
def test_injective_means_that_no_place_is_there_twice(axes):
    layout = Layout(tuple(n for n, _ in axes), tuple((Mode(n, s),) for n, s in axes))
    places = [layout.offset(*index) for index in indices(layout)]
    assert layout.is_injective() == (len(set(places)) == len(places))


@given(layouts())
def test_what_memory_nests_is_injective(layout):
    assert layout.is_injective()
    assert len(np.unique(layout.places())) == layout.size


def test_padding_alone_may_share_places():
    layout = Layout((3, 2), ((Mode(4, 1),), (Mode(2, 3),)))  # row 3 is padding
    assert layout.is_injective()
    assert not Layout((4, 2), layout.axes).is_injective()


# Names


@given(layouts())
def test_a_description_is_read_back_as_the_same_layout(layout):
    again = Layout.parse(layout.describe())
    assert again.shape == layout.shape
    np.testing.assert_array_equal(again.places(), layout.places())


@given(st.permutations(("M/8", "M/4%2", "M%4+1", "K/2", "K%2")), st.integers(9, 90))
def test_a_name_is_read_back_as_it_was(terms, size):
    name = " ".join([terms[0].removesuffix("+1"), *terms[1:]])  # nothing lies behind the slowest
    layout = Layout.from_name(name, {"M": size, "K": size})
    assert layout.name() == name
    assert layout.permute(1, 0).name("KM") == name


def test_operations_have_the_names_one_would_write():
    plain = Layout.row_major((64, 48))
    assert plain.name() == "M K"
    assert plain.tile(0, 32).tile(1, 8).name() == "M/32 K/8 M%32 K%8"
    assert plain.tile(0, 32).tile(0, 4).name() == "M/32 K M/4%8 M%4"
    assert plain.tile(0, 4).tile(0, 32).name() == "M/32 K M/4%8 M%4"
    assert plain.pad(0, 32).with_gap(1, 4).name() == "M/32 M%32 K+4"
    assert plain.tile(0, 32).pad(0, 8) == plain.tile(0, 32)
    assert Layout((5,), ((Mode(8, 1),),)).name() == "M%8"


@pytest.mark.parametrize(
    "name",
    [
        "", "M", "M K T", "M K K", "M  K", " M K", "m K", "M/0 K", "M%0 K", "M%1 K", "M K+0",
        "M/32 K", "M/32 M%16 K", "M/32 M%64 K", "M/32%2 M%32 M K", "M%32 K", "M/-4 M%4 K",
        "M/99999999 K", "M K " * 50, "M/32 K M%32\n", "M,K",
    ],
)  # fmt: skip
def test_names_that_do_not_count_each_axis_once_are_refused(name):
    with pytest.raises(LayoutError, match=r"^layout '"):
        Layout.from_name(name, {"M": 64, "K": 64})


@pytest.mark.parametrize("text", ["M K", "M K of", "M K of M=2", "M K of M=2, K=3", "M of M=0"])
def test_descriptions_of_another_form_are_refused(text):
    with pytest.raises(LayoutError):
        Layout.parse(text)


def test_what_memory_does_not_nest_has_no_name():
    for modes in ((Mode(3, 0), Mode(4, 1)), (Mode(3, 3), Mode(4, 1)), (Mode(3, 8), Mode(4, 2))):
        with pytest.raises(LayoutError, match="not nested"):
            Layout((3, 4), tuple((m,) for m in modes)).name()


# Refusals


def test_impossible_layouts_are_refused():
    for shape, axes in (((), ()), ((2,), ()), ((2,), ((),)), ((0,), ((Mode(0, 1),),))):
        with pytest.raises(LayoutError):
            Layout(shape, axes)
    with pytest.raises(LayoutError, match="an axis of 5 has digits for 4 only"):
        Layout((5,), ((Mode(2, 2), Mode(2, 1)),))
    with pytest.raises(LayoutError, match="strides not negative"):
        Layout((2,), ((Mode(2, -1),),))


def test_tiles_that_would_cut_a_digit_are_refused():
    tiled = Layout.row_major((64, 64)).tile(0, 32)
    for size in (12, 48):
        with pytest.raises(LayoutError, match=re.escape(f"blocks of {size} along axis 0")):
            tiled.tile(0, size)
    for size in (0, -4):
        with pytest.raises(LayoutError, match="expected 1 or more"):
            tiled.tile(0, size)
        with pytest.raises(LayoutError, match="expected 1 or more"):
            tiled.pad(0, size)
    with pytest.raises(LayoutError, match="blocks of 8 along axis 1"):
        tiled.with_gap(1, 1).tile(1, 8)


def test_offsets_of_what_is_no_element_are_refused():
    layout = Layout.row_major((5, 3)).pad(0, 4)
    for index in ((5, 0), (0, 3), (-1, 0), (1,), (0, 0, 0)):
        with pytest.raises(LayoutError, match="no element"):
            layout.offset(*index)
    with pytest.raises(LayoutError, match="expected 0 to 1 in some order"):
        layout.permute(0, 0)
