"""Rendering, errors of templates, and the way back from a GLSL line to its template line."""

from dataclasses import replace

import pytest

from kernelforge.errors import RenderError, SpaceError
from kernelforge.render import render, template_sha256
from kernelforge_runtime.abi.signature import Binding
from kernelforge_runtime.dtypes import F32
from tests.toolkit.fixtures.saxpy import FOLDER, SAXPY

PARAMS = {"WORKGROUP": 64, "ROUTE": "shared", "ADDRESS": False}


@pytest.fixture
def family(tmp_path):
    """Makes a family out of template texts by file name; `t.comp.j2` is its template."""

    def make(**sources):
        for name, text in sources.items():
            path = tmp_path / (name.replace("__", "/") + ".j2")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return replace(SAXPY, template="t.j2", templates=tmp_path)

    return make


def places(rendered):
    """(GLSL line without surrounding blanks, template position) of every line that is not blank."""
    lines = rendered.glsl.split("\n")
    return [(t.strip(), rendered.locate(i)) for i, t in enumerate(lines, 1) if t.strip()]


def test_the_template_sees_parameters_names_and_signature(family):
    text = (
        "{{ family }} {{ precision }} {{ WORKGROUP }} {{ ROUTE }} {{ ADDRESS }} "
        "{{ signature.bindings | length }}"
    )
    rendered = render(family(t=text), "f32", {**PARAMS, "ADDRESS": 1})
    assert rendered.glsl == "saxpy f32 64 shared True 3"
    assert rendered.variant == "saxpy/f32/ADDRESS1.ROUTE=shared.WORKGROUP64"


def test_the_same_variant_renders_the_same_text_with_its_hash(family):
    one, two = (render(SAXPY, "f32", PARAMS) for _ in range(2))
    assert one == two
    assert render(SAXPY, "f32", {**PARAMS, "WORKGROUP": 32}).sha256 != one.sha256


def test_no_marker_is_left_in_the_glsl():
    rendered = render(SAXPY, "f32", PARAMS)
    assert "\x01" not in rendered.glsl and "\x02" not in rendered.glsl
    assert rendered.glsl.startswith("#version 460\n")


def test_every_line_is_mapped_through_macros_and_imports():
    source = (FOLDER / "saxpy.comp.j2").read_text().split("\n")
    found = dict(places(render(SAXPY, "f32", PARAMS)))
    for text in ("uint i = gl_GlobalInvocationID.x;", "barrier();", "if (i >= M) return;"):
        line = next(i for i, s in enumerate(source, 1) if s.strip() == text)
        assert found[text] == f"saxpy.comp.j2:{line}"
    assert found["shared float staged[64];"].startswith("saxpy.comp.j2:")
    assert found["#version 460"].startswith("lib/bindings.glsl.j2:")
    assert found["uint M;"].startswith("lib/bindings.glsl.j2:")


def test_lines_are_mapped_around_tags_comments_and_continuations(family):
    text = """{# a comment
over two lines #}first
{% set x = [
  1,
  2,
] -%}
second
#define TWICE(a) \\
    ((a) + \\
     (a))
{% for i in x %}
looped {{ i }}
{%- endfor %}
{{ ROUTE }}
{{- " joined" }}
{% if false %}
never
{% endif -%}


{%- raw %}
{{ raw }}
{% endraw %}{% include "part.j2" %}last"""
    rendered = render(family(t=text, part="one\n{{ WORKGROUP }}\n"), "f32", PARAMS)
    assert places(rendered) == [
        ("first", "t.j2:2"),
        ("second", "t.j2:7"),
        ("#define TWICE(a) \\", "t.j2:8"),
        ("((a) + \\", "t.j2:9"),
        ("(a))", "t.j2:10"),
        ("looped 1", "t.j2:12"),
        ("looped 2", "t.j2:12"),
        ("shared joined", "t.j2:14"),
        ("{{ raw }}", "t.j2:22"),
        ("one", "part.j2:1"),
        ("64", "part.j2:2"),
        ("last", "t.j2:23"),
    ]


def test_a_macro_line_is_mapped_to_the_macro_not_to_its_call(family):
    main = '{% import "lib.j2" as lib %}\nfloat a = {{ lib.one() }};\n{{ lib.two() }}\n'
    lib = "{% macro one() %}1.0{% endmacro %}\n{% macro two() %}b\nc{% endmacro %}\n"
    assert places(render(family(t=main, lib=lib), "f32", PARAMS)) == [
        ("float a = 1.0;", "t.j2:2"),
        ("b", "lib.j2:2"),
        ("c", "lib.j2:3"),
    ]


def test_text_that_a_template_compares_is_not_disturbed_by_the_line_map(family):
    text = "{% set v %}uvec4{% endset %}{% if v == 'uvec4' %}\nwide\n{% else %}narrow{% endif %}"
    rendered = render(family(t=text), "f32", PARAMS)
    assert rendered.glsl.strip() == "wide"
    assert rendered.locate(2) == "line 2 of the rendered GLSL"


@pytest.mark.parametrize("change", ["edited", "broken", "removed"])
def test_of_a_template_that_changed_since_no_line_is_claimed(family, tmp_path, change):
    rendered = render(family(t="one\ntwo\n"), "f32", PARAMS)
    file = tmp_path / "t.j2"
    if change == "removed":
        file.unlink()
    else:
        file.write_text("{{" if change == "broken" else "zero\none\ntwo\n")
    assert rendered.locate(2) == "line 2 of the rendered GLSL"


def test_a_line_out_of_range_is_named_as_it_is():
    assert render(SAXPY, "f32", PARAMS).locate(9999) == "line 9999 of the rendered GLSL"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n{{ ROWS }}\n", "t.j2:2: 'ROWS' is undefined"),
        ("a\nb\n{% if NOPE %}{% endif %}", "t.j2:3: 'NOPE' is undefined"),
        ("a\n{{ signature.nope }}", "t.j2:2: .* has no attribute 'nope'"),
        ("a\n{{ 1 // 0 }}", "t.j2:2: ZeroDivisionError: "),
        ("a\nb\n{% if %}", "t.j2:3: Expected an expression"),
        ("a\n{{ WORKGROUP | nope }}", "t.j2:2: No filter named 'nope'"),
        ("a\n{% include 'gone.j2' %}", "no template 'gone.j2'"),
        ("{% include '../t.j2' %}", "no template '../t.j2'"),
        ("{% set f = 'part.j2' %}{% include f %}", "computed name"),
    ],
)
def test_an_error_names_file_line_and_variant(family, text, message):
    with pytest.raises(RenderError, match=message) as caught:
        render(family(t=text, part=""), "f32", PARAMS)
    assert "saxpy/f32/" in str(caught.value) or "computed" in message
    assert "\n" not in str(caught.value)


def test_an_error_in_a_file_of_lib_names_that_file(family):
    main = '{% from "lib/m.j2" import m %}\n{{ m() }}'
    with pytest.raises(RenderError, match=r"^lib/m.j2:2: 'NOPE' is undefined"):
        render(family(t=main, lib__m="{% macro m() %}\n{{ NOPE }}{% endmacro %}"), "f32", PARAMS)


def test_parameters_that_are_not_of_the_space_are_refused():
    with pytest.raises(SpaceError, match="WORKGROUP=65"):
        render(SAXPY, "f32", {**PARAMS, "WORKGROUP": 65})


def test_a_binding_whose_name_would_replace_a_swizzle_is_refused():
    signature = SAXPY.signature(F32, {**PARAMS, "ADDRESS": True})
    wrong = replace(signature, bindings=(Binding("x", F32, ("M",)), *signature.bindings[1:]))
    with pytest.raises(RenderError, match="binding 'x' of saxpy/f32"):
        render(replace(SAXPY, signature=lambda p, v: wrong), "f32", PARAMS)


def test_the_hash_of_the_sources_covers_every_file_used_and_no_other(family):
    sources = {"t": '{% include "lib/a.j2" %}', "lib__a": '{% import "lib/b.j2" as b %}'}
    before = template_sha256(family(**sources, lib__b="1", lib__c="1"))
    assert template_sha256(family(**sources, lib__b="1", lib__c="2")) == before
    assert template_sha256(family(**sources, lib__b="2", lib__c="2")) != before


def test_an_edited_template_is_read_again(family):
    assert render(family(t="one"), "f32", PARAMS).glsl == "one"
    assert render(family(t="two"), "f32", PARAMS).glsl == "two"
