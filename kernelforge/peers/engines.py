"""Which engines there are, which models each can run, and how it is given the weights."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert import convert_checkpoint
from kernelforge.convert.random_model import random_model
from kernelforge.errors import PeerError
from kernelforge.peers.llama_cpp_file import write_llama_cpp
from kernelforge.peers.process import PeerProcess
from kernelforge.peers.web_rwkv_file import write_web_rwkv
from kernelforge_runtime.weights import open_checkpoint

LOAD_S = 600.0
TOKEN_S = 30.0
"""A token that takes longer is no competition: the peer is given up."""
LONG_TOKEN_S = 2.0
"""As long of each in a test of many: hours of waiting for one that hangs help nobody."""


@dataclass(frozen=True)
class Peer:
    """An engine of somebody else's.

    Attributes:
        worker: file of its worker.
        weights: the format that it computes with.
        write: puts a model where and how it wants it.
        versions: of models that it runs.
        substitute: the version run in place of one that it does not know, with random weights of
            the same sizes; "" where there is none.
        suffix: of the file that `write` makes.
    """

    worker: str
    weights: str
    write: Callable[[Path, Path], None]
    versions: frozenset[str]
    substitute: str = ""
    suffix: str = ".safetensors"


def _web_rwkv(source: Path, target: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        write_web_rwkv(checkpoint, target)


def _llama_cpp(source: Path, target: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        write_llama_cpp(checkpoint, target)


def _official(source: Path, target: Path) -> None:
    convert_checkpoint(source, target)


OLDER = frozenset({"rwkv4", "rwkv5", "rwkv6"})
ENGINES = {
    "rwkv": Peer("official", "f32", _official, OLDER | {"rwkv7"}),
    "web-rwkv": Peer("web_rwkv", "f16", _web_rwkv, OLDER, substitute="v6"),
    "llama.cpp": Peer("llama", "f16", _llama_cpp, frozenset({"rwkv6", "rwkv7"}), suffix=".gguf"),
}
"""By the names that `--peer` takes."""


@dataclass(frozen=True)
class PeerModel:
    """What a peer is to run: a `.pth` or `.safetensors` file, its version and sizes."""

    path: Path
    version: str
    layers: int
    width: int
    vocab: int


@dataclass
class RunningPeer:
    """A peer that has loaded a model.

    Attributes:
        name: as in `ENGINES`.
        label: its version, and what runs it.
        weights: the format that it computes with.
        model: name of the model that it runs.
        vocab: V.
        same_model: whether that is the model that was asked for.
    """

    name: str
    label: str
    weights: str
    model: str
    vocab: int
    same_model: bool
    process: PeerProcess

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[V] of the last token, fed one by one from an empty state.

        Raises:
            PeerError: see PeerProcess.ask.
        """
        found = self.process.ask("logits", patience_s(len(tokens)), tokens=list(tokens))
        try:
            return np.array(found, np.float32).reshape(-1)
        except (ValueError, TypeError, OverflowError):
            raise PeerError("its logits are no list of numbers") from None

    def prefill_s(self, tokens: Sequence[int]) -> float:
        """Seconds for a prompt; see `logits` for what it raises."""
        return self.process.ask_number("prefill", patience_s(len(tokens)), tokens=list(tokens))

    def decode_s(self, tokens: Sequence[int]) -> float:
        """Seconds for these tokens one by one; see `logits` for what it raises."""
        return self.process.ask_number("decode", patience_s(len(tokens)), tokens=list(tokens))


def patience_s(tokens: int) -> float:
    """Seconds after which a peer is taken to hang: no competitor is as slow."""
    return min(TOKEN_S * tokens, max(LOAD_S, LONG_TOKEN_S * tokens))


@contextlib.contextmanager
def open_peer(
    name: str,
    model: PeerModel,
    folder: Path,
    cache: Path,
    python: str | None = None,
    threads: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningPeer]:
    """Starts a peer on a model.

    Args:
        name: one of `ENGINES`.
        model: what it is to run.
        folder: for the peer's own copy of the weights, which goes again.
        cache: where random models are kept.
        python: the interpreter that has the peer's package; this one by default.
        threads: of a peer that runs on the CPU; 0: as many as it takes.
        environment: variables that its process has besides this one's.

    Raises:
        PeerError: there is no such peer, it cannot run this model, or it failed.
    """
    if name not in ENGINES:
        raise PeerError(f"--peer {name}: there are {', '.join(ENGINES)}")
    peer = ENGINES[name]
    same = model.version.split(".")[0] in peer.versions
    source = model.path if same else _stand_in(peer, model, cache)
    needed = 3 * source.stat().st_size
    if shutil.disk_usage(folder).free < needed:
        raise PeerError(f"its copy of the weights needs {needed / 1e9:.1f} GB in {folder}")
    target = folder / f"{name}{peer.suffix}"
    peer.write(source, target)
    process = PeerProcess(peer.worker, folder, python, environment)
    try:
        label = process.ask_label("load", LOAD_S, path=str(target), threads=threads)
        yield RunningPeer(name, label, peer.weights, source.stem, model.vocab, same, process)
    finally:
        process.close()


def _stand_in(peer: Peer, model: PeerModel, cache: Path) -> Path:
    if not peer.substitute:
        known = ", ".join(sorted(peer.versions))
        raise PeerError(f"it runs {known}, and this model is {model.version}")
    sizes = f"{peer.substitute}.L{model.layers}.C{model.width}.V{model.vocab}"
    return random_model(sizes, cache)
