"""Turns a .pth or .safetensors model into .safetensors, rounding its weights if asked."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from kernelforge.cli.output import Output
from kernelforge.convert import convert_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `convert` takes."""
    parser.add_argument("source", metavar="SRC", help="a .pth or .safetensors file")
    parser.add_argument("destination", metavar="DST", help="the .safetensors file to write")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f16", "bf16"),
        help="round every float tensor to this (default: each keeps its own)",
    )


def run(args: argparse.Namespace) -> int:
    """Converts."""
    output = Output(args)
    started = time.perf_counter()
    made = convert_checkpoint(args.source, args.destination, args.dtype)
    seconds = time.perf_counter() - started
    output.text(
        f"{made.path}: {made.tensors} tensors, {made.nbytes / 1e6:.1f} MB, "
        + (f"{made.cast} rounded to {args.dtype}, " if args.dtype else "")
        + f"{seconds:.1f} s"
    )
    output.document({**asdict(made), "seconds": seconds})
    return 0
