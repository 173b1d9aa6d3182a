"""What `inspect` shows of a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from kernelforge.cli.output import Output
from kernelforge.cli.state_size import bytes_per_token, state_bytes
from kernelforge_runtime.models import ModelConfig, recognise
from kernelforge_runtime.models.formats import WEIGHT_FORMATS, own_formats
from kernelforge_runtime.models.survey import Survey
from kernelforge_runtime.models.tuned_state import read_tuned_state
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.checkpoint import check_finite
from kernelforge_runtime.weights.model_hash import model_hash


def show_model(path: Path, args: argparse.Namespace, output: Output) -> None:
    """Version, sizes, and what its weights take in each format; --check looks for NaN."""
    with open_checkpoint(path) as checkpoint:
        config = recognise(checkpoint).read_config(checkpoint)
        tuned = read_tuned_state(checkpoint, config) is not None
        if args.check:
            check_finite(checkpoint)
        survey = Survey(checkpoint)
        memory = {name: survey.nbytes(d) for name, d in WEIGHT_FORMATS.items()}
        formats = own_formats(checkpoint, config).text or config.dtype
        digest = model_hash(checkpoint)
        kind, tensors, metadata = checkpoint.kind, len(checkpoint), checkpoint.metadata
    lora = " ".join(f"{name}={rank}" for name, rank in config.lora.items())
    lines = [
        ("file", f"{path}, {kind}, {tensors} tensors, {path.stat().st_size / 1e6:.1f} MB"),
        ("hash", f"{digest}, which its states carry"),
        *([("origin", f"{digest.origin}, what it was converted from")] if digest.origin else []),
        ("architecture", digest.architecture),
        ("version", config.version),
        ("layers L", config.layers),
        ("width C", config.width),
        ("heads H", f"{config.heads} of {config.head_size}" if config.heads else "none"),
        ("vocabulary V", config.vocab),
        ("ffn F", config.ffn or "none"),
        ("LoRA ranks", lora or "none"),
        ("ROSA symbols", f"{config.rosa_bits} bit" if config.rosa_bits else "none"),
        ("matrices", formats),
        ("parameters", f"{config.parameters:,}"),
        *((f"as {name}", f"{size / 1e6:.1f} MB") for name, size in memory.items()),
        ("state", _state(config)),
        ("tuned state", "yes, sequences start from it" if tuned else "none"),
    ]
    for name, value in lines:
        output.text(f"{name:<13} {value}")
    if args.check:
        output.text("checked       every weight is finite")
    sizes = {name: value for name, value in vars(config).items() if name != "states"}
    output.document(
        {
            "path": path,
            "kind": kind,
            "tensors": tensors,
            "hash": digest,
            "architecture": digest.architecture,
            "converted_from": digest.origin,
            "file_bytes": path.stat().st_size,
            **sizes,
            "metadata": metadata,
            "weight_bytes": memory,
            "states": {
                name: {"entries": spec.entries, "shape": spec.shape, "dtype": spec.dtype.name}
                for name, spec in config.states.items()
            },
            "state_bytes": state_bytes(config),
            "state_bytes_per_token": bytes_per_token(config),
            "tuned_state": tuned,
            "finite": True if args.check else None,
        }
    )


def _state(config: ModelConfig) -> str:
    fixed, growing = state_bytes(config), bytes_per_token(config)
    parts = [f"{fixed / 1e3:,.1f} kB"] if fixed or not growing else []
    if growing:
        parts.append(f"{growing:,.0f} bytes for each token")
    return f"{' and '.join(parts)} per sequence"
