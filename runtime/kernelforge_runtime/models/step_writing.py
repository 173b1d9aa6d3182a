"""Writes down a model's step: what its version's file asks, and the choice of a token behind it."""

from __future__ import annotations

from typing import Any

from kernelforge_runtime.models.base import ModelFile
from kernelforge_runtime.models.device_choice import ChoiceBuffers
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.builder import PlanBuilder, Temporary
from kernelforge_runtime.ops.vulkan_step import StepBuffers, StepSize


def write_step(
    file: ModelFile,
    ops: VulkanOps,
    weights: Any,
    vocab: int,
    buffers: StepBuffers,
    choices: ChoiceBuffers | None,
    size: StepSize,
    output: Output,
) -> tuple[PlanBuilder, Temporary]:
    """The calls of a step, and where its logits are.

    Args:
        file: of the model's version.
        ops: that its weights were handed to.
        weights: what `file.load` gave.
        vocab: V.
        buffers: what travels at each step.
        choices: with the output "choice".
        size: of the step.
        output: what is wanted of it.
    """
    ops.begin(size, buffers)
    logits: Temporary = file.step(ops, weights, output == "full")
    if output == "greedy":
        ops.argmax(logits, vocab, buffers.token)
    if output == "choice":
        assert choices is not None
        ops.sample(logits, vocab, choices.choice, choices.penalty, choices.token)
    builder = ops.finish()
    logits.last = len(builder.calls)  # read after the step: nothing may overwrite it
    return builder, logits
