"""Turns a .pth or .safetensors model into .safetensors, rounding or merging if asked."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from kernelforge.cli import options
from kernelforge.cli.output import Output
from kernelforge.convert import convert_checkpoint
from kernelforge_runtime.dtypes import DTYPES
from kernelforge_runtime.weight_formats import FORMATS_KEY
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.adapters import open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `convert` takes."""
    parser.add_argument("source", metavar="SRC", help="a .pth or .safetensors file")
    parser.add_argument("destination", metavar="DST", help="the .safetensors file to write")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f16", "bf16"),
        help="round every float tensor to this (default: each keeps its own)",
    )
    parser.add_argument(
        "--weights",
        choices=("q8", "nf4"),
        help="quantise the matrices that multiply (8.5 or 4.5 bits per weight); embeddings, "
        "low-rank factors and vectors are written as --dtype says; with --quant: of all parts that "
        "it does not name",
    )
    options.add(
        parser,
        "quant",
        help="write parts of the model in formats, as run --quant keeps them, e.g. "
        "0-11:q8,12-23:nf4,head:f16,emb:f16; the file then loads so by itself. What is not named "
        "stays as it is, or as --dtype says",
    )
    options.add(parser, "lora")
    parser.add_argument(
        "--rosa-bits",
        choices=("1", "4"),
        help="note how many bits a ROSA symbol has: no tensor says (default: what SRC notes)",
    )
    parser.add_argument(
        "--group-norm-eps",
        metavar="X",
        type=_eps,
        help="note the epsilon of the norm behind the recurrence, where it is not 64e-5",
    )


def _eps(text: str) -> str:
    """The text itself: a float would not come back as it was written."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a small positive number like 64e-5")
    return text


def run(args: argparse.Namespace) -> int:
    """Converts."""
    output = Output(args)
    started = time.perf_counter()
    notes = {"rosa_bits": args.rosa_bits, "group_norm_eps": args.group_norm_eps}
    given = {name: text for name, text in notes.items() if text is not None}
    matrices: tuple[str, ...] = ()
    asked: dict[str, str] | None = None
    if args.quant:
        from kernelforge.cli.convert_formats import asked_formats

        with open_model(args.source, args.lora) as checkpoint:
            texts = (args.weights, args.quant)
            asked, formats = asked_formats(checkpoint, texts, stays=args.dtype is None)
        given[FORMATS_KEY] = formats
    elif args.weights:
        from kernelforge_runtime.models.survey import Survey

        with open_checkpoint(args.source) as checkpoint:
            matrices = Survey(checkpoint).quantisable(DTYPES[args.weights])
    weights = None if args.quant else args.weights
    made = convert_checkpoint(
        args.source, args.destination, args.dtype, given, weights, matrices, args.lora, asked
    )
    seconds = time.perf_counter() - started
    rounded = [form for form in (args.weights, args.quant, args.dtype) if form]
    output.text(
        f"{made.path}: {made.tensors} tensors, {made.nbytes / 1e6:.1f} MB, "
        + (f"{made.merged} merged with adapters, " if args.lora else "")
        + (f"{made.cast} rounded to {' and '.join(rounded)}, " if rounded else "")
        + "".join(f"{name}={text}, " for name, text in given.items() if name in notes)
        + f"{seconds:.1f} s"
    )
    output.document({**asdict(made), "metadata": given, "seconds": seconds})
    return 0
