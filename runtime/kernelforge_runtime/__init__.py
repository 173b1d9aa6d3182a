"""KernelForge's runtime: runs RWKV models with tuned Vulkan kernels. No compiler, no tuner.

A name is imported when it is first asked for: who needs the device layer only, such as each process
that measures kernels, does not wait for models and engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernelforge_runtime.bundle.select import KernelSet
    from kernelforge_runtime.engine.engine import Engine
    from kernelforge_runtime.engine.generate import Piece, generate
    from kernelforge_runtime.engine.prefix_cache import PrefixCache
    from kernelforge_runtime.engine.request import Event, Request
    from kernelforge_runtime.errors import KernelForgeError
    from kernelforge_runtime.models import Hidden, Magnitudes, Model, Reference, load_reference
    from kernelforge_runtime.models.int8_dot import Int8Dot
    from kernelforge_runtime.models.loading import OnLoad
    from kernelforge_runtime.state import State
    from kernelforge_runtime.text import Sampling, load_tokenizer
    from kernelforge_runtime.vk import Device, list_devices, open_device
    from kernelforge_runtime.weights.adapters import Adapter

__all__ = [
    "Adapter",
    "Device",
    "Engine",
    "Event",
    "Hidden",
    "Int8Dot",
    "KernelForgeError",
    "KernelSet",
    "Magnitudes",
    "Model",
    "Piece",
    "PrefixCache",
    "Reference",
    "Request",
    "Sampling",
    "State",
    "generate",
    "list_devices",
    "load_bundle",
    "load_model",
    "load_reference",
    "load_tokenizer",
    "open_device",
]

_PLACES = {
    "Adapter": "weights.adapters",
    "Device": "vk",
    "Engine": "engine.engine",
    "Event": "engine.request",
    "Hidden": "models",
    "Int8Dot": "models.int8_dot",
    "KernelForgeError": "errors",
    "KernelSet": "bundle.select",
    "Magnitudes": "models",
    "Model": "models",
    "Piece": "engine.generate",
    "PrefixCache": "engine.prefix_cache",
    "Reference": "models",
    "Request": "engine.request",
    "Sampling": "text",
    "State": "state",
    "generate": "engine.generate",
    "list_devices": "vk",
    "load_reference": "models",
    "load_tokenizer": "text",
    "open_device": "vk",
}
"""Where each name that is not defined here comes from; the same as for the type checker above."""

if not TYPE_CHECKING:  # which would take any name at all to be there

    def __getattr__(name: str) -> object:
        """A public name, or a module of this package, at its first use."""
        if name in _PLACES:
            found = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            found = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_bundle(device: Device, path: str | os.PathLike[str] | None = None) -> KernelSet:
    """The best tuned kernels for a device, or those of the bundle folder `path`.

    Raises:
        BundleError: there is no usable bundle, or the one asked for is damaged.
    """
    from kernelforge_runtime.plan.trial import open_kernels

    return open_kernels(device, path).tell()


def load_model(
    path: str | os.PathLike[str],
    device: Device | None = None,
    bundle: KernelSet | None = None,
    weights: str | None = None,
    activations: str = "f32",
    slots: int = 1,
    progress: OnLoad | None = None,
    int8_dot: Int8Dot | None = None,
    quant: str | None = None,
    adapters: Iterable[Adapter | str | os.PathLike[str]] = (),
    chunk: int = 256,
    memory: int | str | None = None,
    hooks: bool = False,
    prefix_cache: int = 0,
) -> Model:
    """Loads a .pth or .safetensors checkpoint; its version is read from the tensors.

    Args:
        path: the checkpoint.
        device: an open device; where None the best one of the machine is opened, and closed
            again with the model.
        bundle: kernels from `load_bundle`; the best ones for the device where None.
        weights: "f32", "bf16", "f16", "q8" or "nf4"; where None f16, but f32 for models with ROSA,
            and a converted file's own.
        activations: "f32", or "f16" for the residual stream and the inputs of products.
        slots: sequences that one step can advance; see Model.forward_batch.
        progress: called after each matrix and table on the device with (weights so far, weights
            of the file, name of the tensor).
        int8_dot: lets products of q8 weights round their inputs to int8 where a step has few
            tokens, once a trial run has stayed within a bound; exact where None.
        quant: formats of parts of the model, such as "0-11:q8,12-23:nf4,head:f16,emb:f16"; what it
            does not name is in `weights`.
        adapters: LoRA, PiSSA and DiSHA files that are merged into the weights in this order: each
            an Adapter, a path, or text as FILE[:ALPHA[:REGEX]].
        chunk: tokens of a step that there must be memory for; a longer prompt goes in pieces.
        memory: limit of what the device's buffers take: bytes, or a text like 2GiB; see
            open_device.
        hooks: whether there must be memory for looking inside and for vectors, too.
        prefix_cache: bytes that an engine's prefix cache is to have on the host.

    Raises:
        KernelForgeError: the file, the device or the bundle cannot serve; one line says why.
    """
    from kernelforge_runtime.errors import ModelError
    from kernelforge_runtime.models import load_model as load
    from kernelforge_runtime.vk import Device, open_device
    from kernelforge_runtime.vk.memory import parse_bytes

    how = (
        weights,
        activations,
        slots,
        progress,
        int8_dot,
        quant,
        adapters,
        chunk,
        hooks,
        prefix_cache,
    )
    if device is not None:
        if not isinstance(device, Device):
            raise ModelError(f"device is {device!r}: pass what open_device({device!r}) gives")
        if device.handle is None:
            raise ModelError("the device was closed: open it again")
        before = device.memory.limit
        if memory is not None:
            device.memory.limit = parse_bytes(str(memory))
        try:
            return load(path, device, bundle, *how)
        except BaseException:
            device.memory.limit = before
            raise
    device = open_device(memory=memory)
    try:
        model = load(path, device, bundle, *how)
    except BaseException:
        device.close()
        raise
    model.owns_device = True
    return model
