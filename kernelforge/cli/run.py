"""Continues a prompt with a model: on a Vulkan device, or with NumPy (--device cpu)."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernelforge.cli import options
from kernelforge.cli.check_layers import check_layers, require_sound
from kernelforge.cli.choice import add_choice, sampling_of
from kernelforge.cli.loading import add_loading, loaded, tokenizer_of
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.trace import add_trace, check_trace, print_trace, trace_step, write_csv
from kernelforge_runtime.bundle import BundleMatch, KernelSet
from kernelforge_runtime.engine.generate import Statistics, generate
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.dispatches import DispatchCount
from kernelforge_runtime.state import State
from kernelforge_runtime.text import load_tokenizer
from kernelforge_runtime.written_file import place_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors or .pth file")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="text to continue")
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from here; - is stdin"
    )
    parser.add_argument("--prompt-ids", metavar="1,2,..", help="the prompt as token ids")
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=options.positive,
        default=100,
        help="tokens to generate, at most (default: 100)",
    )
    add_choice(
        parser,
        "makes random choices repeatable; `batch` says the same with it, and so does `chat`, in "
        "its first answer to the same prompt",
    )
    add_loading(parser)
    parser.add_argument("--load-state", metavar="FILE", help="go on from a saved state")
    parser.add_argument("--save-state", metavar="FILE", help="save the state after the last token")
    parser.add_argument("--stats", action="store_true", help="say how fast it was, on stderr")
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the prompt alone and show how large values are behind every layer; fails, and "
        "names the first layer, where one is NaN or infinite",
    )
    add_trace(parser)


def run(args: argparse.Namespace) -> int:
    """Streams the text."""
    output = Output(args)
    check_trace(args)
    prompt = _prompt(args)
    sampling = sampling_of(args)
    _check_asked(args)
    started = time.perf_counter()
    with loaded(args, hooks=args.check) as (model, kernels):
        load_s = time.perf_counter() - started
        located = kernels.located if kernels is not None else None
        if located is not None and located.match is BundleMatch.EXACT and args.stats:
            output.note(located.reason)  # what is not exact was said while loading
        state = model.load_state(args.load_state) if args.load_state else model.new_state()
        if args.check:
            return _check(args, output, model, state, prompt)
        tokenizer = tokenizer_of(args, model.config.vocab, isinstance(prompt, str))
        counted = Statistics()
        tokens: list[int] = []
        text: list[str] = []
        for piece in generate(model, prompt, args.tokens, sampling, tokenizer, state, counted):
            shown = piece.text if tokenizer is not None else f"{',' if tokens else ''}{piece.token}"
            tokens.append(piece.token)
            text.append(piece.text)
            if not output.json:
                print(shown, end="", flush=True)
        tokens = tokens[: counted.tokens]  # the last piece may be text alone
        if tokens and not "".join(text).endswith("\n"):
            output.text()
        stats = _statistics(model, kernels, counted, load_s)
        if args.stats:
            _print_stats(output, stats)
        last = tokens[-1] if tokens else 0
        if args.save_state:
            _save(args.save_state, model, state, last, len(tokens) == args.tokens)
        traced = _trace(args, output, model, state, last)
        output.document(
            {
                "model": args.model,
                "text": "".join(text),
                "tokens": tokens,
                "stats": stats,
                **({"trace": traced} if traced is not None else {}),
            }
        )
    return 0


def _check_asked(args: argparse.Namespace) -> None:
    """Says what cannot be done before a model is loaded, or a long text made."""
    unmet = ("--save-state", args.save_state), ("--stats", args.stats), ("--trace", args.trace)
    if args.check and (first := next((name for name, asked in unmet if asked), None)):
        raise UsageError(f"--check runs the prompt alone and keeps nothing: it has no {first}")
    if args.save_state:
        try:
            place_of(args.save_state)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ModelError(f"--save-state {args.save_state}: {why}: use another path") from None


def _check(
    args: argparse.Namespace,
    output: Output,
    model: Model | Reference,
    state: State,
    prompt: str | list[int],
) -> int:
    if isinstance(prompt, str):
        prompt = load_tokenizer(args.tokenizer, model.config.vocab).encode(prompt)
    told = check_layers(model, prompt, state, output)
    output.document({"model": args.model, "check": told})
    require_sound(told, args.model)
    return 0


def _prompt(args: argparse.Namespace) -> str | list[int]:
    given = [v for v in (args.prompt, args.prompt_file, args.prompt_ids) if v is not None]
    if len(given) != 1:
        raise UsageError("give one prompt: PROMPT, --prompt-file FILE or --prompt-ids 1,2,..")
    if args.prompt_ids is not None:
        try:
            return [int(part) for part in args.prompt_ids.split(",")]
        except ValueError:
            raise UsageError(
                f"--prompt-ids {args.prompt_ids[:40]!r}: expected whole numbers like 510,3158"
            ) from None
    if args.prompt_file is None:
        return str(args.prompt)
    try:
        data = (
            sys.stdin.buffer.read()
            if args.prompt_file == "-"
            else Path(args.prompt_file).read_bytes()
        )
        return data.decode("utf-8-sig")  # editors put a mark first that is no part of it
    except UnicodeDecodeError as error:
        raise ModelError(
            f"prompt {args.prompt_file}: byte {error.start} is not UTF-8; convert the text first"
        ) from None


def _statistics(
    model: Model | Reference, kernels: KernelSet | None, counted: Statistics, load_s: float
) -> dict[str, Any]:
    stats: dict[str, Any] = {
        **asdict(counted),
        "prefill_tok_per_s": counted.prefill_tok_per_s,
        "decode_tok_per_s": counted.decode_tok_per_s,
        "load_s": load_s,
        "version": model.config.version,
        "weights": model.formats.name,
        "activations": model.activations.name,
        "device": "NumPy",
        "state_bytes": model.new_state().nbytes,
        "device_bytes": model.weight_bytes,
    }
    if isinstance(model, Model):
        stats["memory"] = {
            "needed": model.needs.total,
            "chunk": model.needs.chunk,
            **model.needs.parts,
            "taken": model.device.memory.used,
            "most_taken": model.device.memory.peak,
        }
        stats["device"] = model.device.info.name
        stats["kernels"] = {match.value: n for match, n in model.matches().items()}
        steps = {
            "decode": model.dispatches(1),
            "prefill": model.dispatches(min(counted.prompt_tokens, model.needs.chunk)),
        }
        stats["dispatches"] = {
            name: {"total": count.total, "layers": count.blocks} for name, count in steps.items()
        }
    if kernels is not None:
        stats["bundles"] = [bundle.path for bundle in kernels.bundles]
    return stats


def _print_stats(output: Output, stats: dict[str, Any]) -> None:
    output.note(
        f"{stats['version']} {stats['weights']} on {stats['device']}; loaded in "
        f"{stats['load_s']:.2f} s; state {stats['state_bytes'] / 1e6:.2f} MB"
        f"; weights {stats['device_bytes'] / 1e6:.1f} MB"
    )
    if "memory" in stats:
        found = stats["memory"]
        output.note(
            f"memory: {found['needed'] / 1e6:.1f} MB reckoned for 1 slot and prompts in pieces of "
            f"{found['chunk']} tokens, at most {found['most_taken'] / 1e6:.1f} MB taken"
        )
    output.note(
        f"prefill {stats['prompt_tokens']:>6} tokens {stats['prefill_s']:8.3f} s "
        f"{stats['prefill_tok_per_s']:9.1f} tok/s"
    )
    output.note(
        f"decode  {stats['tokens']:>6} tokens {stats['decode_s']:8.3f} s "
        f"{stats['decode_tok_per_s']:9.1f} tok/s"
    )
    if "kernels" in stats:
        parts = ", ".join(f"{n} {kind}" for kind, n in stats["kernels"].items())
        output.note(f"kernels of one token: {parts}")
    for name, found in stats.get("dispatches", {}).items():
        output.note(f"a step of {name}: {DispatchCount(found['total'], found['layers'])}")


def _trace(
    args: argparse.Namespace, output: Output, model: Model | Reference, state: State, token: int
) -> dict[str, Any] | None:
    if not args.trace or not isinstance(model, Model):
        return None
    step = trace_step(model, [token], state.clone())
    print_trace(output.note, step)
    write_csv(args, [step])
    return step.to_json()


def _save(path: str, model: Model | Reference, state: State, last: int, pending: bool) -> None:
    """Saves the state after the whole text; `pending`: the last token has not been run yet."""
    if pending:
        model.forward([last], state)
    state.save(path)
