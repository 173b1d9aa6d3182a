"""What `inspect` shows of a family and of one variant."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from kernelforge.cli.inspect_space import device_profile, show_space
from kernelforge.cli.output import Output
from kernelforge.compile import compile_rendered, validate
from kernelforge.errors import CompileError
from kernelforge.families import get_family
from kernelforge.render import render
from kernelforge.variant import Variant
from kernelforge_runtime.abi.grid import Term, Times
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.abi.spirv import reflect
from kernelforge_runtime.bundle import why_not


def show_family(args: argparse.Namespace, output: Output) -> None:
    """Parameters, default and signature; with --space, why configurations fall out."""
    if args.space:
        show_space(args, output)
        return
    family = get_family(args.target)
    precision = family.precision(args.precision) if args.precision else family.precisions[0]
    info = device_profile(args, output)
    problem = family.default_problems[0] if family.default_problems else None
    default = family.default(precision, info, problem)
    signature = family.signature(precision, default)
    output.text(f"{family.name}: template {family.template}, {info.name}")
    output.text(f"precisions  {' '.join(p.name for p in family.precisions)}")
    output.text(f"dimensions  {' '.join(family.dims)}")
    if family.requires:
        output.text(f"requires    {' '.join(family.requires)}")
    output.text(f"default     {family.variant(precision, default).name}")
    output.text()
    output.table(
        ("parameter", "values", "default"),
        [(c.name, " ".join(map(str, c.values)), default[c.name]) for c in family.space.choices],
    )
    output.text()
    _show_signature(output, signature)
    document: dict[str, Any] = {
        "family": family.name,
        "precisions": [p.name for p in family.precisions],
        "dims": family.dims,
        "parameters": {c.name: c.values for c in family.space.choices},
        "default": default,
        "signature": signature.to_json(),
        "device": info.slug,
    }
    output.document(document)


def show_variant(args: argparse.Namespace, output: Output) -> None:
    """Its signature; with options its GLSL, SPIR-V and what that declares."""
    variant = Variant.parse(args.target)
    family = get_family(variant.family)
    precision = family.precision(variant.precision)
    params = family.space.normalise(variant.values)
    rendered = render(family, precision, params)
    document: dict[str, Any] = {"variant": rendered.variant}
    if args.glsl:
        output.text(rendered.glsl.rstrip("\n"))
        document["glsl"] = rendered.glsl
    if not args.glsl and not args.spirv:
        info = device_profile(args, output)
        signature = family.signature(precision, params)
        why = family.space.refuses(params, info) or why_not(signature, info)
        output.text(f"{rendered.variant}")
        output.text(f"on {info.name}: {why or 'valid'}")
        output.text()
        _show_signature(output, signature)
        document |= {"signature": signature.to_json(), "device": info.slug, "refused": why}
    if args.spirv or args.stats:
        module = compile_rendered(family, precision, params, rendered)
        if args.spirv:
            text = _disassembled(module)
            output.text(text.rstrip("\n"))
            document["spirv"] = text
        if args.stats:
            document["stats"] = stats = _stats(module)
            output.text()
            output.table(("SPIR-V", ""), list(stats.items()))
    output.document(document)


def _show_signature(output: Output, signature: Signature) -> None:
    output.table(
        ("binding", "type", "shape", "access", "layout"),
        [
            (b.name, b.dtype.name, f"[{', '.join(map(str, b.shape))}]", b.access, b.layout or "-")
            for b in signature.bindings
        ],
    )
    axes = [
        "*".join(_spell(term) for term in axis) or "1"
        for axis in (signature.grid.x, signature.grid.y, signature.grid.z)
    ]
    output.text()
    output.text(f"push constants  {' '.join(c.name for c in signature.push_constants) or 'none'}")
    output.text(f"workgroup       {signature.workgroup} invocations, {signature.addressing} bound")
    output.text(f"grid            {' x '.join(axes)} workgroups")
    if signature.subgroup:
        output.text(f"subgroup        {signature.subgroup}, required")
    if signature.features:
        output.text(f"features        {' '.join(signature.features)}")
    if signature.fixed:
        fixed = " ".join(f"{name}={value}" for name, value in signature.fixed)
        output.text(f"compiled in     {fixed}")
    if signature.multiples:
        multiples = " ".join(f"{name}={size}" for name, size in signature.multiples)
        output.text(f"multiples of    {multiples}: bounds are not checked")


def _spell(term: Term) -> str:
    if isinstance(term, Times):
        return str(term.count)
    return f"ceil({term.dim}/{term.divisor})" if term.divisor > 1 else term.dim


def _stats(module: ShaderModule) -> dict[str, Any]:
    found = reflect(module.spirv)
    return {
        "sha256": module.sha256,
        "bytes": len(module.spirv),
        "instructions": _instructions(module.spirv),
        "version": ".".join(map(str, found.version)),
        "workgroup": " x ".join(map(str, found.workgroup)),
        "buffers": len(module.signature.bindings),
        "shared memory bytes": found.shared_bytes,
        "push constant bytes": found.push_constant_bytes,
        "capabilities": " ".join(sorted(found.capabilities)),
        "extensions": " ".join(sorted(found.extensions)) or "none",
        "spirv-val": "valid" if validate(module) else "not installed",
    }


def _instructions(spirv: bytes) -> int:
    """Number of instructions: each says its own length in words."""
    at, number = 20, 0
    while at < len(spirv):
        at += 4 * max(1, int.from_bytes(spirv[at + 2 : at + 4], "little"))
        number += 1
    return number


def _disassembled(module: ShaderModule) -> str:
    path = shutil.which("spirv-dis")
    if path is None:
        raise CompileError(
            "no spirv-dis to show SPIR-V with: apt-get install spirv-tools "
            "(kernelforge build --out FOLDER writes the bytes)"
        )
    with tempfile.NamedTemporaryFile(suffix=".spv", prefix="kernelforge-") as file:
        Path(file.name).write_bytes(module.spirv)
        said = subprocess.run(
            [path, "--no-color", file.name], capture_output=True, text=True, check=False, timeout=60
        )
    if said.returncode:
        raise CompileError(f"spirv-dis failed on {module.name}: {said.stderr.strip()}")
    return said.stdout
