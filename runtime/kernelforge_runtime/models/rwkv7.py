"""RWKV-7 "Goose": recognised by its tensors, loaded, and its step in the order of the paper.

Source: RWKV-7 "Goose" with Expressive Dynamic State Evolution (arXiv 2503.14456).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig, TensorReader
from kernelforge_runtime.ops import Activation, OpSet, Part
from kernelforge_runtime.weights import Checkpoint

SHIFTS = "rwkvag"
"""Order of the six token-shift mixes: slot i of the time mix's input."""
LORA_INPUT: dict[str, int] = {"w": SHIFTS.index("w"), "a": 4, "v": 3, "g": 5}
LORA_ACTIVATION: dict[str, Activation] = {"w": "tanh", "a": "none", "v": "none", "g": "sigmoid"}
GROUP_NORM_EPS = 64e-5
FOREIGN = ("ffn.s_emb.weight", "ffn.enn.weight", "qkv.", "rosa.")
"""Tensors of later versions that are built on RWKV-7: a file that has them is not plain RWKV-7."""


@dataclass(frozen=True)
class Layer:
    """Handles of one block's weights."""

    ln1: tuple[Any, Any]
    mix: Any
    project: Any
    expand: Any
    gates: Any
    readout: Any
    output: Any
    ln2: tuple[Any, Any]
    ffn_mix: Any
    ffn_key: Any
    ffn_value: Any


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    embedding: Any
    ln0: tuple[Any, Any]
    layers: tuple[Layer, ...]
    ln_out: tuple[Any, Any]
    head: Any


class Rwkv7:
    """The model file; see ModelFile."""

    name = "rwkv7"

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """`r_k` is RWKV-7's alone; versions built on it bring tensors of their own."""
        if "blocks.0.att.r_k" not in checkpoint:
            return False
        return not any(f".{foreign}" in name for name in checkpoint.names for foreign in FOREIGN)

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        read = TensorReader(checkpoint)
        vocab, width = _two(read, "emb.weight")
        heads, head_size = _two(read, "blocks.0.att.r_k", checkpoint.shape("blocks.0.att.r_k"))
        if heads * head_size != width:
            raise ModelError(
                f"{checkpoint.path}: r_k has {heads} heads of {head_size}, "
                f"emb.weight is {width} wide"
            )
        if width % 32 or head_size not in (16, 32, 64, 128):
            raise ModelError(
                f"{checkpoint.path}: width {width} with heads of {head_size}; "
                "widths are multiples of 32, heads 16, 32, 64 or 128"
            )
        blocks = [re.match(r"blocks\.(\d+)\.", name) for name in checkpoint.names]
        layers = 1 + max(int(m[1]) for m in blocks if m)
        last = layers - 1
        lora = {c: _two(read, f"blocks.{last}.att.{c}1")[1] for c in "wag"}
        if last:
            lora["v"] = _two(read, f"blocks.{last}.att.v1")[1]
        return ModelConfig(
            version=self.name,
            layers=layers,
            width=width,
            heads=heads,
            head_size=head_size,
            vocab=vocab,
            ffn=_two(read, "blocks.0.ffn.key.weight")[0],
            lora=lora,
            dtype=checkpoint.dtype("head.weight" if "head.weight" in checkpoint else "emb.weight"),
            parameters=sum(int(np.prod(checkpoint.shape(n))) for n in checkpoint.names),
        )

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block."""
        read = TensorReader(checkpoint)
        table = read.matrix("emb.weight", config.vocab, config.width)
        return Weights(
            embedding=ops.table("emb.weight", table),
            ln0=_norm(ops, read, "blocks.0.ln0", config.width),
            layers=tuple(self._layer(ops, read, i, config) for i in range(config.layers)),
            ln_out=_norm(ops, read, "ln_out", config.width),
            head=ops.matrix(
                [Part("head.weight", read.matrix("head.weight", config.vocab, config.width))]
            ),
        )

    def _layer(self, ops: OpSet, read: TensorReader, index: int, config: ModelConfig) -> Layer:
        block, width, ffn = f"blocks.{index}.", config.width, config.ffn
        att = block + "att."

        def vector(name: str) -> Any:
            return read.vector(att + name, width)

        def square(name: str, slot: int = 0) -> Part:
            return Part(att + name, read.matrix(att + name, width, width), slot)

        # Layer 0 has no value residual; files may carry its tensors, and they mean nothing.
        loras = [c for c in "wavg" if c != "v" or index > 0]
        down, up, column = [], [], 3 * width
        for letter in loras:
            first, second = f"{att}{letter}1", f"{att}{letter}2"
            rank = _two(read, first)[1]
            weight = read.matrix(first, width, rank).T
            activation = LORA_ACTIVATION[letter]
            down.append(Part(first, weight, LORA_INPUT[letter], activation=activation))
            up.append((letter, Part(second, read.matrix(second, rank, width).T, column=column)))
            column += -(-rank // 32) * 32
        widest = max(part.weight.shape[1] for _, part in up)
        parts = dict(up)
        if "v" not in parts:  # keeps w, a, v, g in their places: a zero matrix of rank 32
            zero = np.zeros((width, 32), np.float32)
            parts["v"] = Part(f"{att}v2", zero, column=3 * width)
        zeros = np.zeros(width, np.float32)
        gates = [vector("w0"), vector("a0"), vector("v0") if index else zeros]
        gates += [vector("k_k"), vector("k_a")]
        readout = [vector("r_k"), vector("ln_x.weight"), vector("ln_x.bias")]
        per_head = (-1, config.heads, config.head_size)
        return Layer(
            ln1=_norm(ops, read, block + "ln1", width),
            mix=ops.vector(np.stack([vector(f"x_{c}") for c in SHIFTS])),
            project=ops.matrix(
                [
                    square("receptance.weight", SHIFTS.index("r")),
                    square("key.weight", SHIFTS.index("k")),
                    square("value.weight", SHIFTS.index("v")),
                    *down,
                ],
                # The widest LoRA's reach, wherever it starts, must end inside a row.
                min_rows=max(p.column for _, p in up) + -(-widest // 32) * 32,
            ),
            expand=ops.matrix([parts[c] for c in "wavg"]),
            gates=ops.vector(np.stack(gates).reshape(per_head)),
            readout=ops.vector(np.stack(readout).reshape(per_head)),
            output=ops.matrix([square("output.weight")]),
            ln2=_norm(ops, read, block + "ln2", width),
            ffn_mix=ops.vector(read.vector(block + "ffn.x_k", width)[None]),
            ffn_key=ops.matrix(
                [
                    Part(
                        block + "ffn.key.weight",
                        read.matrix(block + "ffn.key.weight", ffn, width),
                        activation="relu2",
                    )
                ]
            ),
            ffn_value=ops.matrix(
                [
                    Part(
                        block + "ffn.value.weight",
                        read.matrix(block + "ffn.value.weight", width, ffn),
                    )
                ]
            ),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens: the flat list of ops of the paper."""
        x = ops.layer_norm(ops.embedding(weights.embedding), *weights.ln0)
        v_first = None
        for i, layer in enumerate(weights.layers):
            shifted = ops.norm_shift(x, layer.ln1, "shift", 2 * i, layer.mix)
            proj = ops.linear(shifted, layer.project)
            lora = ops.linear(proj, layer.expand)
            s, v_first = ops.rwkv7_gates(proj, lora, layer.gates, v_first)
            y = ops.wkv7(s, "wkv", i)
            y = ops.rwkv7_readout(y, s, lora, layer.readout, GROUP_NORM_EPS)
            x = ops.linear(y, layer.output, add_to=x)

            shifted = ops.norm_shift(x, layer.ln2, "shift", 2 * i + 1, layer.ffn_mix)
            k = ops.linear(shifted, layer.ffn_key)
            x = ops.linear(k, layer.ffn_value, add_to=x)
        x = ops.layer_norm(x, *weights.ln_out, last=not full_output)
        return ops.linear(x, weights.head)


def _norm(ops: OpSet, read: TensorReader, name: str, width: int) -> tuple[Any, Any]:
    weight, bias = (read.vector(f"{name}.{part}", width) for part in ("weight", "bias"))
    return ops.vector(weight), ops.vector(bias)


def _two(read: TensorReader, name: str, shape: tuple[int, ...] | None = None) -> tuple[int, int]:
    found = tuple(shape) if shape is not None else read.shape(name)
    if len(found) != 2 or min(found) < 1:
        raise ModelError(
            f"{read.checkpoint.path}: {name} has shape {list(found)}, expected two axes"
        )
    return found[0], found[1]


MODEL = Rwkv7()
