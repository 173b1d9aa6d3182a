"""What a device or the compiler leaves out of the families, and why."""

from dataclasses import replace

import pytest

from kernelforge.compile import (
    accepts,
    buildable,
    find_compiler,
    missing_extensions,
    probe,
)
from kernelforge.compile.check import extensions_in
from kernelforge.compile.coverage import Gap, gaps, required_extensions
from kernelforge.errors import CompileError
from kernelforge.families import load_families
from kernelforge.space import Constraint, Space
from kernelforge_runtime.abi.device_info import GENERIC
from tests.toolkit.fixtures.saxpy import SAXPY

WHOLE = replace(GENERIC, features=frozenset({"buffer_device_address", "cooperative_matrix"}))
SUBGROUP = "a subgroup holds the shared route"
UNEVEN = "an odd rule that no shared route obeys"


def saxpy(*rules: Constraint):
    space = SAXPY.space
    return replace(SAXPY, space=Space(*space.choices, *space.constraints, *rules))


@pytest.fixture
def old_compiler(tmp_path, monkeypatch):
    """A compiler that knows no extension: it answers for its version and refuses every source."""
    path = tmp_path / "glslangValidator"
    path.write_text("#!/bin/sh\n[ $1 = --version ] && echo 'Glslang Version: 1:0.0.1' || exit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("KERNELFORGE_GLSLANG", str(path))


def test_a_device_that_has_all_leaves_out_nothing():
    assert list(gaps(SAXPY, WHOLE)) == []


def test_a_form_that_needs_a_feature_is_left_out_for_it():
    (gap,) = gaps(SAXPY, GENERIC)
    assert gap == Gap("saxpy", "f32", "ADDRESS=True", "needs buffer_device_address")


def test_the_reason_is_the_rule_that_looks_at_the_device():
    family = saxpy(
        Constraint(UNEVEN, lambda p, d: p["ROUTE"] == "direct" or p["WORKGROUP"] == 32),
        Constraint(SUBGROUP, lambda p, d: p["ROUTE"] == "direct" or d.subgroup_max >= 256),
    )
    assert family.space.explain(WHOLE)[UNEVEN] > family.space.explain(WHOLE)[SUBGROUP]
    (gap,) = gaps(family, WHOLE)
    assert (gap.form, gap.reason) == ("ROUTE=shared", SUBGROUP)


def test_a_precision_without_any_variant_is_said_once():
    (gap,) = gaps(SAXPY, replace(WHOLE, max_shared_memory=64))
    assert gap == Gap("saxpy", "f32", "", "staged fits")
    (gap,) = gaps(SAXPY, replace(WHOLE, max_workgroup_invocations=16))
    assert gap.form == "" and gap.reason.startswith("workgroup of")


def test_what_a_parameter_does_not_change_is_not_called_left_out():
    family = replace(SAXPY, matters=lambda precision, p: p["ROUTE"] == "direct")
    assert list(gaps(family, WHOLE)) == []


def test_a_form_whose_extension_the_compiler_lacks_is_left_out_for_that():
    (gap,) = gaps(SAXPY, WHOLE, {"GL_EXT_buffer_reference", "GL_not_needed"})
    assert gap.form == "ADDRESS=True"
    assert gap.reason == "the GLSL compiler does not know GL_EXT_buffer_reference"


def test_required_extensions_are_those_of_templates_and_of_declarations():
    found = required_extensions([replace(SAXPY, requires=("GL_declared",))])
    assert {"GL_declared", "GL_EXT_buffer_reference"} <= set(found)
    assert list(found) == sorted(set(found))


def test_extensions_are_read_from_source_lines_that_require_them():
    glsl = "#extension GL_A : require\n#extension GL_B : enable\n// #extension GL_C : require\n"
    assert extensions_in(glsl + "#extension  GL_D: require\n" + glsl) == ("GL_A", "GL_D")


def test_a_source_is_missing_what_the_compiler_does_not_know(old_compiler):
    glsl = "#extension GL_KHR_one : require\n#extension GL_declared : require\n"
    family = replace(SAXPY, requires=("GL_declared",))
    assert missing_extensions(family, glsl) == ("GL_declared", "GL_KHR_one")


def test_a_feature_that_the_compiler_cannot_use_is_not_built_for(old_compiler):
    assert buildable(WHOLE).features == {"buffer_device_address"}
    assert buildable(GENERIC) is GENERIC


def test_without_a_compiler_a_device_stays_what_it_is(monkeypatch):
    monkeypatch.setenv("KERNELFORGE_GLSLANG", "/nonexistent")
    assert buildable(WHOLE) is WHOLE


@pytest.mark.glslang
def test_this_compiler_knows_all_but_cooperative_matrices_at_least():
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")
    required = set(required_extensions(load_families().values()))
    unknown = {extension for extension in required if not accepts(extension)}
    assert unknown <= {"GL_KHR_cooperative_matrix", "GL_NV_cooperative_matrix2"}


def test_a_compiler_is_asked_once_for_an_extension_and_another_one_anew(tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    path = tmp_path / "glslangValidator"
    said = "ERROR: kernel.comp:2: '#extension' : extension not supported: GL_EXT_teapot"
    text = (
        "#!/bin/sh\n[ $1 = --version ] && echo 'Glslang Version: 1:0.0.1' && exit 0\n"
        f'echo x >>"{asked}"; echo "{said}"; exit 1\n'
    )
    monkeypatch.setenv("KERNELFORGE_GLSLANG", str(path))
    monkeypatch.setenv("KERNELFORGE_CACHE", str(tmp_path / "cache"))
    for size in (0, 1):  # a compiler that was exchanged has another size
        path.write_text(text + "#" * size)
        path.chmod(0o755)
        for _process in range(2):
            probe._accepts.cache_clear()
            assert not accepts("GL_EXT_teapot")
        assert asked.read_text().count("x") == size + 1


def test_a_probe_that_failed_for_another_reason_is_repeated(tmp_path, monkeypatch, old_compiler):
    monkeypatch.setenv("KERNELFORGE_CACHE", str(tmp_path / "cache"))
    assert not accepts("GL_EXT_teapot")
    assert not (tmp_path / "cache" / "extensions").exists()
