"""Loads a model as the options say: onto a device, or for NumPy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar
from kernelforge_runtime.bundle import BundleMatch, KernelSet
from kernelforge_runtime.errors import ModelError, TokenizerError
from kernelforge_runtime.models import Model, Reference, load_model, load_reference
from kernelforge_runtime.plan import open_kernels
from kernelforge_runtime.text import Tokenizer, load_tokenizer
from kernelforge_runtime.vk import open_device

CPU = "cpu"
"""The device name that stands for NumPy."""
AUTO = "auto"
"""The tokenizer that a vocabulary's size tells."""
_DEVICE = "Vulkan device: index, part of its name, or UUID; cpu runs in NumPy (default: the best)"


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where and how a model runs."""
    options.add(parser, "device", help=_DEVICE)
    options.add(parser, "bundle")
    options.add(parser, "weights", default=None, help=options.LOADED_WEIGHTS)
    options.add(parser, "quant", "lora", "memory", "chunk", "activations")
    options.add(parser, "int8-dot", "int8-bound", "threads")
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        default=AUTO,
        help="auto (by the vocabulary's size), world, bytes, or a .json or .txt file",
    )


def tokenizer_of(args: argparse.Namespace, vocab: int, needed: bool) -> Tokenizer | None:
    """The vocabulary that was asked for; None where none fits and nothing needs one.

    Args:
        args: of a parser with `add_loading`.
        vocab: ids of the model.
        needed: whether there is text to be read; else token ids are shown where none fits.

    Raises:
        TokenizerError: it is needed, or was named, and cannot be had.
    """
    try:
        return load_tokenizer(args.tokenizer, vocab)
    except TokenizerError as error:
        if needed or args.tokenizer != AUTO:
            raise
        Output(args).note(f"token ids are shown, there is no text: {error}")
        return None


@contextmanager
def loaded(
    args: argparse.Namespace, slots: int = 1, hooks: bool = False, prefix_cache: int = 0
) -> Iterator[tuple[Model | Reference, KernelSet | None]]:
    """The model, and the kernels that it runs with.

    Args:
        args: of a parser with `add_loading`.
        slots: sequences that a step can advance.
        hooks: whether steps will be looked at.
        prefix_cache: bytes that a prefix cache is to have on the host.
    """
    int8_dot = options.int8_dot(args)
    if args.device == CPU:
        if args.memory:
            raise UsageError("--memory is of a Vulkan device: --device cpu runs in NumPy")
        if int8_dot is not None:
            raise UsageError("--device cpu runs in NumPy: it has no --int8-dot")
        if args.bundle or getattr(args, "trace", False):
            raise UsageError("--device cpu runs in NumPy: it has no --bundle and no --trace")
        with (
            np.errstate(over="ignore", invalid="ignore"),  # who reads the logits tells
            load_reference(
                args.model,
                weights=args.weights,
                activations=args.activations,
                threads=args.threads,
                quant=args.quant,
                adapters=args.lora,
                chunk=args.chunk,
            ) as reference,
        ):
            yield reference, None
        return
    if args.threads:
        raise UsageError("--threads is of --device cpu")
    if not Path(args.model).exists():  # said before a device is looked for
        raise ModelError(f"{args.model}: no such file: check the path")
    with open_device(args.device, memory=args.memory) as device:
        kernels = open_kernels(device, args.bundle)
        if kernels.located is not None and kernels.located.match is not BundleMatch.EXACT:
            Output(args).note(kernels.located.reason)
        with ProgressBar(Output(args), "loading") as bar:
            model = load_model(
                args.model,
                device,
                kernels,
                args.weights,
                args.activations,
                slots,
                progress=lambda done, total, name: bar.show(done, total, f"loading {name}"),
                int8_dot=int8_dot,
                quant=args.quant,
                adapters=args.lora,
                chunk=args.chunk,
                hooks=hooks,
                prefix_cache=prefix_cache,
            )
        with model:
            if model.int8 is not None and model.int8.products:  # else its log has said so
                Output(args).note(str(model.int8))
            yield model, kernels
