"""What tests of adapters share: names of tensors, factors for them, and reading what comes out."""

from kernelforge_runtime.weights.adapters import open_model

KEY = "blocks.0.att.key"
FFN = "blocks.1.ffn.key"
"""[256, 64]."""
VALUE = "blocks.1.ffn.value"
"""[64, 256]."""


def merged(path, name, *adapters):
    with open_model(path, adapters) as checkpoint:
        return checkpoint.tensor(f"{name}.weight")


def lora(normal, name, rows, k, rank=4, prefix=""):
    return {
        f"{prefix}{name}.lora_A": normal(rank, k),
        f"{prefix}{name}.lora_B": normal(rows, rank),
    }
