"""Shows a kernel family, one variant, a bundle or a model file; --check verifies it."""

from __future__ import annotations

import argparse
from pathlib import Path

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output

MODEL_SUFFIXES = (".safetensors", ".st", ".pth", ".pt", ".bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `inspect` takes."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a family (gemv), a variant (gemv/f16/ROWS4...), the folder or slug of a bundle, or "
        "a model file",
    )
    options.add(parser, "device")
    family = parser.add_argument_group("for a family")
    family.add_argument(
        "--space", action="store_true", help="how many variants are valid here, and why not more"
    )
    options.add(family, "precision", help="whose signature or space (default: the first)")
    options.add(family, "problem", help="with --space: what is valid for it, e.g. M=768,K=768")
    variant = parser.add_argument_group("for a variant")
    variant.add_argument("--glsl", action="store_true", help="print its GLSL")
    variant.add_argument("--spirv", action="store_true", help="print its SPIR-V (spirv-dis)")
    variant.add_argument("--stats", action="store_true", help="print what its SPIR-V declares")
    bundle = parser.add_argument_group("for a bundle")
    bundle.add_argument(
        "--remeasure",
        action="store_true",
        help="time its kernels again beside the defaults, and say which claims hold within 2 %%",
    )
    options.add(bundle, "family", help="with --remeasure: only this family")
    parser.add_argument(
        "--check",
        action="store_true",
        help="bundle: hashes, SPIR-V and every kernel against its oracle on this device; "
        "model: NaN and infinite weights",
    )


def run(args: argparse.Namespace) -> int:
    """Shows what TARGET names."""
    output = Output(args)
    path = Path(args.target)
    folder = path if path.is_dir() else _bundle_folder(args.target)
    if args.family and (folder is None or not args.remeasure):
        raise UsageError("--family goes with --remeasure of a bundle")
    if folder is not None and args.remeasure:
        _refuse(args, "a bundle", "glsl", "spirv", "stats", "space", "problem")
        if args.check:
            raise UsageError("--check and --remeasure are two runs: a check disturbs the times")
        from kernelforge.cli.inspect_claims import show_claims

        show_claims(folder, args, output)
    elif folder is not None:
        _refuse(args, "a bundle", "glsl", "spirv", "stats", "space", "problem")
        from kernelforge.cli.inspect_bundle import show_bundle

        show_bundle(folder, args, output)
    elif path.is_file() or path.suffix in MODEL_SUFFIXES:
        _refuse(args, "a model file", "glsl", "spirv", "stats", "space", "problem", "remeasure")
        from kernelforge.cli.inspect_model import show_model

        show_model(path, args, output)
    elif "/" in args.target:
        _refuse(args, "a variant", "space", "problem", "remeasure", "check")
        from kernelforge.cli.inspect_kernel import show_variant

        show_variant(args, output)
    else:
        _check_family(args)
        from kernelforge.cli.inspect_kernel import show_family

        show_family(args, output)
    return 0


def _check_family(args: argparse.Namespace) -> None:
    _refuse(args, "a family", "glsl", "spirv", "stats", "remeasure", "check")
    if args.problem and not args.space:
        raise UsageError("--problem goes with --space: it says which variants are valid for it")


def _bundle_folder(name: str) -> Path | None:
    """The bundle of this slug among those installed."""
    from kernelforge_runtime.bundle.bundle import MANIFEST_FILE
    from kernelforge_runtime.resources import tuned_search_path

    if "/" in name:
        return None
    for place in tuned_search_path():
        if isinstance(place, Path) and (place / name / MANIFEST_FILE).is_file():
            return place / name
    return None


def _refuse(args: argparse.Namespace, what: str, *names: str) -> None:
    for name in names:
        if getattr(args, name):
            raise UsageError(f"--{name} says nothing about {what}, and {args.target} is one")
