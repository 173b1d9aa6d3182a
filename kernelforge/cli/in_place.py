"""Does a tuned bundle help where it counts: in a model, one token after the other?"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from kernelforge.measure.statistics import Interval, median, paired_ratio
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.models import Model, load_model
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Device

ROUNDS = 9
ROUND_S = 0.15
"""About how long one round of one bundle lasts, in seconds."""
MOST_TOKENS = 64


@dataclass(frozen=True)
class InPlace:
    """Decode speed of one model with two bundles, measured in turns.

    Attributes:
        tuned_tok_per_s: with the new bundle, median of the rounds.
        generic_tok_per_s: with the generic one.
        time_ratio: time per token, tuned over generic, and its 95 % interval; below 1 is faster.
    """

    weights: str
    tuned_tok_per_s: float
    generic_tok_per_s: float
    time_ratio: Interval

    def line(self) -> str:
        """What came of it, in one line."""
        speeds = (
            f"in the model ({self.weights}, decode): {self.tuned_tok_per_s:.1f} tok/s tuned, "
            f"{self.generic_tok_per_s:.1f} tok/s generic"
        )
        ratio = self.time_ratio
        times = f"{1 / ratio.ratio:.2f} times (95 %: {1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
        if ratio.faster:
            return f"{speeds}: {times}"
        if ratio.slower:
            return f"{speeds}: {times}: SLOWER in place; give it more --trials or --seconds"
        return f"{speeds}: {times}: no difference beyond noise"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare_in_place(
    path: str | os.PathLike[str],
    device: Device,
    weights: str,
    activations: str,
    tuned: KernelSet,
    generic: KernelSet,
) -> InPlace:
    """Decodes with both bundles in turns; both models are on the device meanwhile.

    Raises:
        OutOfMemoryError: they do not fit side by side.
        KernelForgeError: the model cannot be run.
    """
    with (
        load_model(path, device, tuned, weights, activations) as first,
        load_model(path, device, generic, weights, activations) as second,
    ):
        runners = [_Decoder(first), _Decoder(second)]
        for runner in runners:
            runner.seconds(2)  # records the plan and makes the pipelines
        per_token = runners[1].seconds(4) / 4
        count = max(1, min(MOST_TOKENS, round(ROUND_S / per_token)))
        times: list[list[float]] = [[], []]
        for turn in range(ROUNDS):
            for which in (0, 1) if turn % 2 == 0 else (1, 0):
                times[which].append(runners[which].seconds(count) / count)
    return InPlace(
        weights,
        1 / median(times[0]),
        1 / median(times[1]),
        paired_ratio(times[0], times[1]),
    )


class _Decoder:
    """Decodes on and on, always the likeliest token."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._state: State = model.new_state()
        self._token = 0

    def seconds(self, tokens: int) -> float:
        """Wall-clock time of so many tokens."""
        started = time.perf_counter()
        for _ in range(tokens):
            self._token = self._model.greedy(self._token, self._state)
        return time.perf_counter() - started
