"""Serves random requests at full slots for a while; tells leaks and wrong texts.

    scripts/soak.py --minutes 30                        # the demonstration model, eight slots
    scripts/soak.py MODEL --device llvmpipe --slots 4 --minutes 2

Requests differ in prompt, length and sampling; some are cancelled, some forked. Of the greedy ones
a sample is held against the NumPy oracle: every token must be its largest logit, but for rounding.
Memory of the process and Vulkan objects must be the same at the end as after the start.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import kernelforge_runtime as kf
from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.errors import KernelForgeError

DEMO = Path(__file__).parents[1] / "runtime" / "demo" / "kjv-rwkv7-2.6m.safetensors"
TIE = 2e-3
"""A token whose logit is this close to the largest, as a part of their spread, is as good."""
WARM_STEPS = 300
"""Steps without a new plan after which memory must not grow any more."""
GROWTH_BYTES = 24 << 20
"""What the process may grow by: the allocator's own blocks, journals of the run."""
LONGEST_PROMPT, MOST_TOKENS = 64, 24
CHECKED = 25
"""Of so many greedy requests that ended one is checked."""


@dataclass
class Soaked:
    """What a run found.

    Attributes:
        wrong: what did not equal the oracle, a line each.
        leaks: what grew, a line each.
        warm: whether it ran long enough for growth to mean anything.
    """

    requests: int = 0
    cancelled: int = 0
    tokens: int = 0
    steps: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    warm: bool = False

    def __str__(self) -> str:
        return (
            f"{self.requests} requests ({self.cancelled} cancelled), {self.tokens} tokens, "
            f"{self.steps} steps; {self.checked} texts checked, {len(self.wrong)} wrong; "
            f"{len(self.leaks)} leaks{'' if self.warm else ' (too short to tell)'}"
        )


class Soak:
    """The requests of one run.

    Args:
        model: on a device.
        oracle: the same weights in NumPy.
        seed: of everything random.
    """

    def __init__(self, model: kf.Model, oracle: kf.Reference, seed: int = 0) -> None:
        self.model, self.oracle = model, oracle
        self.engine = kf.Engine(model)
        self.rng = np.random.default_rng(seed)
        self.found = Soaked()
        self._running: list[Request] = []
        self._greedy = 0
        self._plans, self._since = 0, 0
        self._first: tuple[int, dict[str, int], int] | None = None

    def run(self, seconds: float, tell: Callable[[str], None] = lambda text: None) -> Soaked:
        """Serves for so long, drains, and looks at what is left."""
        end, next_word = time.monotonic() + seconds, time.monotonic() + 60
        while time.monotonic() < end:
            self.step()
            if time.monotonic() >= next_word:
                next_word += 60
                self._compare()
                tell(f"{self.found}; {resident_bytes() / 1e6:.0f} MB")
        self._compare()
        for _ in self.engine.run():  # may record plans for fewer sequences
            pass
        self._collect()
        self._compare()
        return self.found

    def step(self) -> None:
        """Fills the engine, disturbs it now and then, and runs one step."""
        while len(self.engine.waiting) < self.model.slots:
            self._submit()
        if self._running and self.rng.random() < 0.05:
            victim = self._running[self.rng.integers(len(self._running))]
            if self.rng.random() < 0.5:
                self.found.cancelled += self.engine.cancel(victim)
            elif victim.reason is None and len(victim.pending):
                self._running.append(self.engine.fork(victim))
                self.found.requests += 1
        self.engine.step()
        self.found.steps += 1
        self._collect()
        self._watch()

    def _submit(self) -> None:
        rng, vocab = self.rng, self.model.config.vocab
        prompt = rng.integers(1, vocab, 1 + int(rng.integers(LONGEST_PROMPT))).tolist()
        greedy = rng.random() < 0.5
        sampling = kf.Sampling(
            temperature=0.0 if greedy else 1.0, top_p=0.9, seed=int(rng.integers(1 << 30))
        )
        count = int(rng.integers(MOST_TOKENS + 1))
        self._running.append(self.engine.submit(prompt, count, sampling))
        self.found.requests += 1

    def _collect(self) -> None:
        for request in [r for r in self._running if r.reason is not None]:
            self._running.remove(request)
            self.found.tokens += len(request.tokens)
            if request.reason == "error":
                self.found.wrong.append(f"request {request.id}: {request.error}")
            if request.terms.sampling.is_greedy and request.tokens:
                self._greedy += 1
                if self._greedy % CHECKED == 1:
                    self._check(request)

    def _check(self, request: Request) -> None:
        text = [*map(int, request.prompt), *request.tokens]
        logits, _ = self.oracle.forward(text[:-1], full_output=True)
        said = logits[len(request.prompt) - 1 :]
        short = said.max(axis=1) - said[np.arange(len(said)), request.tokens]
        spread = said.max(axis=1) - said.min(axis=1)
        self.found.checked += 1
        if (bad := np.flatnonzero(~(short <= TIE * spread))).size:
            at = int(bad[0])
            self.found.wrong.append(
                f"request {request.id}: token {at} is {request.tokens[at]}, the oracle's "
                f"{int(said[at].argmax())}; prompt of {len(request.prompt)} tokens"
            )

    def _watch(self) -> None:
        """Takes what memory is compared with, once no new plan was recorded for a while."""
        plans = self.model.recorded_steps
        self._since = self._since + 1 if plans == self._plans else 0
        if plans != self._plans:
            self._plans, self._first = plans, None
        if self._first is None and self._since >= WARM_STEPS:
            gc.collect()
            self._first = plans, self.model.device.live_objects, resident_bytes()

    def _compare(self) -> None:
        gc.collect()
        if self._first is None or self._first[0] != self.model.recorded_steps:
            return
        self.found.warm = True
        self.found.leaks.clear()  # told anew each time: what is still there counts
        _, objects, resident = self._first
        if (now := self.model.device.live_objects) != objects:
            self.found.leaks.append(f"Vulkan objects: {objects}, then {now}")
        if (grown := resident_bytes() - resident) > GROWTH_BYTES:
            self.found.leaks.append(f"the process grew by {grown / 1e6:.1f} MB")


def resident_bytes() -> int:
    """Memory of this process that is in use, 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str] | None = None) -> int:
    """0 where nothing was wrong and nothing leaked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(DEMO), metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=30.0, help="(default: 30)")
    parser.add_argument("--device", help="as for the verbs (default: the best one)")
    parser.add_argument("--weights", default="f16", help="(default: f16)")
    parser.add_argument("--slots", type=int, default=8, help="(default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not 0 < args.minutes < 1e5:
        parser.error(f"--minutes {args.minutes:g}: a number above 0")
    try:
        with (
            kf.open_device(args.device) as device,
            kf.load_model(args.model, device, weights=args.weights, slots=args.slots) as model,
            kf.load_reference(args.model, weights=args.weights) as oracle,
        ):
            run = Soak(model, oracle, args.seed)
            found = run.run(60 * args.minutes, lambda text: print(text, flush=True))
    except KernelForgeError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    for line in (*found.wrong, *found.leaks):
        print(line, file=sys.stderr)
    print(found)
    return 1 if found.wrong or found.leaks else 0


if __name__ == "__main__":
    raise SystemExit(main())
