"""Compiling: reproducible modules, errors that lead to the template, and no compiler at all."""

import os
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernelforge.compile import (
    SpirvCache,
    compile_many,
    compile_rendered,
    compile_variant,
    glslang,
    validate,
)
from kernelforge.compile.glslang import (
    compile_glsl,
    explain,
    find_compiler,
    working_compiler,
)
from kernelforge.compile.probe import accepts
from kernelforge.errors import CompileError
from kernelforge.render import render
from kernelforge.space import Space
from kernelforge.tune import study
from kernelforge.tune.study import study_name
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding
from kernelforge_runtime.dtypes import F32
from tests.toolkit.fixtures.saxpy import FOLDER, SAXPY

needs_glslang = [
    pytest.mark.glslang,
    pytest.mark.skipif(
        shutil.which("glslangValidator") is None,
        reason="no glslangValidator: apt-get install glslang-tools",
    ),
]
ALL = replace(
    GENERIC,
    max_workgroup_invocations=64,
    features=frozenset({"buffer_device_address"}),
)
PARAMS = {"WORKGROUP": 64, "ROUTE": "direct", "ADDRESS": False}


@pytest.fixture
def cache(tmp_path):
    return SpirvCache(tmp_path / "cache")


@pytest.fixture
def broken(tmp_path):
    """Makes the saxpy family with one text of its template replaced."""

    def make(old, new, **changes):
        text = (FOLDER / "saxpy.comp.j2").read_text()
        assert old in text
        (tmp_path / "saxpy.comp.j2").write_text(text.replace(old, new))
        return replace(SAXPY, templates=tmp_path, **changes)

    return make


class TestWithCompiler:
    pytestmark = needs_glslang

    def test_every_variant_compiles_and_is_valid_in_both_addressing_modes(self, cache):
        requests = [(SAXPY, "f32", p) for p in SAXPY.valid("f32", ALL)]
        modules = compile_many(requests, workers=2, cache=cache)
        assert len(modules) == 8
        for (_, _, params), module in zip(requests, modules, strict=True):
            assert isinstance(module, ShaderModule), module
            assert module.name == SAXPY.variant("f32", params).name
        if shutil.which("spirv-val") is None:
            pytest.skip("compiled; no spirv-val: apt-get install spirv-tools")
        assert all(validate(m) for m in modules[:4])

    def test_compiling_again_gives_the_same_bytes(self, tmp_path):
        one = compile_variant(SAXPY, "f32", PARAMS, SpirvCache(tmp_path / "a"))
        two = compile_variant(SAXPY, "f32", PARAMS, SpirvCache(tmp_path / "b"))
        assert one.spirv == two.spirv and one.sha256 == two.sha256

    def test_a_module_from_the_cache_equals_a_compiled_one(self, cache, monkeypatch):
        one = compile_variant(SAXPY, "f32", PARAMS, cache)
        monkeypatch.setattr("kernelforge.compile.compile_glsl", None)  # would fail if called
        assert compile_variant(SAXPY, "f32", PARAMS, cache) == one

    def test_an_error_leads_to_the_line_of_the_template(self, broken, cache):
        family = broken("if (i >= M) return;", "if (i >= count) return;")
        source = (family.templates / "saxpy.comp.j2").read_text().split("\n")
        line = 1 + next(i for i, s in enumerate(source) if "count" in s)
        with pytest.raises(CompileError) as caught:
            compile_variant(family, "f32", PARAMS, cache)
        message = str(caught.value)
        assert message.startswith(f"saxpy.comp.j2:{line}: 'count' : undeclared identifier")
        assert message.endswith("(variant saxpy/f32/ADDRESS0.ROUTE=direct.WORKGROUP64)")
        assert "\n" not in message

    def test_one_wrong_variant_does_not_stop_the_others(self, broken, cache):
        family = broken("barrier();", "barrier(;")
        seen = {}
        results = compile_many(
            [(family, "f32", {**PARAMS, "ROUTE": r}) for r in ("shared", "direct")],
            workers=2,
            cache=cache,
            done=seen.__setitem__,
        )
        assert isinstance(results[0], CompileError) and isinstance(results[1], ShaderModule)
        assert [seen[0], seen[1]] == results

    def test_a_template_that_does_not_render_is_an_error_of_that_variant(self, broken, cache):
        family = broken("{{ WORKGROUP }}", "{{ WORKGROUPS }}")
        [result] = compile_many([(family, "f32", {**PARAMS, "ROUTE": "shared"})], cache=cache)
        assert isinstance(result, CompileError) and "'WORKGROUPS' is undefined" in str(result)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"workgroup": 32}, "workgroup .64, 1, 1.: the signature says 32"),
            ({"push_constants": ()}, "push constants of 8 bytes: the signature says 0"),
            (
                {"bindings": tuple(Binding(n, F32, ("M",)) for n in ("left", "right", "out_"))},
                "bindings .0.0 read, 0.1 read, 0.2 write.: .* 0.2 read",
            ),
            ({"addressing": "address"}, "bindings .0.0 read.*the signature says bindings ..$"),
        ],
    )
    def test_a_template_that_disagrees_with_its_signature_is_refused(
        self, monkeypatch, cache, change, message
    ):
        rendered = render(SAXPY, "f32", PARAMS)
        true = SAXPY.signature(F32, PARAMS)
        family = replace(SAXPY, signature=lambda precision, params: replace(true, **change))
        with pytest.raises(CompileError, match=f"template and signature disagree.*{message}"):
            compile_rendered(family, "f32", PARAMS, rendered, cache)

    def test_an_undeclared_feature_is_refused(self, broken, cache):
        family = broken("if (i >= M) return;", "if (i >= M || int64_t(i) < 0) return;")
        text = (family.templates / "saxpy.comp.j2").read_text()
        (family.templates / "saxpy.comp.j2").write_text(
            text.replace(
                "{{ declare() }}",
                "#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require\n"
                "{{ declare() }}",
            )
        )
        with pytest.raises(CompileError, match="it uses int64: the signature does not list that"):
            compile_variant(family, "f32", PARAMS, cache)

    def test_an_extension_that_the_compiler_does_not_know_is_named(self, cache):
        assert accepts("GL_EXT_buffer_reference") and not accepts("GL_EXT_teapot")
        family = replace(SAXPY, requires=("GL_EXT_buffer_reference", "GL_EXT_teapot"))
        with pytest.raises(
            CompileError, match=r"needs GL_EXT_teapot: glslang .* KERNELFORGE_GLSLANG"
        ):
            compile_variant(family, "f32", PARAMS, cache)

    def test_a_family_without_parameters_compiles(self, broken, cache):
        family = broken("{{ WORKGROUP }}", "64", space=Space())
        text = (
            (family.templates / "saxpy.comp.j2").read_text().replace('ROUTE == "shared"', "false")
        )
        (family.templates / "saxpy.comp.j2").write_text(text)
        family = replace(family, signature=lambda p, v: SAXPY.signature(p, PARAMS))
        assert compile_variant(family, "f32", {}, cache).name == "saxpy/f32/default"

    def test_a_path_relative_to_here_works_although_the_compiler_runs_elsewhere(
        self, monkeypatch, tmp_path
    ):
        (tmp_path / "glsl").symlink_to(shutil.which("glslangValidator"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KERNELFORGE_GLSLANG", "./glsl")
        glsl = "#version 460\nlayout(local_size_x = 8) in;\nvoid main() {}\n"
        assert compile_glsl(glsl, "empty")[:4] == b"\x03\x02\x23\x07"

    def test_one_that_works_may_begin_a_search_and_another_version_begins_a_new_study(
        self, monkeypatch
    ):
        assert working_compiler() == find_compiler()
        device, problem = SimpleNamespace(info=GENERIC), Problem(N=8)
        now = study_name(device, SAXPY, F32, problem, [PARAMS])
        newer = replace(find_compiler(), version="99:1.0")
        monkeypatch.setattr(study, "find_compiler", lambda: newer)
        assert study_name(device, SAXPY, F32, problem, [PARAMS]) != now


@pytest.mark.skipif(
    shutil.which("spirv-val") is None, reason="no spirv-val: apt-get install spirv-tools"
)
def test_spirv_val_finds_what_declarations_do_not_show():
    spirv = (FOLDER / "saxpy_descriptor.spirv").read_bytes()
    module = ShaderModule("saxpy/f32/X1", spirv, SAXPY.signature(F32, PARAMS))
    assert validate(module)
    without_return = spirv.replace(b"\xfd\x00\x01\x00\x38\x00\x01\x00", b"\x38\x00\x01\x00")
    assert len(without_return) == len(spirv) - 4
    with pytest.raises(CompileError, match="module saxpy/f32/X1 is not valid SPIR-V: "):
        validate(replace(module, spirv=without_return))


def test_without_spirv_val_nothing_is_claimed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not validate(ShaderModule("m", b"", SAXPY.signature(F32, PARAMS)))


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch, cache):
    monkeypatch.delenv("KERNELFORGE_GLSLANG", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CompileError, match=r"apt-get install glslang-tools .running a model"):
        compile_variant(SAXPY, "f32", PARAMS, cache)


def test_a_wrong_override_is_named(monkeypatch):
    monkeypatch.setenv("KERNELFORGE_GLSLANG", "/nowhere/glslang")
    with pytest.raises(CompileError, match="KERNELFORGE_GLSLANG=/nowhere/glslang"):
        find_compiler()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a compiler out of a shell script and selects it."""

    def make(body):
        path = tmp_path / "fake-glslang"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("KERNELFORGE_GLSLANG", str(path))
        return path

    return make


VERSION = 'if [ "$1" = --version ]; then echo "Glslang Version: 99:1.0"; exit 0; fi\n'


def test_the_version_is_asked_for_once(fake, tmp_path):
    fake(f"echo asked >> {tmp_path}/log\n{VERSION}")
    assert find_compiler() == find_compiler()
    assert find_compiler().version == "99:1.0"
    assert (tmp_path / "log").read_text() == "asked\n"


def test_a_program_that_is_no_glslang_is_refused(fake):
    fake("echo hello")
    with pytest.raises(CompileError, match="says no glslang version"):
        find_compiler()


def test_a_compiler_that_does_not_end_is_stopped(fake, monkeypatch):
    fake(VERSION + "exec sleep 60")
    monkeypatch.setattr(glslang, "TIME_LIMIT_S", 0.2)
    with pytest.raises(CompileError, match="took over"):
        compile_glsl("", "slow")


def test_what_a_stopped_compiler_has_started_ends_with_it(fake, monkeypatch, tmp_path):
    fake(VERSION + f"sleep 60 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(glslang, "TIME_LIMIT_S", 2.0)  # it has to come as far as that
    with pytest.raises(CompileError, match="took over"):
        compile_glsl("", "slow")
    stat = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(600):
        if not stat.exists() or ") Z " in stat.read_text():
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("kill -SEGV $$", "compiles not even an empty kernel: glslang ended with -11"),
        (": > kernel.spv", "writes no SPIR-V for an empty kernel"),
        ("exit 0", "compiles not even an empty kernel"),
    ],
)
def test_a_compiler_that_compiles_nothing_is_told_before_a_search(fake, body, says):
    path = fake(VERSION + body)
    assert find_compiler().path == str(path)
    with pytest.raises(CompileError, match=says):
        working_compiler()


def test_a_compiler_that_crashes_is_reported(fake):
    fake(VERSION + "kill -SEGV $$")
    with pytest.raises(CompileError, match=r"glslang ended with -11 and said '' \(variant x\)"):
        compile_glsl("", "x")


def test_a_compiler_that_writes_nonsense_is_caught(fake, cache):
    fake(VERSION + 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    with pytest.raises(CompileError, match="SPIR-V"):
        compile_variant(SAXPY, "f32", PARAMS, cache)
    assert not any(p.is_file() for p in cache.folder.rglob("*"))


def test_an_error_without_a_line_is_still_explained():
    output = "kernel.comp\nERROR: Linking compute stage: Missing entry point\n"
    assert explain(output, 2, str) == "glslang: Linking compute stage: Missing entry point"
    assert os.linesep not in explain("a\nb\n", 1, str)


def test_several_errors_give_the_first_and_how_many_follow():
    output = (
        "kernel.comp\n"
        "ERROR: kernel.comp:3: 'a' : undeclared identifier \n"
        "ERROR: kernel.comp:5: 'b' : undeclared identifier \n"
        "ERROR: kernel.comp:5: '' : compilation terminated \n"
        "ERROR: 3 compilation errors.  No code generated.\n"
    )
    found = explain(output, 2, lambda line: f"t.j2:{10 * line}")
    assert found == "t.j2:30: 'a' : undeclared identifier; and 1 more error"
