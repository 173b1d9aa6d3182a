"""Writes a model as the GGUF file that llama.cpp reads.

What differs from the checkpoint: low-rank matrices lie transposed, the token-shift mixes of a block
are one tensor, and every name is another. Matrices are f16; vectors and low-rank matrices stay f32,
as llama.cpp's own converter leaves them. There is no vocabulary: tokens are given as numbers.
Source: llama.cpp's loader, which names tensors and dimensions it looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import ConvertError
from kernelforge.peers.gguf_file import Fact, GgufTensor, write_gguf
from kernelforge_runtime.weights import Checkpoint

GROUP_NORM_EPS: Final = 64e-5
"""llama.cpp knows no other."""
NORM_EPS: Final = 1e-5
CONTEXT: Final = 1 << 20
_MOSTLY_F16: Final = 1

Shape = tuple[int, ...]
Values = NDArray[np.float32]

_FRAME: Final = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
_BLOCK: Final = {
    **{f"ln1.{part}": f"attn_norm.{part}" for part in ("weight", "bias")},
    **{f"ln2.{part}": f"attn_norm_2.{part}" for part in ("weight", "bias")},
    **{f"att.ln_x.{part}": f"time_mix_ln.{part}" for part in ("weight", "bias")},
    **{
        f"att.{name}.weight": f"time_mix_{name}.weight"
        for name in ("receptance", "key", "value", "output")
    },
    **{f"ffn.{name}.weight": f"channel_mix_{name}.weight" for name in ("key", "value")},
}


@dataclass(frozen=True)
class Layout:
    """How llama.cpp wants the blocks of one version.

    Attributes:
        architecture: its name for the version.
        names: by the checkpoint's names behind `blocks.0.`, its own behind `blk.0.`.
        turned: names in the checkpoint of tensors whose last two axes change places.
        mixes: tensors that become one, in its order.
        ranks: its name of a size -> the tensor whose last axis has it, and how many lie side by
            side there.
        fill: in the first block, tensors that it wants and never uses -> where the shape is from.
    """

    architecture: str
    names: Mapping[str, str]
    turned: frozenset[str]
    mixes: tuple[str, ...]
    ranks: Mapping[str, tuple[str, int]]
    fill: Mapping[str, str] = field(default_factory=dict)


_GOOSE_SMALL: Final = (*(f"{letter}{i}" for letter in "wav" for i in "012"), "g1", "g2")
GOOSE: Final = Layout(
    architecture="rwkv7",
    names={
        **_BLOCK,
        **{f"att.{n}": f"time_mix_{n}.weight" for n in (*_GOOSE_SMALL, "k_k", "k_a", "r_k")},
        "ffn.x_k": "channel_mix_lerp_k.weight",
    },
    turned=frozenset(f"att.{name}" for name in _GOOSE_SMALL if name[1] != "0"),
    mixes=tuple(f"att.x_{letter}" for letter in "rwkvag"),
    ranks={
        "attention.decay_lora_rank": ("att.w1", 1),
        "attention.iclr_lora_rank": ("att.a1", 1),
        "attention.value_residual_mix_lora_rank": ("att.v1", 1),
        "attention.gate_lora_rank": ("att.g1", 1),
    },
    fill={f"att.v{i}": f"att.a{i}" for i in "012"},
)
FINCH: Final = Layout(
    architecture="rwkv6",
    names={
        **_BLOCK,
        "att.gate.weight": "time_mix_gate.weight",
        "att.time_maa_x": "time_mix_lerp_x.weight",
        "att.time_maa_w1": "time_mix_w1.weight",
        "att.time_maa_w2": "time_mix_w2.weight",
        "att.time_decay": "time_mix_decay.weight",
        "att.time_decay_w1": "time_mix_decay_w1.weight",
        "att.time_decay_w2": "time_mix_decay_w2.weight",
        "att.time_faaaa": "time_mix_first.weight",
        "ffn.time_maa_k": "channel_mix_lerp_k.weight",
        "ffn.time_maa_r": "channel_mix_lerp_r.weight",
        "ffn.receptance.weight": "channel_mix_receptance.weight",
    },
    turned=frozenset(
        {"att.time_maa_w1", "att.time_maa_w2", "att.time_decay_w1", "att.time_decay_w2"}
    ),
    mixes=tuple(f"att.time_maa_{letter}" for letter in "wkvrg"),
    ranks={
        "time_mix_extra_dim": ("att.time_maa_w1", 5),
        "time_decay_extra_dim": ("att.time_decay_w1", 1),
    },
)
_HEADS: Final = {GOOSE.architecture: "att.r_k", FINCH.architecture: "att.time_faaaa"}


def write_llama_cpp(checkpoint: Checkpoint, path: Path) -> None:
    """Writes every tensor; `path` appears only when it is complete.

    Raises:
        ConvertError: llama.cpp cannot run this model, or the file cannot be written.
    """
    layout = GOOSE if "blocks.0.att.r_k" in checkpoint else FINCH
    tensors = list(_tensors(checkpoint, layout))
    write_gguf(path, _facts(checkpoint, layout), tensors)


def _facts(checkpoint: Checkpoint, layout: Layout) -> dict[str, Fact]:
    eps = float(checkpoint.metadata.get("group_norm_eps", GROUP_NORM_EPS))
    if eps != GROUP_NORM_EPS:
        raise ConvertError(f"its group norms have eps {GROUP_NORM_EPS:g}, this model's {eps:g}")
    vocab, width = checkpoint.shape("emb.weight")
    heads = _squeezed(checkpoint.shape("blocks.0." + _HEADS[layout.architecture]), 2)
    sizes: dict[str, Fact] = {
        "context_length": CONTEXT,
        "embedding_length": width,
        "block_count": _blocks(checkpoint),
        "feed_forward_length": checkpoint.shape("blocks.0.ffn.key.weight")[0],
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": NORM_EPS,
        "wkv.head_size": heads[1],
        "vocab_size": vocab,
    }
    for name, (source, beside) in layout.ranks.items():
        sizes[name] = _rank(checkpoint, layout, source) // beside
    return {
        "general.architecture": layout.architecture,
        "general.name": checkpoint.path.stem,
        "general.file_type": _MOSTLY_F16,
        **{f"{layout.architecture}.{name}": value for name, value in sizes.items()},
        "tokenizer.ggml.model": "none",
    }


def _rank(checkpoint: Checkpoint, layout: Layout, name: str) -> int:
    """A rank that every block shares: that of the last one, as the first may lack the tensor.

    A model of one block has only what fills its place.
    """
    full = f"blocks.{_blocks(checkpoint) - 1}.{name}"
    if full not in checkpoint:
        full = f"blocks.0.{layout.fill[name]}"
    return checkpoint.shape(full)[-1]


def _blocks(checkpoint: Checkpoint) -> int:
    return sum(name.endswith(".ln1.weight") for name in checkpoint.names)


def _tensors(checkpoint: Checkpoint, layout: Layout) -> Iterator[GgufTensor]:
    for name, new in _FRAME.items():
        yield _copied(checkpoint, name, new, turned=False)
    for block in range(_blocks(checkpoint)):
        old, new = f"blocks.{block}.", f"blk.{block}."
        yield _stacked(
            checkpoint, [old + n for n in layout.mixes], new + "time_mix_lerp_fused.weight"
        )
        for name, theirs in layout.names.items():
            if block == 0 and name in layout.fill:
                shape = _laid_out(checkpoint, old + layout.fill[name], name in layout.turned)[0]
                yield GgufTensor(new + theirs, "f32", shape, _zeros(shape))
            else:
                yield _copied(checkpoint, old + name, new + theirs, name in layout.turned)


def _zeros(shape: Shape) -> Callable[[], Values]:
    return lambda: np.zeros(shape, np.float32)


def _copied(checkpoint: Checkpoint, name: str, new: str, turned: bool) -> GgufTensor:
    shape, read = _laid_out(checkpoint, name, turned)
    matrix = len(shape) == 2 and name.endswith(".weight")
    return GgufTensor(new, "f16" if matrix else "f32", shape, read)


def _laid_out(
    checkpoint: Checkpoint, name: str, turned: bool
) -> tuple[Shape, Callable[[], Values]]:
    """Shape and values as llama.cpp wants them."""
    stored = checkpoint.shape(name)
    # [1, 1, C] is a vector; of a head there may be one only, and of a mix' matrices too.
    per_head = name.endswith(("r_k", "time_faaaa"))
    kept = _squeezed(stored, 2 if per_head else 3 if name.endswith("time_maa_w2") else 1)
    if name.endswith("r_k"):
        kept = (kept[0] * kept[1],)
    shape = (*kept[:-2], kept[-1], kept[-2]) if turned else kept

    def read() -> Values:
        values = checkpoint[name].reshape(kept)
        return values.swapaxes(-1, -2) if turned else values

    return shape, read


def _squeezed(shape: Shape, least: int) -> Shape:
    """Without axes of one, the first ones first, while more than so many axes are left."""
    found = list(shape)
    while len(found) > least and 1 in found:
        found.remove(1)
    return tuple(found)


def _stacked(checkpoint: Checkpoint, names: list[str], new: str) -> GgufTensor:
    width = checkpoint.shape("emb.weight")[1]

    def read() -> Values:
        rows = [checkpoint[name].reshape(1, 1, width) for name in names]
        return np.stack(rows)

    return GgufTensor(new, "f32", (len(names), 1, 1, width), read)
