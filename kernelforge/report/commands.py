"""What to type to measure again what a report shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from kernelforge.report.bench_journal import BenchRecord
from kernelforge.report.comparisons import MatmulLimits, PeerRow
from kernelforge.report.fft import FftLimits
from kernelforge.report.formats import FormatRow
from kernelforge.report.kernels import KernelRow
from kernelforge.report.models import ModelRow
from kernelforge.report.serving import ServingRow

Asked = tuple[str, str, str]
"""Model, activations, and formats of parts: what one bench has one of."""


def commands(
    slug: str,
    kernels: Sequence[KernelRow],
    models: Sequence[ModelRow],
    peers: Sequence[PeerRow],
    limits: tuple[MatmulLimits | None, FftLimits | None],
    serving: Sequence[ServingRow],
    formats: Sequence[FormatRow],
) -> tuple[str, ...]:
    """Lines for a shell: tuning first, then benches, then the report."""
    tune, bench = [], []
    groups: dict[Asked, list[ModelRow]] = {}
    for row in models:
        groups.setdefault(_asked(row.record.model, row.record.weights), []).append(row)
    others = [name for name, found in zip(("torch", "vkfft"), limits, strict=True) if found]
    for asked, rows in groups.items():
        records = [row.record for row in rows]
        turns = [p for p in peers if _asked(p.ours.model, p.ours.weights) == asked]
        beside = dict.fromkeys(p.theirs.peer for p in turns)
        bench.append(
            f"kernelforge bench {_target(asked[0])} --device {slug}{_formats(asked, records)} "
            f"--pp {_lengths(records, 'pp')} --tg {_lengths(records, 'tg')} "
            f"--reps {max(len(r.tok_per_s) for r in records)}"
            + " --compare-bundle generic" * any(row.in_turns for row in rows)
            + (f" --peer {_quoted([*beside, *others])}" if beside or others else "")
        )
        others = []
    for model in dict.fromkeys(row.record.model for row in models):
        weights = _quoted(_plain(r.record.weights) for r in models if r.record.model == model)
        named = _target(model) if _shape(model) else f"--model {_target(model)}"
        tune.append(f"kernelforge tune --device {slug} {named} --weights {weights}")
    if not tune:
        tune = [f"kernelforge tune --device {slug} --model MODEL"]
    compared = [
        f"kernelforge tune --device {slug} --model {shlex.quote(model)} --objective pareto "
        f"--text {shlex.quote(text)}"
        for model, text in dict.fromkeys((row.model, row.text) for row in formats)
    ]
    return (
        *(tune if kernels else ()),
        *bench,
        *_serving(slug, serving),
        *compared,
        f"kernelforge report --device {slug}",
    )


def _serving(slug: str, rows: Sequence[ServingRow]) -> list[str]:
    groups: dict[Asked, list[ServingRow]] = {}
    for row in rows:
        groups.setdefault(_asked(row.model, row.weights), []).append(row)
    found = []
    for asked, group in groups.items():
        batches = sorted({row.sequences for row in group if row.is_batch})
        steps = [row.test[2:].partition("@")[0] for row in group if row.is_batch]
        far = [int(row.test[3:]) for row in group if re.fullmatch(r"tg@[1-9][0-9]{0,8}", row.test)]
        found.append(
            f"kernelforge bench {_target(asked[0])} --device {slug}{_formats(asked, group)} --pp 0 "
            + (f"--tg {shlex.quote(steps[0])}" if steps else "--tg 0")
            + (f" --batch {','.join(map(str, batches))}" if batches else "")
            + " --first-token" * any("first-token" in row.test for row in group)
            + (f" --long {max(far)}" if far else "")
            + f" --reps {max(len(row.samples) for row in group)}"
        )
    return found


def _asked(model: str, weights: str) -> Asked:
    """Of a record: `f16`, `f16/f16` with its activations, or `0-11:q8,head:f16` by parts."""
    kept, _, activations = weights.partition("/")
    return model, activations, kept if ":" in kept else ""


def _formats(asked: Asked, rows: Iterable[BenchRecord | ServingRow]) -> str:
    _, activations, parts = asked
    text = f" --weights {_quoted(_plain(row.weights) for row in rows)}"
    if parts:
        text = f" --quant {shlex.quote(parts)}"
    return text + (f" --activations {shlex.quote(activations)}" if activations else "")


def _plain(weights: str) -> str:
    return weights.partition("/")[0]


def _quoted(names: Iterable[str]) -> str:
    return shlex.quote(",".join(dict.fromkeys(names)))


def _shape(model: str) -> bool:
    return model.startswith("random-")


def _target(model: str) -> str:
    """Quoted: a model's name is its file's, and that may be anything."""
    if _shape(model):
        return f"--shape {shlex.quote(model.removeprefix('random-'))}"
    name = f"{model}.safetensors"
    return shlex.quote(name if not name.startswith("-") else f"./{name}")


def _lengths(records: Iterable[BenchRecord], kind: str) -> str:
    found = sorted({int(r.test[2:]) for r in records if r.test.startswith(kind)})
    return ",".join(map(str, found)) or "0"
