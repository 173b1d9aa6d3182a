"""Renders and compiles kernels, without a GPU; --generic makes the bundle for any device."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar

if TYPE_CHECKING:
    from kernelforge.compile import Request
    from kernelforge.family import KernelFamily
    from kernelforge_runtime.abi.device_info import DeviceInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `build` takes."""
    options.add(parser, "family", help="kernel family (default: all of them)")
    options.add(parser, "precision", help="element type (default: all that a family has)")
    parser.add_argument(
        "--device-profile",
        metavar="PROFILE",
        default="generic",
        help="what to build for: generic (any Vulkan 1.2 device), this (the device of --device), "
        "or a FILE.json with one entry of `devices --json` (default: generic)",
    )
    options.add(parser, "device")
    parser.add_argument(
        "--all", action="store_true", help="every valid variant (default: the default ones)"
    )
    options.add(
        parser, "out", help="write GLSL and SPIR-V there; with --generic: the folder of bundles"
    )
    parser.add_argument(
        "--generic",
        action="store_true",
        help="write the generic bundle, each kernel verified on every device at hand",
    )


def run(args: argparse.Namespace) -> int:
    """Builds, and says how many were built, skipped or failed."""
    output = Output(args)
    # Here, so that --help needs none of the packages that building needs.
    from kernelforge.compile import find_compiler

    if args.generic:
        if args.family or args.precision or args.all or args.device_profile != "generic":
            raise UsageError(
                "--generic builds every family for any device: only --out goes with it"
            )
        find_compiler()
        return _generic_bundle(args, output)
    out = options.require_writable(args.out, "--out") if args.out else None
    compiler = find_compiler()
    info = _profile(args)
    requests, skipped = _requests(args, info)
    built, failed = _compile(output, requests, out)
    output.text(f"{len(built)} variants built for {info.name} with glslang {compiler.version}")
    for reason, number in skipped.most_common():
        output.text(f"{number} skipped: {reason}")
    for name, reason in failed.items():
        output.text(f"failed: {name}: {reason}")
    if out is not None:
        output.text(f"GLSL and SPIR-V in {out}")
    output.document(
        {
            "device": info.slug,
            "glslang": compiler.version,
            "built": built,
            "skipped": dict(skipped),
            "failed": failed,
            "out": out,
        }
    )
    if failed:
        from kernelforge.errors import CompileError

        first = next(iter(failed.values()))
        raise CompileError(f"{len(failed)} of {len(requests)} variants failed; the first: {first}")
    return 0


def _profile(args: argparse.Namespace) -> DeviceInfo:
    from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
    from kernelforge_runtime.errors import DeviceError
    from kernelforge_runtime.vk import open_device

    if args.device_profile == "generic" and args.device is None:
        return GENERIC
    if args.device_profile in ("generic", "this"):
        with open_device(args.device) as device:
            return device.info
    path = Path(args.device_profile)
    if path.suffix != ".json":
        raise UsageError(
            f"--device-profile {args.device_profile}: expected generic, this or FILE.json"
        )
    try:
        return DeviceInfo.from_json(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceError(
            f"device profile {path}: {type(error).__name__}: {error}; take one entry of "
            "`kernelforge devices --json`"
        ) from None


def _requests(args: argparse.Namespace, info: DeviceInfo) -> tuple[list[Request], Counter[str]]:
    """What to compile, and how many configurations are left out for which reason."""
    from kernelforge.compile import buildable, missing_extensions
    from kernelforge.errors import SpaceError
    from kernelforge.families import get_family, load_families

    families = [get_family(args.family)] if args.family else list(load_families().values())
    wanted: list[Request] = []
    skipped: Counter[str] = Counter()
    target = buildable(info)
    lost = ", ".join(sorted(info.features - target.features))
    unbuildable = f"glslang is too old for what the device has: {lost}"
    for family in families:
        precisions = [p for p in family.precisions if args.precision in (None, p.name)]
        if args.family and not precisions:
            family.precision(args.precision)  # raises, and says which there are
        missing = missing_extensions(family)
        for precision in precisions:
            if args.all:
                runnable = family.valid(precision, info)
                counts = family.space.explain(info)
                skipped["this device cannot run them"] += counts.pop("valid") - len(runnable)
                valid = runnable if target is info else family.valid(precision, target)
                skipped[f"{family.name}: {unbuildable}"] += len(runnable) - len(valid)
                skipped.update({f"{family.name}: {text}": n for text, n in counts.items()})
            else:
                try:
                    valid = list(_defaults(family, precision.name, target))
                except SpaceError as error:
                    valid = []
                    skipped[str(error)] += 1
            if missing:
                reason = f"{family.name} needs {', '.join(missing)}, which glslang does not know"
                skipped[reason] += len(valid)
            else:
                wanted += [(family, precision, params) for params in valid]
    if not wanted and not skipped:
        raise UsageError(f"no family comes in --precision {args.precision}")
    return wanted, +skipped


def _defaults(family: KernelFamily, precision: str, info: DeviceInfo) -> Iterator[dict[str, Any]]:
    """The default configuration of every usual problem, each once."""
    seen: list[dict[str, Any]] = []
    for problem in family.default_problems or (None,):
        params = family.default(precision, info, problem)
        if params not in seen:
            seen.append(params)
            yield params


def _compile(
    output: Output, requests: list[Request], out: Path | None
) -> tuple[list[str], dict[str, str]]:
    """Names of what was built, and reasons by name of what was not."""
    from kernelforge.compile import compile_many
    from kernelforge.errors import CompileError
    from kernelforge.render import render
    from kernelforge_runtime.abi.module import ShaderModule

    names = [family.variant(precision, params).name for family, precision, params in requests]
    done = 0
    with ProgressBar(output, "compiling", len(requests)) as bar:

        def finished(index: int, result: ShaderModule | CompileError) -> None:
            nonlocal done
            done += 1
            bar.show(done)
            if isinstance(result, CompileError):
                bar.line(f"failed  {names[index]}: {result}")
            elif done % 50 == 0 or done == len(requests):
                bar.line(f"compiled {done}/{len(requests)}")

        modules = compile_many(requests, done=finished)
    built, failed = [], {}
    for name, request, module in zip(names, requests, modules, strict=True):
        if isinstance(module, CompileError):
            failed[name] = str(module)
            continue
        built.append(name)
        if out is not None:
            path = out / f"{name}.spv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(module.spirv)
            (out / f"{name}.glsl").write_text(render(*request).glsl, encoding="utf-8")
    return built, failed


def _generic_bundle(args: argparse.Namespace, output: Output) -> int:
    from kernelforge.pack import pack
    from kernelforge.pack.generic import generic_winners
    from kernelforge_runtime.abi.device_info import GENERIC
    from kernelforge_runtime.resources import tuned_output_dir
    from kernelforge_runtime.vk import list_devices, open_device

    out = options.require_writable(args.out or tuned_output_dir(), "--out")
    with ExitStack() as opened:
        if args.device is not None:
            devices = [opened.enter_context(open_device(args.device))]
        else:
            usable = [i for i, d in enumerate(list_devices()) if d.api_version >= (1, 2, 0)]
            devices = [opened.enter_context(open_device(i)) for i in usable]
        names = [device.info.name for device in devices]
        output.note(f"verifying on {', '.join(names) or 'no device'}")
        with ProgressBar(output, "building the generic bundle") as bar:
            winners = generic_winners(devices, bar.line)
        path = pack(out, GENERIC, winners)
    output.text(f"bundle:  {path}")
    output.text(f"{len(winners)} kernels, each verified on {', '.join(names)}")
    output.document(
        {"bundle": path, "kernels": [w.module.name for w in winners], "verified_on": names}
    )
    return 0
