"""`tune --objective pareto`: speed, memory and error of a model in each weight format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output, plain
from kernelforge.cli.progress import ProgressBar
from kernelforge_runtime.written_file import written_whole

if TYPE_CHECKING:
    from kernelforge.tune.pareto import Front, Point
    from kernelforge_runtime.models import Model
    from kernelforge_runtime.text import Tokenizer

FILE = "pareto.json"
"""In the device's journal folder: the last comparison of each model and text."""
TOKENS, ROUNDS = 32, 7
"""Decoded per round, and rounds; the first rounds' plans and pipelines are made before."""
COMPARED = 256
"""Tokens of the text whose distributions are compared with the reference's."""
HEADS = (
    "weights", "tok/s", "spread", "MB", "perplexity", "change %", "divergence", "on the front",
)  # fmt: skip


def add_pareto_options(parser: argparse.ArgumentParser) -> None:
    """What the choice of a weight format takes."""
    group = parser.add_argument_group("choosing a model's weight format, with --model and --text")
    group.add_argument(
        "--objective",
        choices=("speed", "pareto"),
        default="speed",
        help="pareto: measure decode speed, memory and error of the whole model in each of "
        "--weights (default: all; the first is the reference) with the kernels there are, and say "
        "which formats no other one beats in all three (default: speed: tune kernels)",
    )
    group.add_argument("--text", metavar="FILE", help="with pareto: what the model is to predict")
    group.add_argument(
        "--most-worse",
        metavar="PERCENT",
        type=float,
        help="with pareto: perplexity that the recommended format may lose (default: 1)",
    )
    group.add_argument(
        "--tokenizer",
        metavar="T",
        default="auto",
        help="with pareto: as for eval (default: auto, by the vocabulary's size)",
    )


def choose_format(args: argparse.Namespace, output: Output) -> int:
    """Measures each format, prints the front and one of it."""
    from kernelforge.tune.pareto import MOST_WORSE, find_front, rule, to_json
    from kernelforge_runtime.errors import ModelError
    from kernelforge_runtime.models import load_model
    from kernelforge_runtime.models.formats import WEIGHT_FORMATS, weight_format
    from kernelforge_runtime.plan import open_kernels
    from kernelforge_runtime.text import load_tokenizer
    from kernelforge_runtime.vk import open_device

    if not args.model or not args.text or args.family:
        raise UsageError("--objective pareto: give --model FILE (or --shape) and --text FILE")
    most_worse = MOST_WORSE if args.most_worse is None else args.most_worse
    if not most_worse >= 0:
        raise UsageError(f"--most-worse {most_worse:g}: per cent from 0 up")
    names = [n.strip() for n in args.weights.split(",")] if args.weights else [*WEIGHT_FORMATS]
    names = list(dict.fromkeys(names))
    for name in names:
        weight_format(name)  # said before any model is loaded
    if not Path(args.model).exists():
        raise ModelError(f"{args.model}: no such file: check the path")
    data = Path(args.text).read_bytes()
    with open_device(args.device) as device:
        kernels = open_kernels(device, args.out)
        folder = options.journal_folder(args.journal, device.info.slug)
        options.require_writable(folder, "--journal")
        compare = _Formats(data)
        with ProgressBar(output, "formats", len(names)) as bar:

            def measure(name: str) -> Point:
                with load_model(args.model, device, kernels, name, args.activations) as model:
                    tokenizer = load_tokenizer(args.tokenizer, model.config.vocab)
                    point = compare.measure(name, model, tokenizer)
                bar.line(
                    f"{name:<5} {point.tok_per_s:.1f} tok/s  {point.weight_bytes / 1e6:.3f} MB  "
                    f"perplexity {point.perplexity:.4f}"
                )
                return point

            front = find_front(names, measure, most_worse)
        about = {
            "model": Path(args.model).name,
            "text": Path(args.text).name,
            "device": device.info.slug,
            "driver": f"{device.info.driver_name} {device.info.driver_info}".strip(),
            "activations": args.activations,
            "reference": front.points[0].weights,
        }
    for name, why in front.failed.items():
        output.note(f"{name} was not measured: {why}")
    output.table(HEADS, _rows(front))
    output.text(f"recommended: {front.recommended}: {rule(most_worse)}")
    document = {
        **about,
        "rule": rule(most_worse),
        "recommended": front.recommended,
        "formats": to_json(front),
        "failed": front.failed,
    }
    _keep(folder / FILE, document)
    output.document({**document, "file": folder / FILE})
    return 0


class _Formats:
    """Measures formats one after the other, each against the first that could be measured."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._reference: NDArray[np.float64] | None = None
        self._perplexity = 0.0

    def measure(self, name: str, model: Model, tokenizer: Tokenizer) -> Point:
        """One format of the model."""
        from kernelforge.cli.evaluation.text import score_text
        from kernelforge.cli.model_bench import Subject
        from kernelforge.measure.statistics import median, relative_spread
        from kernelforge.tune.pareto import Point

        subject = Subject(name, model)
        subject.warm("tg", TOKENS)
        speeds = [subject.decode(TOKENS)[0] for _ in range(ROUNDS)]
        score = score_text(model, tokenizer, self._data)
        ids = list(tokenizer.encode(self._data))[:COMPARED]
        logits, _ = model.forward(ids, model.new_state(), full_output=True)
        known = log_probabilities(logits)
        if self._reference is None:
            self._reference, self._perplexity = known, score.perplexity
        return Point(
            weights=name,
            tok_per_s=median(speeds),
            spread=relative_spread(speeds),
            weight_bytes=model.weight_bytes,
            perplexity=score.perplexity,
            worse_percent=100 * (score.perplexity / self._perplexity - 1),
            divergence=divergence(self._reference, known),
        )


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[tokens, vocabulary] natural logarithms of probabilities, of logits of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def divergence(reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean over the tokens of sum p (log p - log q), in nats; both are log probabilities."""
    gap = np.exp(reference) * (reference - other)
    return max(0.0, float(gap.sum(-1).mean()))


def _rows(front: Front) -> list[list[str]]:
    marks = dict.fromkeys(front.best, "yes") | {front.recommended: "yes, recommended"}
    return [
        [
            point.weights,
            f"{point.tok_per_s:.1f}",
            f"{100 * point.spread:.1f} %",
            f"{point.weight_bytes / 1e6:.3f}",
            f"{point.perplexity:.4f}",
            f"{point.worse_percent:+.2f}",
            f"{point.divergence:.2e}",
            marks.get(point.weights, "no"),
        ]
        for point in front.points
    ]


def _keep(path: Path, document: dict[str, object]) -> None:
    """Puts it in place of an earlier comparison of the same model and text."""
    try:
        kept = json.loads(path.read_bytes())["comparisons"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    which = ("model", "text", "activations")
    kept = [old for old in kept if any(old.get(key) != document[key] for key in which)]
    text = json.dumps({"comparisons": [*kept, plain(document)]}, indent=2, allow_nan=False)
    with written_whole(path) as file:
        file.write((text + "\n").encode())
