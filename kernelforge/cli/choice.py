"""Options that say how tokens are chosen, for every verb that generates."""

from __future__ import annotations

import argparse
from typing import Any

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge_runtime.text import Sampling

SAMPLING = ("temperature", "top_p", "top_k", "presence", "frequency", "decay", "seed")


def add_choice(parser: argparse.ArgumentParser, seed: str) -> None:
    """Adds them as a group.

    Args:
        parser: of the verb.
        seed: help of `--seed`: what it is the seed of.
    """
    choice = parser.add_argument_group("choice of tokens (default values in brackets)")
    choice.add_argument("--temperature", metavar="X", type=float, help="0: the likeliest (1.0)")
    choice.add_argument("--top-p", metavar="X", type=float, help="share to keep (0.85)")
    choice.add_argument("--top-k", metavar="N", type=int, help="keep at most N tokens (all)")
    choice.add_argument("--presence", metavar="X", type=float, help="penalty once chosen (0.2)")
    choice.add_argument("--frequency", metavar="X", type=float, help="penalty per choice (0.2)")
    choice.add_argument("--decay", metavar="X", type=float, help="how penalties fade (0.996)")
    options.add(choice, "seed", help=seed)
    choice.add_argument(
        "--greedy", action="store_true", help="always the likeliest token: --temperature 0"
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The sampling that was asked for."""
    return Sampling(**settings_of(args))


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for by name; what it leaves open depends on the rest, see Sampling."""
    chosen: dict[str, Any] = {
        name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None
    }
    if args.greedy:
        if chosen.get("temperature"):
            raise UsageError("--greedy and --temperature do not go together")
        chosen["temperature"] = 0.0
    return chosen
