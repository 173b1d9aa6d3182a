"""What is said of a bundle whose templates, families, driver or processor have changed since."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelforge.families import load_families
from kernelforge.render import render, template_sha256
from kernelforge.space import Choice, Space
from kernelforge.stale import age, stale
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Entry, Fingerprint, KernelSet, open_bundle
from kernelforge_runtime.vk import list_devices
from tests.runtime.bundle_files import DEVICE, entry, write_bundle
from tests.toolkit.cli_process import ROOT, kernelforge, need_device
from tests.toolkit.small_family import small_family

FAMILY = small_family()
PARAMS = {"WORKGROUP": 16, "ROWS": 2, "FAULT": "none"}


def packed(**changes: Any) -> Entry:
    rendered = render(FAMILY, "f32", PARAMS)
    made = entry(
        Problem(M=64, K=64),
        "small",
        variant=rendered.variant,
        signature=FAMILY.signature(FAMILY.precisions[0], PARAMS),
        template_sha256=template_sha256(FAMILY),
        glsl_sha256=rendered.sha256,
    )
    return replace(made, **changes)


def lines(made: Entry, family: Any = FAMILY, **options: Any) -> list[str]:
    families = {"small": family} if family is not None else {}
    return [found.line() for found in stale([made], families, **options)]


def test_what_has_not_changed_is_not_stale() -> None:
    assert lines(packed()) == []


def test_an_edit_that_does_not_reach_a_kernel_is_told_from_one_that_does() -> None:
    edited = packed(template_sha256="f" * 64)
    assert lines(edited) == ["small: its template has changed, its kernels not"]
    other = replace(edited, glsl_sha256="e" * 64)
    assert lines(other) == ["small: 1 of 1 kernels would be other ones now"]
    assert lines(other, templates=False) == []


def test_where_few_kernels_are_looked_at_that_is_said() -> None:
    edited = packed(template_sha256="f" * 64)
    other = replace(edited, glsl_sha256="e" * 64)
    families = {"small": FAMILY}
    (one,) = stale([other, edited, other], families, most=1)
    # The second is another kernel, which was not rendered; the third is the first once more.
    assert (one.other, one.unknown) == (2, 1)
    assert one.line() == "small: at least 2 of 3 kernels would be other ones now"
    (none,) = stale([edited, edited], families, most=0)
    assert none.line() == "small: its template has changed, its kernels perhaps"


def test_a_declaration_that_has_changed_is_seen_without_its_template() -> None:
    more = Space(*FAMILY.space.choices, Choice("NEW", (1, 2), default=1))
    grown = small_family(space=more)
    gone = ["small: 1 of 1 kernels are no variants of it any more"]
    assert lines(packed(), grown, templates=False) == gone
    assert lines(packed(), None) == gone

    def wider(precision: Any, params: Any) -> Any:
        return replace(FAMILY.signature(precision, params), workgroup=8)

    other = small_family(signature=wider)
    says = ["small: 1 of 1 kernels would be other ones now"]
    assert lines(packed(), other, templates=False) == says


def test_the_age_of_a_bundle_is_one_line_with_the_command_that_mends_it(tmp_path: Path) -> None:
    tuned = open_bundle(write_bundle(tmp_path / "tuned", DEVICE))
    known = age(tuned)
    assert known is not None
    assert known.line() == (
        "stale: saxpy: 1 of 1 kernels are no variants of it any more. "
        "Tune it again: kernelforge tune --device example-x1 --model FILE"
    )
    generic = age(open_bundle(write_bundle(tmp_path / "generic", GENERIC)))
    assert generic is not None
    assert generic.advice == "Make it again: kernelforge build --generic"


def test_a_bundle_that_is_not_exact_is_told_to_python_programs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(tmp_path / "example-x1", DEVICE)
    KernelSet.open(DEVICE, search=[tmp_path]).tell()
    assert caplog.text == ""
    newer = replace(DEVICE, driver_info="2.0")
    kernels = KernelSet.open(newer, search=[tmp_path]).tell()
    assert len(kernels.bundles[0].entries) == 1  # it runs all the same
    assert "another driver example 1.0 (here: example 2.0)" in caplog.text
    assert "kernelforge tune --device example-x1 --model FILE" in caplog.text


@pytest.mark.vulkan
def test_the_list_of_devices_says_that_a_template_was_edited_and_what_to_run(
    tmp_path: Path,
) -> None:
    need_device()
    here = next(info for info in list_devices() if info.slug == "llvmpipe")
    shutil.copytree(ROOT / "templates", tmp_path / "templates")
    argmax = load_families()["argmax"]
    params = argmax.default(argmax.precisions[0], here)
    rendered = render(argmax, argmax.precisions[0], params)
    made = entry(
        argmax.corner_problems[0],
        "argmax",
        precision=argmax.precisions[0].name,
        variant=rendered.variant,
        signature=argmax.signature(argmax.precisions[0], params),
        template_sha256=template_sha256(argmax),
        glsl_sha256=rendered.sha256,
    )
    folder = write_bundle(tmp_path / "llvmpipe", here, (made,))
    env = {"KERNELFORGE_TUNED": str(folder), "KERNELFORGE_TEMPLATES": str(tmp_path / "templates")}
    template = tmp_path / "templates" / argmax.template
    text = template.read_text()
    says = {
        text: "",
        text + "{# a remark #}": "templates were edited since: argmax; kernelforge inspect",
        text + "// more": "argmax: 1 of 1 kernels would be other ones now. Tune it again: kernelf",
        text + "{% if %}": "argmax.comp.j2",
    }
    for edited, line in says.items():
        template.write_text(edited)
        told = kernelforge("devices", **env)
        assert told.returncode == 0, told.stderr
        assert line in told.stderr
        assert bool(line) == (f"{folder}: " in told.stderr)


@pytest.mark.vulkan
def test_inspect_and_doctor_say_what_differs_from_the_device_here(tmp_path: Path) -> None:
    need_device()
    here = next(info for info in list_devices() if info.slug == "llvmpipe")
    elsewhere = replace(here, driver_info="Mesa 1.0", processor="Slow 10")
    folder = write_bundle(tmp_path / "llvmpipe", elsewhere)
    assert Fingerprint.of(elsewhere).differences(Fingerprint.of(here))
    shown = kernelforge("inspect", folder)
    assert shown.returncode == 0, shown.stderr
    assert "on       Slow 10" in shown.stdout
    assert "Mesa 1.0 (here: " in shown.stdout
    assert f"processor Slow 10 (here: {here.processor})" in shown.stdout
    assert "stale: saxpy: 1 of 1 kernels" in shown.stdout
    told = kernelforge("devices", KERNELFORGE_TUNED=str(tmp_path))
    assert "llvmpipe (other driver)" in told.stdout
    assert "kernels were verified there, not here: kernelforge inspect" in told.stderr
    assert "stale: saxpy" in told.stderr
