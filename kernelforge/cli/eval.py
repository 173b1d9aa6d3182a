"""Measures a model: the ROSA demonstrations, or how well it predicts a text.

  kernelforge eval reverse MODEL      reverse numbers
  kernelforge eval arithmetic MODEL   add and subtract numbers
  kernelforge eval count MODEL        count up
  kernelforge eval MODEL --text FILE  bits per byte and perplexity of a text
  kernelforge eval MODEL --text FILE --weights f16,q8,nf4
                                      the same in each format, and the memory of the weights
  kernelforge eval MODEL --text FILE --weights q8 --int8-dot always
                                      the same with inputs of products rounded to int8, and without

Every symbol of an answer is predicted from the true ones before it, as the author of these models
scores them. Without --count and --digits the problems are as many and of the lengths that he
chose. What he counts: in reverse the digits and the # that ends them; in arithmetic the symbols of
the answer without the = that ends it; in count every symbol. Ends are also told apart.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kernelforge.cli import options
from kernelforge.cli.evaluation.formats import HEADS, ROUNDED, documents, rows, score_formats
from kernelforge.cli.evaluation.scoring import Result, evaluate, marks
from kernelforge.cli.evaluation.tasks import MOST_DIGITS, TASKS, Sample, Task
from kernelforge.cli.evaluation.text import score_text
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import Model, Reference, load_model, load_reference
from kernelforge_runtime.models.formats import weight_format
from kernelforge_runtime.ops.vulkan_products import FEW_TOKENS
from kernelforge_runtime.plan import open_kernels
from kernelforge_runtime.text import load_tokenizer
from kernelforge_runtime.vk import open_device
from kernelforge_runtime.weight_formats import parse_formats

CPU = "cpu"
"""The device name that stands for NumPy."""
SHOWN = 3
"""Problems that are printed."""
SEED = 42
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `eval` takes."""
    parser.add_argument("task", metavar="TASK", nargs="?", choices=[*TASKS], help=", ".join(TASKS))
    parser.add_argument("model", metavar="MODEL", help="a .safetensors or .pth file")
    parser.add_argument("--text", metavar="FILE", help="in place of a task: a text to predict")
    parser.add_argument(
        "--count", metavar="N", type=options.positive, help="problems (default: the author's)"
    )
    parser.add_argument(
        "--digits",
        metavar="A-B",
        type=_digits,
        help="lengths of the numbers (default: reverse 1-60, arithmetic 1-20, count 1-3)",
    )
    options.add(parser, "seed", default=SEED, help=f"of the problems (default: {SEED})")
    parser.add_argument(
        "--batch",
        metavar="N",
        type=options.positive,
        help=f"problems at once (default: {BATCH}; on the cpu 1)",
    )
    parser.add_argument(
        "--free",
        action="store_true",
        help="let the model go on from its own symbols instead of the true ones",
    )
    options.add(
        parser,
        "device",
        help="Vulkan device: index, part of its name, or UUID; cpu runs in NumPy "
        "(default: the best)",
    )
    options.add(parser, "bundle")
    options.add(
        parser,
        "weights",
        default=None,
        help=f"{options.LOADED_WEIGHTS}; several with commas are compared on --text",
    )
    options.add(parser, "quant", "lora", "memory", "activations")
    options.add(parser, "int8-dot", "int8-bound", "threads")
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        default="auto",
        help="of --text: auto (by the vocabulary's size), world, bytes, or a .json or .txt file",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, and says what came out."""
    if (args.task is None) == (args.text is None):
        raise UsageError(f"give a task ({', '.join(TASKS)}) or --text FILE")
    if args.text is not None and (args.count or args.digits or args.batch or args.free):
        raise UsageError("--count, --digits, --batch and --free are of the tasks, not of --text")
    output = Output(args)
    formats = args.weights.split(",") if args.weights else []
    if args.int8_dot is not None:
        formats = _with_int8(args, formats)
    if len(formats) > 1:
        if args.text is None:
            raise UsageError(f"--weights {args.weights}: several formats are compared on --text")
        _formats(args, output, formats)
        return 0
    batch = 1 if args.text is not None else args.batch or (1 if args.device == CPU else BATCH)
    with _loader(args, batch) as load, load(args.weights) as model:
        about = {
            "model": args.model,
            "version": model.config.version,
            "weights": model.formats.name,
            "device": model.device.info.name if isinstance(model, Model) else "NumPy",
        }
        if args.text is not None:
            _text(args, output, model, about)
        else:
            _task(args, output, model, about, batch)
    return 0


def _task(
    args: argparse.Namespace,
    output: Output,
    model: Model | Reference,
    about: dict[str, Any],
    batch: int,
) -> None:
    task: Task = TASKS[args.task]
    low, high = args.digits or task.digits
    samples = task.make(args.count, low, high, random.Random(args.seed))
    result = evaluate(model, task, samples, batch, args.free)
    shown = _examples(samples, result)
    for lines in shown:
        for name, line in lines.items():
            output.text(f"{name:<7} {line}")
        output.text()
    rows = []
    for group, tally in result.groups.items():
        right, symbols = tally.score(task)
        rows.append([group, tally.problems, tally.whole, right, symbols, _percent(right, symbols)])
    output.table(["digits", "problems", "whole answers", "right", "symbols", "%"], rows)
    total = result.total
    right, symbols = total.score(task)
    output.text()
    output.text(f"{right} of {symbols} right, {_percent(right, symbols)} %: {task.scoring}")
    output.text(
        f"whole answers right: {total.whole} of {total.problems}, "
        f"{_percent(total.whole, total.problems)} %"
        + (" (the model went on from its own symbols)" if args.free else "")
    )
    if total.ends:
        output.text(
            f"ends of answers seen: {total.ends_right} of {total.ends}, "
            f"{_percent(total.ends_right, total.ends)} %"
        )
    speed = result.tokens / result.seconds
    output.text(
        f"{total.problems} problems, {result.tokens} tokens in {result.seconds:.1f} s "
        f"({speed:.0f} tok/s), {about['version']} {about['weights']} on {about['device']}"
    )
    output.document(
        {
            "task": args.task,
            **about,
            "digits": [low, high],
            "seed": args.seed,
            "batch": batch,
            "free": args.free,
            "scoring": task.scoring,
            "right": right,
            "symbols": symbols,
            "accuracy": right / symbols,
            "total": vars(total),
            "groups": {group: vars(tally) for group, tally in result.groups.items()},
            "examples": shown,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "tok_per_s": speed,
        }
    )


def _text(
    args: argparse.Namespace, output: Output, model: Model | Reference, about: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(args.tokenizer, model.config.vocab)
    score = score_text(model, tokenizer, Path(args.text).read_bytes())
    output.text(
        f"{score.bits_per_byte:.4f} bits per byte, perplexity {score.perplexity:.3f} per token"
    )
    output.text(
        f"{score.tokens} tokens ({score.bytes} bytes) in {score.seconds:.1f} s "
        f"({score.tokens / score.seconds:.0f} tok/s), {about['version']} {about['weights']} "
        f"on {about['device']}"
    )
    output.document(
        {
            "text": args.text,
            **about,
            **vars(score),
            "bits_per_byte": score.bits_per_byte,
            "perplexity": score.perplexity,
            "tok_per_s": score.tokens / score.seconds,
        }
    )


def _examples(samples: Sequence[Sample], result: Result) -> list[dict[str, str]]:
    """A few problems from end to end of the set, with what was said and what of it is right."""
    count = min(SHOWN, len(samples))
    chosen = {round(i * (len(samples) - 1) / max(count - 1, 1)) for i in range(count)}
    found = []
    for i in sorted(chosen):
        sample, predicted = samples[i], result.predicted[i]
        wanted = sample.answer + sample.end
        found.append(
            {
                "prompt": sample.prompt,
                "answer": wanted,
                "model": predicted,
                "check": marks(wanted, predicted),
            }
        )
    return found


def _percent(right: int, symbols: int) -> str:
    return f"{100 * right / symbols:.2f}"


def _digits(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    ends = [low, high or low]
    if not all(e.isascii() and e.isdigit() and len(e) <= len(str(MOST_DIGITS)) for e in ends):
        raise argparse.ArgumentTypeError(f"{text!r}: expected lengths like 1-60")
    first, last = int(ends[0]), int(ends[1])
    if not 1 <= first <= last <= MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r}: lengths are from 1 to {MOST_DIGITS}")
    return first, last


def _with_int8(args: argparse.Namespace, formats: list[str]) -> list[str]:
    """The formats, q8 without and with int8 dot products."""
    if args.text is None:
        raise UsageError("--int8-dot is of --text: it says what they cost")
    if args.device == CPU:
        raise UsageError("--device cpu runs in NumPy: it has no --int8-dot")
    formats = formats or ["q8"]
    if "q8" not in formats:
        raise UsageError(f"--int8-dot is for q8 weights, found --weights {args.weights}")
    at = formats.index("q8") + 1
    return [*formats[:at], f"q8{ROUNDED}", *formats[at:]]


def _formats(args: argparse.Namespace, output: Output, formats: Sequence[str]) -> None:
    for name in formats:
        name = name.removesuffix(ROUNDED)
        weight_format(name)  # said before any model is loaded
        parse_formats(name, args.quant)
    with _loader(args, 1) as load:
        found = score_formats(
            args.model,
            load,
            formats,
            lambda vocabulary: load_tokenizer(args.tokenizer, vocabulary),
            Path(args.text).read_bytes(),
            FEW_TOKENS if args.int8_dot else None,
        )
    output.table([*HEADS], rows(found))
    for one in found:
        if one.int8 is not None:
            output.text(f"{one.int8}; all in steps of {FEW_TOKENS} tokens")
    output.document({"text": args.text, "model": args.model, "formats": documents(found)})


@contextmanager
def _loader(
    args: argparse.Namespace, slots: int
) -> Iterator[Callable[[str | None], Model | Reference]]:
    """Gives what loads the model in a weight format; whoever calls it closes the model."""
    if args.device == CPU:
        if args.memory:
            raise UsageError("--memory is of a Vulkan device: --device cpu runs in NumPy")
        if args.bundle:
            raise UsageError("--device cpu runs in NumPy: it has no --bundle")
        with np.errstate(over="ignore", invalid="ignore"):  # who reads the logits tells
            yield lambda weights: load_reference(
                args.model,
                weights=weights,
                activations=args.activations,
                threads=args.threads,
                quant=args.quant,
                adapters=args.lora,
            )
        return
    if args.threads:
        raise UsageError("--threads is of --device cpu")
    if not Path(args.model).exists():  # said before a device is looked for
        raise ModelError(f"{args.model}: no such file: check the path")
    with open_device(args.device, memory=args.memory) as device:
        kernels = open_kernels(device, args.bundle)
        asked = options.int8_dot(args)

        def load(weights: str | None) -> Model:
            name = weights and weights.removesuffix(ROUNDED)
            int8_dot = asked if name != weights else None
            return load_model(
                args.model,
                device,
                kernels,
                name,
                args.activations,
                slots,
                int8_dot=int8_dot,
                quant=args.quant,
                adapters=args.lora,
            )

        yield load
