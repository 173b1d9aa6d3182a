"""Continues many prompts together: those that run at once share every step."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence

from kernelforge.cli import options
from kernelforge.cli.choice import add_choice, settings_of
from kernelforge.cli.loading import CPU, add_loading, loaded, tokenizer_of
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.prompts import Prompt, read_prompts
from kernelforge_runtime.engine.engine import Engine
from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.text import Sampling

REDRAWS_PER_S = 8
NARROW = 40
"""Columns of a terminal, below which a table has no room for texts: they are lines then."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `batch` takes."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors or .pth file")
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="one prompt on each line; of a .jsonl file each line is a JSON string, or an object "
        "with prompt or ids, and tokens, stop, temperature, seed and so on; - is stdin",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", default=[], help="a prompt; repeatable"
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=options.positive,
        default=100,
        help="tokens to generate for each prompt, at most (default: 100)",
    )
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="ends a text; repeatable"
    )
    parser.add_argument(
        "--slots",
        metavar="N",
        type=options.positive,
        help="prompts that run at once (default: all, but 16 or --chunk at most)",
    )
    options.add(parser, "prefix-cache")
    add_choice(
        parser,
        "makes random choices repeatable; it is every prompt's seed, whatever its place, so that "
        "each gets what `run --seed N` gives it alone; a line of a .jsonl file may name its own",
    )
    add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Runs them all; exit code 1 if one of them ended with an error."""
    output = Output(args)
    sampling = settings_of(args)
    Sampling(**sampling)  # what cannot be is said before anything is loaded
    if "" in args.stop:
        raise UsageError("--stop needs a text")
    if args.file is None and not args.prompt:
        raise UsageError("give prompts: FILE, or --prompt TEXT")
    prompts = read_prompts(args.file, args.prompt)
    if not prompts:
        raise UsageError(f"{args.file} holds no prompt: every line is blank")
    slots = args.slots or min(len(prompts), 16, args.chunk)
    many = 1 if args.device == CPU else slots
    with loaded(args, many, prefix_cache=args.prefix_cache) as (model, _):
        texts = any(isinstance(p.text, str) for p in prompts)
        tokenizer = tokenizer_of(args, model.config.vocab, texts)
        cache = PrefixCache(args.prefix_cache) if args.prefix_cache else None
        engine = Engine(model, slots, args.chunk, tokenizer, prefix_cache=cache)
        requests = [p.submit(engine, args.tokens, args.stop, sampling) for p in prompts]
        started = time.perf_counter()
        narrow = shutil.get_terminal_size().columns < NARROW
        if output.json or output.quiet or narrow or not sys.stdout.isatty():
            _plain(output, engine, requests)
        else:
            _live(engine, prompts, requests)
        seconds = time.perf_counter() - started
    _tell(output, args.model, prompts, requests, engine, seconds)
    return int(any(r.reason == "error" for r in requests))


def _plain(output: Output, engine: Engine, requests: Sequence[Request]) -> None:
    """A line for each prompt, in their order, as soon as it and all before it have ended."""
    shown = 0
    for _ in engine.run():
        while shown < len(requests) and requests[shown].reason is not None:
            request = requests[shown]
            shown += 1
            said = request.text if engine.tokenizer is not None else request.tokens
            text = json.dumps(said, ensure_ascii=False)
            output.text(f"{request.id}\t{request.reason}\t{len(request.tokens)}\t{text}")


def _live(engine: Engine, prompts: Sequence[Prompt], requests: Sequence[Request]) -> None:
    """A table that fills while they run, and stays, also where they are broken off."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def table(whole: bool) -> Table:
        made = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("#", "tokens", "ended", "text"):
            made.add_column(heading, justify="right" if heading in "# tokens" else "left")
        shown = requests if whole else engine.active
        for request in shown:
            text = request.text
            if engine.tokenizer is None:
                text = ",".join(map(str, request.tokens))
            said = Text(text)
            if not whole:  # one line each, its end: what is new is there
                said = Text(text.replace("\n", " ")[-(console.width // 2) :])
                said.no_wrap = True
            made.add_row(str(request.id), str(len(request.tokens)), request.reason or "", said)
        return made

    drawn = 0.0
    try:
        with Live(table(False), console=console, auto_refresh=False, transient=True) as live:
            for _ in engine.run():
                if time.monotonic() - drawn > 1 / REDRAWS_PER_S:
                    drawn = time.monotonic()
                    live.update(table(False), refresh=True)
    finally:
        console.print(table(True))


def _tell(
    output: Output,
    model: str,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    engine: Engine,
    seconds: float,
) -> None:
    read = sum(len(r.prompt) for r in requests)
    made = sum(len(r.tokens) for r in requests)
    steps, cache = engine.steps, engine.prefix_cache
    reused = cache.statistics.reused_tokens if cache is not None else 0
    speed = (read - reused + made) / seconds  # what was not read again took no time
    for prompt, request in zip(prompts, requests, strict=True):
        if request.reason == "error":
            output.note(f"{prompt.where}: {request.error}")
    output.note(
        f"{len(requests)} prompts of {read} tokens, {made} tokens generated, in {steps} steps and "
        f"{seconds:.2f} s: {speed:.1f} tok/s"
    )
    if cache is not None and cache.statistics.hits:
        output.note(str(cache))
    output.document(
        {
            "model": model,
            "requests": [
                {
                    "prompt": prompt.text,
                    "text": request.text,
                    "tokens": request.tokens,
                    "reason": request.reason,
                    "error": request.error,
                    "seed": request.terms.sampling.seed,
                }
                for prompt, request in zip(prompts, requests, strict=True)
            ],
            "stats": {
                "prompt_tokens": read,
                "tokens": made,
                "steps": steps,
                "seconds": seconds,
                "tok_per_s": speed,
                "prefix_cache": None if cache is None else cache.to_json(),
            },
        }
    )
