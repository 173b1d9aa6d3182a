"""SPIR-V compiled on one machine serves another that has no compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelforge.compile import SpirvCache, compile_variant
from kernelforge.errors import CompileError
from kernelforge.families import get_family
from kernelforge_runtime.abi.device_info import GENERIC

pytestmark = pytest.mark.glslang


def test_what_was_compiled_with_the_folder_set_needs_no_compiler_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = get_family("copy")
    params = family.default("f32", GENERIC)
    other = {**params, "WORKGROUP": 32}
    monkeypatch.setenv("KERNELFORGE_SPIRV", str(tmp_path / "carried"))
    compiled = compile_variant(family, "f32", params, SpirvCache(tmp_path / "here"))

    monkeypatch.setenv("KERNELFORGE_GLSLANG", str(tmp_path / "no-such-compiler"))
    elsewhere = SpirvCache(tmp_path / "elsewhere")
    assert compile_variant(family, "f32", params, elsewhere) == compiled
    with pytest.raises(CompileError, match="no GLSL compiler"):
        compile_variant(family, "f32", other, elsewhere)


def test_damaged_spirv_is_not_carried_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = get_family("copy")
    params = family.default("f32", GENERIC)
    monkeypatch.setenv("KERNELFORGE_SPIRV", str(tmp_path / "carried"))
    good = compile_variant(family, "f32", params, SpirvCache(tmp_path / "here"))
    [entry] = (tmp_path / "carried").rglob("*.spv")
    damaged = bytearray(entry.read_bytes())
    damaged[-5] ^= 1
    entry.write_bytes(damaged)
    assert compile_variant(family, "f32", params, SpirvCache(tmp_path / "here")) == good

    monkeypatch.setenv("KERNELFORGE_GLSLANG", str(tmp_path / "no-such-compiler"))
    assert compile_variant(family, "f32", params, SpirvCache(tmp_path / "empty")) == good
