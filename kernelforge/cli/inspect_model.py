"""What `inspect` shows of a model file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from kernelforge.cli.output import Output
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.models import recognise
from kernelforge_runtime.models.formats import WEIGHT_FORMATS
from kernelforge_runtime.weights import Checkpoint, open_checkpoint
from kernelforge_runtime.weights.checkpoint import check_finite


def show_model(path: Path, args: argparse.Namespace, output: Output) -> None:
    """Version, sizes, and what its weights take in each format; --check looks for NaN."""
    with open_checkpoint(path) as checkpoint:
        config = recognise(checkpoint).read_config(checkpoint)
        if args.check:
            check_finite(checkpoint)
        memory = {name: weight_bytes(checkpoint, d) for name, d in WEIGHT_FORMATS.items()}
        kind, tensors = checkpoint.kind, len(checkpoint)
    state = sum(4 * math.prod(shape) for shape in config.state_shapes.values())
    lora = " ".join(f"{name}={rank}" for name, rank in config.lora.items())
    lines = [
        ("file", f"{path}, {kind}, {tensors} tensors, {path.stat().st_size / 1e6:.1f} MB"),
        ("version", config.version),
        ("layers L", config.layers),
        ("width C", config.width),
        ("heads H", f"{config.heads} of {config.head_size}"),
        ("vocabulary V", config.vocab),
        ("ffn F", config.ffn),
        ("LoRA ranks", lora or "none"),
        ("matrices", config.dtype),
        ("parameters", f"{config.parameters:,}"),
        *((f"as {name}", f"{size / 1e6:.1f} MB") for name, size in memory.items()),
        ("state", f"{state / 1e6:.2f} MB per sequence"),
    ]
    for name, value in lines:
        output.text(f"{name:<13} {value}")
    if args.check:
        output.text("checked       every weight is finite")
    output.document(
        {
            "path": path,
            "kind": kind,
            "tensors": tensors,
            "file_bytes": path.stat().st_size,
            **vars(config),
            "weight_bytes": memory,
            "state_bytes": state,
            "finite": True if args.check else None,
        }
    )


def weight_bytes(checkpoint: Checkpoint, dtype: DType) -> int:
    """Bytes of all weights with matrices in `dtype` and vectors in f32, without padding."""
    total = 0
    for name in checkpoint:
        shape = [size for size in checkpoint.shape(name) if size != 1]
        held = dtype if len(shape) > 1 else F32
        total += held.nbytes(math.prod(shape))
    return total
