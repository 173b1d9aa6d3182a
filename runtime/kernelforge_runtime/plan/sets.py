"""The descriptor sets of a plan's dispatches: buffers in order, or windows of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernelforge_runtime.abi.windows import count_windows
from kernelforge_runtime.plan.dispatch import Dispatch
from kernelforge_runtime.vk import BufferSlice, Device
from kernelforge_runtime.vk.descriptors import DescriptorPool
from kernelforge_runtime.vk.pipeline import Pipeline


def descriptor_sets(
    device: Device,
    dispatches: Sequence[Dispatch],
    pipelines: Sequence[Pipeline],
    bound: Sequence[Sequence[BufferSlice]],
) -> tuple[DescriptorPool | None, list[list[Any]]]:
    """The sets of each dispatch, and the pool that they are from; None where no kernel has any.

    Args:
        device: of the plan.
        dispatches: of the plan.
        pipelines: of each dispatch.
        bound: what each dispatch binds, in order.

    Raises:
        DeviceError: something cannot be bound.
    """
    seen = [_windowed(d, pieces) for d, pieces in zip(dispatches, bound, strict=True)]
    whole = [p.set_layout is not None and not some for p, some in zip(pipelines, seen, strict=True)]
    count = sum(whole) + sum(map(len, seen))
    if not count:
        return None, [[] for _ in pipelines]
    pool = DescriptorPool(
        device,
        count,
        sum(len(pieces) for pieces, is_whole in zip(bound, whole, strict=True) if is_whole),
        sum(count_windows(piece.nbytes) for some in seen for piece in some),
    )
    sets: list[list[Any]] = []
    try:
        for i, pipeline in enumerate(pipelines):
            layout = pipeline.set_layout
            if whole[i]:
                sets.append([pool.bind(layout, bound[i])])
            else:
                sets.append([pool.bind_windows(layout, piece) for piece in seen[i]])
    except BaseException:
        pool.close()
        raise
    return pool, sets


def _windowed(dispatch: Dispatch, bound: Sequence[BufferSlice]) -> list[BufferSlice]:
    """What of a dispatch's buffers is seen through windows, in the order of its sets."""
    signature, found = dispatch.module.signature, []
    names = [binding.name for binding in signature.bindings]
    for index in map(names.index, signature.windowed):
        needed, piece = signature.bindings[index].nbytes(dispatch.dims), bound[index]
        found.append(piece.buffer.slice(piece.offset, needed))
    return found
