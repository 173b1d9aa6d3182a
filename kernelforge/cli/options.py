"""The options that several verbs share, each spelled and explained once."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelforge_runtime.abi.problem import Problem
    from kernelforge_runtime.models.int8_dot import Int8Dot

JOURNAL_FILE = "journal.jsonl"
"""Every measurement of a tuning run, in its journal folder."""
STORAGE_FILE = "studies.optuna"
"""What a search needs to go on, beside the journal."""
CEILINGS_FILE = "ceilings.json"
"""What the device can do at best, beside the journal."""


class UsageError(Exception):
    """The options do not go together: exit code 2."""


def _problem(text: str) -> Problem:
    from kernelforge_runtime.abi.problem import Problem
    from kernelforge_runtime.errors import PlanError

    try:
        return Problem.parse(text)
    except PlanError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """A whole number from 1 up, for `type=`."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return value


def count(text: str) -> int:
    """A whole number from 0 up, for `type=`."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def size(text: str) -> int:
    """0, or a number of bytes as --memory takes it, for `type=`."""
    from kernelforge_runtime.errors import DeviceError
    from kernelforge_runtime.vk.memory import parse_bytes

    try:
        return 0 if re.fullmatch(r"0 ?([KMGT]i?)?B?", text) else parse_bytes(text)
    except DeviceError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 64MiB or 2GiB") from None


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _memory(text: str) -> int:
    from kernelforge_runtime.errors import DeviceError
    from kernelforge_runtime.vk.memory import parse_bytes

    try:
        return parse_bytes(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _chunk(text: str) -> int:
    from kernelforge_runtime.errors import ModelError
    from kernelforge_runtime.models.step_size import check_chunk

    try:
        return check_chunk(positive(text))
    except ModelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


SHARED: dict[str, dict[str, Any]] = {
    "device": {
        "metavar": "DEVICE",
        "help": "Vulkan device: index, part of its name, or UUID (default: the best one)",
    },
    "bundle": {
        "metavar": "FOLDER",
        "help": "bundle of kernels, or a folder of bundles (default: the best one for the device)",
    },
    "shape": {
        "metavar": "NAME",
        "help": "in place of a file: random weights of a released size (v4-0.1b, v5-0.1b, v6-0.1b, "
        "v7-0.1b, v7-0.4b, v7-1.5b, v7-2.9b) or of any, e.g. L12.C768.V65536, v6.L12.C768.V65536",
    },
    "weights": {
        "metavar": "FORMAT",
        "default": "f16",
        "help": "how weights are kept on the device: f32, bf16, f16, q8 or nf4 (default: f16)",
    },
    "quant": {
        "metavar": "PART:FORMAT,..",
        "help": "weight formats of parts of the model, e.g. 0-11:q8,12-23:nf4,head:f16,emb:f16: "
        "layers from 0 (3, 0-11, or 12- to the last), head and emb; all else is in --weights",
    },
    "memory": {
        "metavar": "SIZE",
        "type": _memory,
        "help": "device memory that may be taken, e.g. 2GiB; a model that needs more is refused "
        "before it is loaded (default: KERNELFORGE_MEMORY, else all that is free)",
    },
    "chunk": {
        "metavar": "N",
        "type": _chunk,
        "default": 256,
        "help": "tokens of a step, at most: fewer take less memory, and keep the time between "
        "tokens short while prompts are read (default: 256)",
    },
    "activations": {
        "metavar": "FORMAT",
        "default": "f32",
        "help": "type of the residual stream and of what products multiply: f32 or f16 "
        "(default: f32)",
    },
    "int8-dot": {
        "metavar": "USE",
        "choices": ("faster", "always"),
        "help": "with q8 weights: round the inputs of products to int8 in steps of few tokens, "
        "where that was measured faster, or always; off by default, and refused where a trial run "
        "at load is beyond --int8-bound",
    },
    "int8-bound": {
        "metavar": "PART",
        "type": _part,
        "help": "how far int8 dot products may put the logits off, as a part of their spread "
        "(default: 0.05)",
    },
    "lora": {
        "metavar": "FILE[:ALPHA[:REGEX]]",
        "action": "append",
        "default": [],
        "help": "merge a LoRA, PiSSA or DiSHA file into the weights; ALPHA is LoRA's, REGEX picks "
        "tensors of the model; FILE::REGEX has no alpha; repeatable, added in order",
    },
    "prefix-cache": {
        "metavar": "SIZE",
        "type": size,
        "default": 256 << 20,
        "help": "host memory for states of prompts' beginnings, so that what prompts share is read "
        "once, e.g. 64MiB; 0: none (default: 256MiB)",
    },
    "threads": {
        "metavar": "N",
        "type": positive,
        "help": "of --device cpu, for products of q8 and nf4 weights (default: every core)",
    },
    "family": {"metavar": "NAME", "help": "kernel family, e.g. gemv"},
    "precision": {"metavar": "TYPE", "help": "element type of the weights, e.g. f16"},
    "problem": {
        "metavar": "M=..,K=..",
        "type": _problem,
        "help": "dimensions of one problem, e.g. M=4096,K=4096,S=1",
    },
    "out": {"metavar": "FOLDER", "help": "folder to write to"},
    "seed": {"metavar": "N", "type": count, "help": "makes random choices repeatable"},
    "trials": {
        "metavar": "N",
        "type": positive,
        "help": "variants to try per problem, at most: in all layouts, sessions and workers "
        "together. Finals of the fastest, and winners timed on each other's problems, come on top. "
        "Without --seconds it lifts the profile's time limit",
    },
    "seconds": {
        "metavar": "S",
        "type": _seconds,
        "help": "time for all problems together, about: each gets its default and finals, however "
        "little is left",
    },
    "journal": {
        "metavar": "FOLDER",
        "help": "where measurements are kept (default: the user's data folder, by device)",
    },
}
COMMON: dict[str, dict[str, Any]] = {
    "json": {"action": "store_true", "help": "print one JSON document instead of text"},
    "quiet": {"action": "store_true", "help": "no progress, no notes: results and errors only"},
    "verbose": {"action": "store_true", "help": "also log what happens, and trace errors"},
}


def add(parser: argparse._ActionsContainer, *names: str, **changed: Any) -> None:
    """Adds shared options by name; keywords such as `help=` or `default=` replace parts of them."""
    for name in names:
        parser.add_argument(f"--{name}", **{**SHARED[name], **changed})


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every verb has, unless the verb has already done so."""
    for name, details in COMMON.items():
        if f"--{name}" not in parser._option_string_actions:
            parser.add_argument(f"--{name}", **details)


PLACES = frozenset({"BUNDLE", "DEVICE", "DST", "FILE", "FOLDER", "FORMAT", "MODEL", "NAME",
                    "PART:FORMAT,..", "PYTHON", "SRC", "TARGET", "TYPE", "URL"})  # fmt: skip
"""Metavars of what has a name, and an empty one is a slip: an unset variable of a script."""


def refuse_empty(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stops before an empty name is taken for the current folder, or for nothing asked at all.

    Raises:
        UsageError: one was given.
    """
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.metavar in PLACES and "" in (value if isinstance(value, list) else [value]):
            what = max(action.option_strings, key=len, default=action.metavar)
            raise UsageError(f"{what}: is empty; leave it out, or name one")


LOADED_WEIGHTS = (
    "how weights are kept: f32, bf16, f16, q8 or nf4 (default: a converted file's own; else f16, "
    "on the cpu and with ROSA f32)"
)
"""Help of `--weights` where the model says what is usual."""


def model_file(args: argparse.Namespace, note: Callable[[str], None]) -> Path:
    """The file of `--model` or MODEL, or one of random weights made for `--shape`."""
    if args.shape is None:
        return Path(args.model)
    from kernelforge.convert.random_model import random_model
    from kernelforge.resources import cache_dir

    folder = cache_dir() / "models"
    note(f"{args.shape}: random weights, kept in {folder}")
    return random_model(args.shape, folder)


def int8_dot(args: argparse.Namespace) -> Int8Dot | None:
    """What --int8-dot and --int8-bound ask for."""
    if args.int8_dot is None:
        if args.int8_bound is not None:
            raise UsageError("--int8-bound is of --int8-dot")
        return None
    from kernelforge_runtime.models.int8_dot import INT8_BOUND, Int8Dot

    bound = INT8_BOUND if args.int8_bound is None else args.int8_bound
    return Int8Dot(args.int8_dot, bound)


def journal_folder(given: str | None, slug: str) -> Path:
    """Where the measurements of a device are kept: `given`, or in the user's data folder."""
    from kernelforge_runtime.resources import xdg_dir

    if given is not None:
        return Path(given)
    return xdg_dir("XDG_DATA_HOME", ".local/share") / "tuning" / slug


def require_writable(folder: str | os.PathLike[str], option: str) -> Path:
    """The folder, made if need be, once a file could be written there.

    Raises:
        OSError: it cannot be written; the message names the option to change.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"kernelforge")
    except OSError as error:
        why = f"{path}: cannot be written: {error.strerror}; choose another folder with {option}"
        raise OSError(error.errno, why) from None
    return path
