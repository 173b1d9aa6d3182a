"""What `inspect --space` shows: how many variants are valid here, and why not more."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.compile import buildable, find_compiler, missing_extensions
from kernelforge.errors import CompileError
from kernelforge.families import get_family
from kernelforge.family import KernelFamily
from kernelforge.space_survey import Survey, survey
from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk import open_device

HEADERS = ("first", "alone", "kind", "reason")


def device_profile(args: argparse.Namespace, output: Output) -> DeviceInfo:
    """The device asked for; where there is none at all, the generic profile."""
    try:
        with open_device(args.device) as device:
            return device.info
    except DeviceError as error:
        if args.device is not None:
            raise
        output.note(f"for any Vulkan 1.2 device, because: {error}")
        return GENERIC


def show_space(args: argparse.Namespace, output: Output) -> None:
    """Sizes, counts per reason, the device's limits, and what cannot be built."""
    family = get_family(args.target)
    precision = family.precision(args.precision) if args.precision else family.precisions[0]
    problem = _problem(family, args.problem)
    info = device_profile(args, output)
    found = survey(family, precision, info, problem, buildable(info))
    gate = compile_gate(family)
    at = f" at {problem}" if problem else ""
    output.text(f"{family.name} {precision.name} on {info.name}{at}")
    output.text(f"configurations  {found.size} in the product of all choices")
    output.text(f"valid           {found.valid}{_spaces(family, info, problem)}")
    if gate:
        output.text(f"not built here  {gate}")
    output.text()
    output.table(HEADERS, _rows(found))
    output.text()
    output.text(
        "first: fall out by this before anything else; alone: refused by this by itself, of"
    )
    output.text("the whole product (repeats, limits: of what constraints leave)")
    output.text()
    output.table(("limit of the device, checked before compiling", "value"), found.limits)
    for feature, values in found.lacking.items():
        output.text(f"lacks {feature}: no {', '.join(values)}")
    output.document(_document(family, precision.name, info, problem, found, gate))


def compile_gate(family: KernelFamily) -> str | None:
    """Why nothing of the family can be built on this machine; None where it can."""
    try:
        compiler = find_compiler()
        missing = missing_extensions(family)
    except CompileError as error:
        return " ".join(str(error).split())
    if missing:
        return f"glslang {compiler.version} does not know {', '.join(missing)}"
    return None


def _problem(family: KernelFamily, given: Problem | None) -> Problem | None:
    if given is None:
        return None
    problem = family.completed(given)
    if why := family.refuses(problem):
        raise UsageError(f"--problem {given}: {why}")
    return problem


def _spaces(family: KernelFamily, info: DeviceInfo, problem: Problem | None) -> str:
    if problem is not None or not family.space.problem_constraints:
        return ""
    return f"; fewer at one problem: --problem {_example(family)}"


def _example(family: KernelFamily) -> str:
    usual = family.default_problems or family.corner_problems
    return ",".join(f"{n}={v}" for n, v in usual[0].items()) if usual else "M=..,K=.."


def _rows(found: Survey) -> list[tuple[str, str, str, str]]:
    ordered = sorted(found.reasons, key=lambda r: -r.first)
    return [
        (str(r.first), "-" if r.alone is None else str(r.alone), r.kind, r.text)
        for r in ordered
        if r.first or r.alone
    ]


def _document(
    family: KernelFamily,
    precision: str,
    info: DeviceInfo,
    problem: Problem | None,
    found: Survey,
    gate: str | None,
) -> dict[str, Any]:
    return {
        "family": family.name,
        "precision": precision,
        "problem": None if problem is None else dict(problem),
        "device": info.slug,
        "not_built": gate,
        "space": {
            "size": found.size,
            "valid": found.valid,
            "reasons": [asdict(reason) for reason in found.reasons],
            "limits": dict(found.limits),
            "lacking": dict(found.lacking),
        },
    }
