"""Loads a model onto a Vulkan device, and checks what was asked to be inexact."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.models.int8_dot import Int8Dot
from kernelforge_runtime.models.int8_gate import pass_gate, refuse_misfits
from kernelforge_runtime.models.loading import OnLoad
from kernelforge_runtime.models.model import Model
from kernelforge_runtime.models.step_size import BUCKETS
from kernelforge_runtime.plan import open_kernels
from kernelforge_runtime.vk import Device
from kernelforge_runtime.weights.adapters import Adapter, open_model


def load_model(
    path: str | os.PathLike[str],
    device: Device,
    bundle: KernelSet | None = None,
    weights: str | None = None,
    activations: str = "f32",
    slots: int = 1,
    progress: OnLoad | None = None,
    int8_dot: Int8Dot | None = None,
    quant: str | None = None,
    adapters: Iterable[Adapter | str | os.PathLike[str]] = (),
    chunk: int = max(BUCKETS),
    hooks: bool = False,
    prefix_cache: int = 0,
) -> Model:
    """Loads a model onto a device.

    Args:
        path: a .pth or .safetensors checkpoint.
        device: an open device.
        bundle: kernels; the best bundle for the device where None.
        weights: "f32", "bf16" (lossless for released checkpoints), "f16", "q8" or "nf4" (see
            `quantize`); where None f16, but f32 for models with ROSA, which read signs, and a
            converted file's own.
        activations: "f32", or "f16": half the memory traffic of a prompt, less precise.
        slots: sequences that one step can advance; see Model.forward_batch.
        progress: called after each matrix and table that was packed and uploaded.
        int8_dot: lets products of q8 weights round their inputs in steps of few tokens, if a trial
            run stays within its bound; see Int8Dot. Exact where None.
        quant: formats of parts of the model, such as "0-11:q8,12-23:nf4,head:f16,emb:f16"; what it
            does not name is in `weights`. See `weight_formats`.
        adapters: LoRA, PiSSA and DiSHA files, merged into the weights in this order; see
            weights.adapters.
        chunk: tokens of a step that there must be memory for, 1 to 256; a longer prompt goes in
            pieces.
        hooks: whether there must be memory for steps that are looked at (`hidden`) and for vectors
            in place of tokens, too; without, they run as far as there is.
        prefix_cache: bytes that an engine's prefix cache is to have on the host, which must be
            there; on a device that shares the host's memory beside all else.

    Raises:
        ModelError: the file cannot be read, is no model of a known version, does not fit f16, or
            does not pass what int8_dot asks; or an adapter is not one of this model.
        BundleError: there are no kernels for it.
        OutOfMemoryError: it does not fit the device or the host: said before anything is loaded.
    """
    how = weights, activations, slots, progress, quant, chunk, hooks, prefix_cache
    with open_model(path, adapters) as checkpoint:
        kernels = bundle if bundle is not None else open_kernels(device).tell()
        if int8_dot is None:
            return Model(checkpoint, device, kernels, *how)
        refuse_misfits(checkpoint, weights, quant)
        rounding = kernels.with_rounding(int8_dot.use)
        model = Model(checkpoint, device, rounding, *how)
    try:
        model.int8 = pass_gate(model, int8_dot)
    except BaseException:
        model.close()
        raise
    return model
