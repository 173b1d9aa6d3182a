"""Writes down a model's step: what its version's file asks, and the choice of a token behind it."""

from __future__ import annotations

from typing import Any

from kernelforge_runtime.models.base import ModelFile
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.builder import PlanBuilder, Temporary
from kernelforge_runtime.ops.step_buffers import StepInputs
from kernelforge_runtime.ops.vulkan_step import StepSize


def write_step(
    file: ModelFile,
    ops: VulkanOps,
    weights: Any,
    vocab: int,
    inputs: StepInputs,
    size: StepSize,
    output: Output,
) -> tuple[PlanBuilder, Temporary]:
    """The calls of a step, and where its logits are.

    Args:
        file: of the model's version.
        ops: that its weights were handed to.
        weights: what `file.load` gave.
        vocab: V.
        inputs: what it reads of what travels at each step.
        size: of the step.
        output: what is wanted of it.
    """
    ops.begin(size, inputs)
    logits: Temporary = file.step(ops, weights, output == "full")
    if output == "greedy":
        ops.argmax(logits, vocab, inputs.chosen)
    builder = ops.finish()
    if output == "choice":  # the last of all: it may be submitted later than the rest
        ops.sample(logits, vocab, inputs.choice, inputs.penalty, inputs.chosen)
    logits.last = len(builder.calls)  # read after the step: nothing may overwrite it
    return builder, logits
