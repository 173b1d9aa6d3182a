"""`run --check`: how large values are behind every part of every layer, and whether one is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge.cli.output import Output
from kernelforge_runtime.dtypes import F16
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import Magnitudes, Model, Reference
from kernelforge_runtime.models.hidden import Magnitude
from kernelforge_runtime.ops.observation import EMBEDDING
from kernelforge_runtime.state import State

SINGLE_TOKENS = 16
"""Tokens that are run one by one too: decoding takes other kernels than a prompt."""
F16_LIMIT = 65504.0
NARROW = 0.25
"""Part of what float16 holds beyond which a note is due."""


@dataclass(frozen=True)
class _Probe:
    """What one way of running the prompt showed.

    Attributes:
        name: `prompt`, or `token by token`.
        tokens: that it ran.
        found: every place.
        damaged_logits: how many of the last token's logits are not finite.
    """

    name: str
    tokens: int
    found: list[Magnitude]
    damaged_logits: int

    @property
    def damage(self) -> str:
        """Where the first value that is not finite is; empty where all are finite."""
        for kept in self.found:
            if kept.damaged:
                return (
                    f"{where(kept)} is the first with values that are NaN or infinite: "
                    f"{kept.damaged}, from token {kept.token} on ({self.name})"
                )
        if self.damaged_logits:
            return f"{self.damaged_logits} logits are NaN or infinite, no layer is ({self.name})"
        return ""


def check_layers(
    model: Model | Reference, prompt: Sequence[int], state: State, output: Output
) -> dict[str, Any]:
    """Runs a prompt, prints a table, and returns what it says; see `run --check`.

    Args:
        model: loaded.
        prompt: token ids.
        state: to start from; left as it is.
        output: says it.
    """
    ids = list(prompt)
    short = ids[:SINGLE_TOKENS]
    whole, logits = _probe(model, "prompt", [ids], state)
    if len(short) < len(ids):
        logits, _ = model.forward(short, state.clone())
    single, stepped = _probe(model, "token by token", [[token] for token in short], state)
    output.table(
        ("layer", "behind", "largest", "added", "not finite", "largest, token by token"),
        [
            (
                "-" if a.place.block == EMBEDDING else a.place.block,
                a.place.part,
                f"{a.largest:.4g}",
                "" if a.place.block == EMBEDDING else f"{a.added:.4g}",
                a.damaged + b.damaged,
                f"{b.largest:.4g}",
            )
            for a, b in zip(whole.found, single.found, strict=True)
        ],
    )
    largest = max(kept.largest for probe in (whole, single) for kept in probe.found)
    if model.activations == F16 and largest > NARROW * F16_LIMIT:
        output.note(f"the largest value, {largest:.4g}, is close to what f16 holds: {F16_LIMIT:g}")
    apart = float(np.max(np.abs(logits - stepped)))
    spread = float(np.std(logits))
    damage = whole.damage or single.damage
    if not damage:
        output.text(
            f"{len(ids)} tokens as a prompt and {len(short)} token by token: every value is "
            f"finite; the logits of both ways are {apart:.3g} apart at most, their spread is "
            f"{spread:.3g}"
        )
    return {
        "tokens": len(ids),
        "damage": damage,
        "logits_apart": apart,
        "logits_spread": spread,
        "largest": largest,
        "probes": [
            {
                "run": probe.name,
                "tokens": probe.tokens,
                "damaged_logits": probe.damaged_logits,
                "places": [_plain(kept) for kept in probe.found],
            }
            for probe in (whole, single)
        ],
    }


def require_sound(told: dict[str, Any], path: str) -> None:
    """Raises ModelError where a check found values that are not finite."""
    if told["damage"]:
        raise ModelError(
            f"{path}: {told['damage']}; try --activations f32 and --weights f32, then "
            "`kernelforge inspect --check` of the file"
        )


def where(kept: Magnitude) -> str:
    """`layer 3, channel mix`."""
    place = kept.place
    return place.part if place.block == EMBEDDING else f"layer {place.block}, {place.part},"


def _probe(
    model: Model | Reference, name: str, pieces: Sequence[Sequence[int]], state: State
) -> tuple[_Probe, Any]:
    """Runs pieces one after the other on a copy of the state: what was seen, the last logits."""
    scratch, seen = state.clone(), Magnitudes()
    with np.errstate(all="ignore"):  # NumPy would warn of what is looked for
        for piece in pieces:
            piecewise = _Continued(seen)
            logits, _ = model.forward(piece, scratch, hidden=piecewise)
    model.release(scratch)
    bad = int((~np.isfinite(logits)).sum())
    return _Probe(name, sum(map(len, pieces)), seen.found, bad), logits


class _Continued:
    """Goes on with what others began: several runs are measured as one."""

    def __init__(self, seen: Magnitudes) -> None:
        self.wants, self.see = seen.wants, seen.see

    def begin(self, layers: int, version: str) -> None:
        """Nothing is forgotten."""


def _plain(kept: Magnitude) -> dict[str, Any]:
    place = kept.place
    return {
        "layer": None if place.block == EMBEDDING else place.block,
        "part": place.part,
        "largest": kept.largest,
        "added": kept.added,
        "not_finite": kept.damaged,
        "first_token": kept.token if kept.damaged else None,
    }
