import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge.errors import SpaceError
from kernelforge.variant import PARAMETER_NAME, Variant

names = st.from_regex(PARAMETER_NAME, fullmatch=True).filter(str.isascii)
words = st.text("abcXYZ0129_", min_size=1, max_size=8)
values = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), words)
params = st.dictionaries(names, values, max_size=8)


@settings(max_examples=60)
@given(params)
def test_a_name_reads_back_as_the_variant_it_was_made_from(params):
    variant = Variant.of("gemv", "f16", params)
    again = Variant.parse(variant.name)
    assert again == variant and hash(again) == hash(variant)
    assert again.values == params
    assert again.name == variant.name


@settings(max_examples=40)
@given(params, params)
def test_unlike_parameters_never_share_a_name(a, b):
    same = Variant.of("gemv", "f16", a).name == Variant.of("gemv", "f16", b).name
    assert same == (a == b)


@given(st.text(max_size=40))
def test_any_text_is_either_a_variant_or_refused(text):
    for name in (text, f"gemv/f16/{text}"):
        try:
            variant = Variant.parse(name)
        except SpaceError:
            continue
        # Only the order of parameters may differ from the canonical name.
        assert sorted(variant.name.split("/")[2].split(".")) == sorted(
            name.split("/")[2].split(".")
        )


def test_the_name_sorts_parameters_and_spells_flags_and_words():
    variant = Variant.of(
        "gemv", "f16", {"WORKGROUP": 64, "ROWS": 4, "PREFETCH": True, "REDUCE": "shared"}
    )
    assert variant.name == str(variant) == "gemv/f16/PREFETCH1.REDUCE=shared.ROWS4.WORKGROUP64"


def test_a_variant_without_parameters_has_a_name_too():
    assert Variant("argmax", "f32").name == "argmax/f32/default"
    assert Variant.parse("argmax/f32/default") == Variant("argmax", "f32")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gemv",
        "gemv/f16",
        "gemv/f16/",
        "gemv/f16/ROWS",
        "gemv/f16/ROWS04",
        "gemv/f16/rows4",
        "gemv/f16/ROWS4.ROWS8",
        "gemv/f16/ROWS4..VEC2",
        "gemv/f16/ROWS=",
        "gemv/f16/ROWS4\n",
        "Gemv/f16/ROWS4",
        "gemv//ROWS4",
        "a/b/c/d",
    ],
)
def test_what_is_no_variant_name_is_refused(name):
    with pytest.raises(SpaceError):
        Variant.parse(name)


@pytest.mark.parametrize(
    ("name", "value"), [("ROWS2", 1), ("rows", 1), ("ROWS", 1.5), ("ROWS", "a.b"), ("ROWS", "")]
)
def test_a_parameter_that_could_not_be_read_back_is_refused(name, value):
    with pytest.raises(SpaceError, match="parameter"):
        Variant.of("gemv", "f16", {name: value})
