"""Talks with a model, turn by turn, from a terminal or a pipe; /help lists what else it knows."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kernelforge.cli import options
from kernelforge.cli.choice import add_choice, sampling_of
from kernelforge.cli.loading import add_loading, loaded
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge_runtime.engine.chat import FORMATS, Conversation, usual_format
from kernelforge_runtime.engine.engine import Engine
from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.text import load_tokenizer

COMMANDS = {
    "/reset": "forget everything",
    "/regen": "answer the last turn anew",
    "/save FILE": "write the conversation's state",
    "/load FILE": "go on from a saved state",
    "/help": "this list",
    "/quit": "leave; so does the end of the input",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `chat` takes."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors or .pth file")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="how turns are written: world (User and Assistant), think (the same, and the model "
        "reasons first), raven (Bob and Alice), plain (go on with the text) (default: by the "
        "vocabulary)",
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=options.positive,
        default=1000,
        help="tokens of an answer, at most (default: 1000)",
    )
    parser.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="ends an answer too; repeatable"
    )
    parser.add_argument("--load-state", metavar="FILE", help="go on from a saved state")
    options.add(parser, "prefix-cache")
    add_choice(
        parser,
        "makes random choices repeatable; it is the first answer's seed, and each further one's "
        "is greater by 1, those of /regen included",
    )
    add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Turns until /quit or the end of the input; exit code 1 if one of them failed."""
    output = Output(args)
    sampling = sampling_of(args)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a bad line fails alone
    if "" in args.stop:
        raise UsageError("--stop needs a text")
    with loaded(args, prefix_cache=args.prefix_cache) as (model, _):
        tokenizer = load_tokenizer(args.tokenizer, model.config.vocab)
        name = args.format or usual_format(tokenizer)
        cache = PrefixCache(args.prefix_cache) if args.prefix_cache else None
        engine = Engine(model, slots=1, tokenizer=tokenizer, prefix_cache=cache)
        talk = Conversation(engine, FORMATS[name], sampling, args.tokens, args.stop)
        if args.load_state:
            talk.load(args.load_state)
        output.note(f"{model.config.version}, turns as {name}; /help for help")
        turns, failed = _talk(output, talk)
        output.document({"model": args.model, "format": name, "turns": turns})
    return int(failed)


def _talk(output: Output, talk: Conversation) -> tuple[list[dict[str, Any]], bool]:
    """(every turn, whether anything that was asked failed)."""
    turns: list[dict[str, Any]] = []
    failed = False
    for line in _lines(output):
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                break
            if command == "/regen":
                turns.append(_answer(output, talk, talk.regenerate()))
            elif command.startswith("/"):
                _command(output, talk, command, rest.strip())
            elif command:
                turns.append(_answer(output, talk, talk.say(line)))
        except KernelForgeError as error:  # the conversation is as it was before
            failed = True
            print(f"kernelforge chat: {error}", file=sys.stderr, flush=True)
    return turns, failed and not sys.stdin.isatty()


def _lines(output: Output) -> Iterator[str]:
    """What is said, line by line; a terminal is asked for it."""
    mark = "\ufeff"  # editors put it first into a file, and it is no part of it
    while True:
        if not sys.stdin.isatty():
            line = sys.stdin.readline()
            if not line:
                return
            yield line.removeprefix(mark)
            mark = ""
            continue
        try:
            yield input("" if output.quiet else "> ")
        except EOFError:
            output.text()
            return


def _answer(output: Output, talk: Conversation, pieces: Iterator[str]) -> dict[str, Any]:
    """Shows an answer as it comes; an interrupt ends it where it is."""
    text = ""
    with _interrupts() as interrupted:
        for piece in pieces:
            text += piece
            if not output.json:
                print(piece, end="", flush=True)
            if interrupted():
                pieces.close()  # type: ignore[attr-defined]
                break
    if not text.endswith("\n"):
        output.text()
    assert talk.request is not None
    ended = talk.request.reason
    return {"said": talk.turns[-1][0], "answer": text, "reason": ended}


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether the user has interrupted: asked between tokens, for a step must not be torn."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


def _command(output: Output, talk: Conversation, command: str, path: str) -> None:
    if command == "/reset":
        talk.reset()
    elif command in ("/save", "/load"):
        if not path:
            raise KernelForgeError(f"{command} needs a file: {command} FILE")
        (talk.save if command == "/save" else talk.load)(path)
    elif command == "/help":
        output.text("\n".join(f"{name:<12}{what}" for name, what in COMMANDS.items()))
        return
    else:
        raise KernelForgeError(f"{command} is not known: /help lists what is")
    output.note(f"{command[1:]}: done")
