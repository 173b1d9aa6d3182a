"""Other engines as subjects of a bench: opened, logits compared, then run in turns with ours."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelforge.cli.output import Output
from kernelforge.errors import PeerError
from kernelforge.peers import ENGINES, PeerModel, RunningPeer, measure_matmul, open_peer
from kernelforge.report.bench_journal import LEFT_OUT
from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.models import Model, Reference, recognise
from kernelforge_runtime.weights import open_checkpoint

if TYPE_CHECKING:
    from kernelforge.cli.model_bench import Samples, Subject

TORCH = "torch"
"""No engine: its matrix products are a limit to compare with."""
VKFFT = "vkfft"
"""No engine either: it transforms."""
LIMITS = frozenset({TORCH, VKFFT})
WARM_TOKENS = 4
Known = tuple["Subject | PeerSubject", dict[str, Any]]
"""A loaded model or another engine, and what records say of it."""
_FOLDERS = re.compile(r"(?<![\w.])[~/](?:[^\s/:;,'\"]*/)+")
_SEED = 2
_COMPARED = 6
"""Tokens after which logits are compared."""
FURTHEST = {"q8": 0.3, "nf4": 1.0}
FURTHEST_OF_FLOATS = 0.1
"""Distance of logits, relative to their length, at which a peer does not run the same model.
Half precision moves them by less than 0.01; our quantised weights move ours further."""


class Absent:
    """Peers that are left out: each is said at once, and listed in the document.

    Attributes:
        output: where it is said.
        reasons: by the peer's name.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self.reasons: dict[str, str] = {}

    def add(self, name: str, reason: object) -> None:
        """Leaves a peer out; for several reasons where it was tried more than once."""
        known = self.reasons.get(name)
        self.reasons[name] = f"{known}; {reason}" if known else str(reason)
        self.output.note(f"peer {name} is left out: {reason}")

    def record(self, time: str, model: str) -> dict[str, dict[str, Any]]:
        """For the journal, by its kind: nobody's folders are in it, as others read reports."""
        peers = {name: _FOLDERS.sub("", reason) for name, reason in self.reasons.items()}
        return {LEFT_OUT: {"time": time, "model": model, "peers": peers}}


class PeerSubject:
    """Another engine in the place of a loaded model, see `model_bench.Subject`.

    Its tokens are fixed: picking the next one is left out, in the peer's favour.
    """

    model = None

    def __init__(self, engine: RunningPeer) -> None:
        self.name, self.engine = engine.label, engine
        tokens = np.random.default_rng(_SEED).integers(0, engine.vocab, 1 << 16)
        self.tokens: list[int] = tokens.tolist()

    def prefill(self, tokens: int) -> tuple[float, float]:
        """Runs a prompt: (tokens per second, NaN)."""
        return tokens / self.engine.prefill_s(self.tokens[:tokens]), float("nan")

    def decode(self, tokens: int) -> tuple[float, float]:
        """Tokens one by one: (tokens per second, NaN)."""
        return tokens / self.engine.decode_s(self.tokens[:tokens]), float("nan")

    def warm(self, test: str, tokens: int) -> None:
        """Lets it allocate and compile what the test needs."""
        if test == "pp":
            self.prefill(tokens)
        else:
            self.decode(min(tokens, WARM_TOKENS))


def peer_facts(peer: PeerSubject, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a peer's records say of it; `known`: of ours, which names the device."""
    of_device = ("device", "device_name", "device_type", "driver")
    return {
        **{name: known[name] for name in of_device},
        "model": peer.engine.model,
        "weights": peer.engine.weights,
        "bundle": peer.name,
        "kernels": "another engine",
        "peer": peer.engine.name,
        "state_bytes": 0,
    }


def check_names(names: Sequence[str]) -> str | None:
    """What is wrong with the names of peers; None if nothing is."""
    known = (*ENGINES, *sorted(LIMITS))
    unknown = [name for name in names if name not in known]
    return f"--peer {unknown[0]}: there are {', '.join(known)}" if unknown else None


def matmul_limits(
    names: Sequence[str], python: str | None, absent: Absent
) -> dict[str, Any] | None:
    """What torch's products reach, where it was asked for and is there."""
    if TORCH not in names:
        return None
    try:
        limits = measure_matmul(python=python)
    except PeerError as error:
        absent.add(TORCH, error)
        return None
    found = ", ".join(f"{speed:.0f} GFLOP/s in {name}" for name, speed in limits.gflops.items())
    absent.output.note(f"{limits.label}: {limits.size} x {limits.size} matrices, {found}")
    return limits.to_json()


@contextlib.contextmanager
def opened_peers(
    names: Sequence[str],
    model: Path,
    cache: Path,
    python: str | None,
    absent: Absent,
    environment: Mapping[str, str] | None = None,
) -> Iterator[list[PeerSubject]]:
    """Every peer that can be run; one that cannot be is named with its reason, and left out."""
    with open_checkpoint(model) as checkpoint:
        config = recognise(checkpoint).read_config(checkpoint)
    subject = PeerModel(model, config.version, config.layers, config.width, config.vocab)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kernelforge-peers-")))
        found = []
        for name in (name for name in names if name not in LIMITS):
            try:
                engine = stack.enter_context(
                    open_peer(name, subject, folder, cache, python, environment=environment)
                )
            except KernelForgeError as error:
                absent.add(name, error)
                continue
            if not engine.same_model:
                absent.output.note(
                    f"peer {name} does not know this version: it runs {engine.model}, "
                    "random weights of the same sizes, and its logits are not compared"
                )
            found.append(PeerSubject(engine))
        yield found


def working_peers(
    model: Model | Reference, weights: str, peers: Sequence[PeerSubject], absent: Absent
) -> list[PeerSubject]:
    """Those that answer and run the same model, after saying how far their logits are from ours."""
    found = []
    for peer in peers:
        try:
            if peer.engine.same_model:
                absent.output.note(_compared(model, weights, peer))
            peer.warm("tg", WARM_TOKENS)
        except PeerError as error:
            absent.add(peer.engine.name, f"in {weights}: {error}")
        else:
            found.append(peer)
    return found


def without_lost(
    subjects: Sequence[Known], found: Sequence[Samples], test: str, absent: Absent
) -> tuple[list[Known], list[Samples]]:
    """The subjects that came through a test, and their samples; says which other one did not.

    Args:
        subjects: in the order of `found`.
        found: samples of each.
        test: its name.
        absent: takes those that failed.
    """
    kept = []
    for subject, samples in zip(subjects, found, strict=True):
        if samples.failed and isinstance(subject[0], PeerSubject):
            absent.add(subject[0].engine.name, f"in {test}: {samples.failed}")
        else:
            kept.append((subject, samples))
    return [subject for subject, _ in kept], [samples for _, samples in kept]


def _compared(model: Model | Reference, weights: str, peer: PeerSubject) -> str:
    """What there is to say of two engines' logits.

    Raises:
        PeerError: they are not of one model.
    """
    tokens = peer.tokens[:_COMPARED]
    ours, _ = model.forward(tokens)
    theirs = peer.engine.logits(tokens)[: len(ours)]
    if len(theirs) < len(ours) or not np.isfinite(theirs).all():
        raise PeerError(f"{np.isfinite(theirs).sum()} of {len(ours)} logits are numbers")
    apart = float(np.linalg.norm(ours - theirs))
    # Layers may have formats of their own: the coarsest one named counts.
    limit = max(
        (far for name, far in FURTHEST.items() if name in weights), default=FURTHEST_OF_FLOATS
    )
    if apart > limit * max(float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))):
        raise PeerError(
            f"its logits are at most {np.abs(ours - theirs).max():.2g} from ours, "
            f"which are up to {np.abs(ours).max():.3g}: it does not run the same model"
        )
    same = "the same" if int(np.argmax(ours)) == int(np.argmax(theirs)) else "another"
    return (
        f"logits after {len(tokens)} tokens, ours in {weights} and {peer.name} in "
        f"{peer.engine.weights}: at most {np.abs(ours - theirs).max():.2g} apart, of "
        f"{np.abs(theirs).max():.3g}; {same} most likely token"
    )
