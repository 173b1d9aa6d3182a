"""What a model will take of a device's memory, to the byte, before anything of it is allocated.

The model is loaded and its largest steps are written down on a device that only counts, by the same
code that does it in earnest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from kernelforge_runtime.bundle.select import KernelSet, Selection
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.errors import (
    BundleError,
    KernelForgeError,
    ModelError,
    OutOfMemoryError,
)
from kernelforge_runtime.host_memory import available_bytes
from kernelforge_runtime.models.base import ModelConfig, ModelFile
from kernelforge_runtime.models.device_choice import MOST_PENALTIES, can_choose
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.resident import ResidentStates
from kernelforge_runtime.models.shapes import Shapes
from kernelforge_runtime.models.step_size import BUCKETS, check_chunk, step_size
from kernelforge_runtime.models.step_writing import write_step
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.device_weights import CountedWeights
from kernelforge_runtime.ops.given_rows import GivenRows
from kernelforge_runtime.ops.step_buffers import StepBuffers, StepInputs
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.plan.arena import planned_blocks
from kernelforge_runtime.vk import Device
from kernelforge_runtime.vk.counting import CountingDevice
from kernelforge_runtime.vk.memory import MEMORY_VARIABLE
from kernelforge_runtime.weight_formats import WEIGHT_FORMATS, WeightFormats
from kernelforge_runtime.weights import Checkpoint

PARTS = ("weights", "state", "step buffers", "work", "hooks")
SHARES_HOST = ("cpu", "integrated")
"""Types of devices whose memory is the host's own."""
_ONE_TOKEN = StepSize(1, 1, single=True)


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes of device memory, alignment included.

    Attributes:
        formats: of the weights.
        slots: sequences that a step can advance.
        chunk: tokens of a step at most.
        parts: bytes by what they are for; `work` is that of a prompt's step of `chunk` tokens and
            of a decoding step of all slots, `hooks` that of the same steps where they are looked at
            or given vectors, if that was asked for.
        heaps: the same bytes by memory heap.
        blocks: sizes of the weights' blocks.
        host: bytes of the host's memory that will be kept beside, by what they are for.
    """

    formats: WeightFormats
    slots: int
    chunk: int
    parts: Mapping[str, int]
    heaps: Mapping[int, int]
    blocks: tuple[int, ...]
    host: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of everything on the device."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:,}" for name, size in self.parts.items() if size)
        return (
            f"{self.total:,} bytes ({parts}; weights {self.formats}, slots {self.slots}, "
            f"chunk {self.chunk})"
        )


class Preflight:
    """Asks what a model takes, in any formats.

    Attributes:
        layouts_of: how matrices lie in memory; what is found out once need not be again.
        first: kernels of a decoding step, in the formats that were asked for last.
    """

    def __init__(
        self,
        file: ModelFile,
        checkpoint: Checkpoint,
        config: ModelConfig,
        device: Device,
        kernels: KernelSet,
        activations: DType = F32,
        slots: int = 1,
        chunk: int = max(BUCKETS),
        hooks: bool = False,
        host: Mapping[str, int] | None = None,
    ) -> None:
        self._hooks, self._host = hooks, dict(host or {})
        self._file, self._shapes, self._config = file, Shapes(checkpoint), config
        self._device, self._kernels, self._activations = device, kernels, activations
        self.slots, self.chunk = slots, check_chunk(chunk)
        probe = VulkanOps(CountingDevice(device), kernels, WeightFormats(F32), activations)
        self.layouts_of = probe.store.layouts_of
        self.first: list[Selection] = []

    def needs(self, formats: WeightFormats) -> MemoryNeeds:
        """What it takes with the weights in these formats.

        Raises:
            ModelError: the file or the number of slots makes no model.
        """
        device, apart = CountingDevice(self._device), CountingDevice(self._device)
        ops = VulkanOps(device, self._kernels, formats, self._activations)
        ops.store = CountedWeights(apart, formats, self.layouts_of)  # its blocks are counted below
        ops.store.routes = ops.store.routes.on(device)
        device.kind = "step buffers"  # what the host brings to every step
        weights = self._file.load(ops, self._shapes, self._config)
        taken, largest = ops.store.arena.taken, ops.store.arena.block_bytes
        blocks = planned_blocks(taken, largest)
        device.kind = "weights"
        for size in (*blocks, *(size for size in taken if size > largest)):
            device.count(size)
        device.kind = "state"
        ResidentStates(device, self._config, ops.state, self.slots)
        device.kind = "step buffers"
        buffers = StepBuffers(device, self.slots, MOST_PENALTIES)
        device.count_staging()
        device.kind = "work"
        inputs = buffers.halves[0]
        for step, output in self._steps():  # decoding comes last
            self.first = self._count_work(device, ops, weights, inputs, step, output)
        if self._hooks:
            device.kind = "hooks"
            self._count_hooks(device, ops, weights, inputs)
        parts, heaps = dict.fromkeys(PARTS, 0), Counter[int]()
        for (kind, heap), size in device.counted.items():
            parts[kind] += size
            heaps[heap] += size
        how = formats, self.slots, self.chunk, parts, heaps, tuple(blocks), self._host
        return MemoryNeeds(*how)

    def _count_hooks(
        self, device: CountingDevice, ops: VulkanOps, weights: Any, inputs: StepInputs
    ) -> None:
        """Counts steps that are looked at, with vectors where the version takes them."""
        how, vocab = (self._config.width, self._activations), self._config.vocab
        ops.given = GivenRows(CountingDevice(self._device), *how)
        try:
            one = replace(_ONE_TOKEN, given=True)
            write_step(self._file, ops, weights, vocab, inputs, one, "last")
            GivenRows(device, *how)
        except ModelError:
            ops.given = None
        for step, _ in self._steps():
            step = replace(step, given=ops.given is not None)
            self._count_work(device, ops, weights, inputs, step, "last")
        ops.given = None

    def _count_work(
        self,
        device: CountingDevice,
        ops: VulkanOps,
        weights: Any,
        inputs: StepInputs,
        step: StepSize,
        output: Output,
    ) -> list[Selection]:
        """Counts what a step works in; gives its kernels."""
        vocab = self._config.vocab
        try:
            written, _ = write_step(self._file, ops, weights, vocab, inputs, step, output)
        except BundleError:  # the step itself says so, if it is ever run
            return []
        for size in (written.work_bytes(), *written.scratch_bytes().values()):
            if size:
                device.count(size)
        return [call.selection for call in written.calls]

    def _steps(self) -> list[tuple[StepSize, Output]]:
        """The largest step of a prompt, and that of decoding in every slot.

        An engine lets the device choose, where it can, on all but processors.
        """
        processor = self._device.info.device_type == "cpu"
        chosen = not processor and can_choose(self._kernels, self._config.vocab)
        decode = step_size([1] * self.slots, self.slots)
        usual: Output = "greedy" if self.slots == 1 else "last"
        steps: list[tuple[StepSize, Output]] = [(decode, "choice" if chosen else usual)]
        if self.chunk > self.slots:
            tokens = step_size([self.chunk], 1).tokens
            steps.insert(0, (StepSize(tokens, decode.sequences), "last"))
        return steps

    def require(self, formats: WeightFormats) -> MemoryNeeds:
        """What it takes, which can be had.

        Raises:
            OutOfMemoryError: it does not fit; the message says what would.
            ModelError: as of `needs`.
        """
        needs = self.needs(formats)
        if self._misses(needs):
            raise OutOfMemoryError(self.told(needs))
        return needs

    @contextmanager
    def explaining(self, needs: MemoryNeeds) -> Iterator[None]:
        """Adds what is needed and what would fit to the message where memory does not suffice."""
        try:
            yield
        except OutOfMemoryError as error:
            raise OutOfMemoryError(f"{error} | {self.told(needs)}") from None
        except MemoryError:
            raise OutOfMemoryError(f"the host has no memory left | {self.told(needs)}") from None

    def told(self, needs: MemoryNeeds) -> str:
        """What is needed, what there is, and what would fit: one line."""
        info, heaps = self._device.info, self._device.physical.heaps
        memory = self._device.memory
        free = [
            f"{memory.free(heap):,} of {heaps[heap]:,} bytes in heap {heap}" for heap in needs.heaps
        ]
        if memory.left is not None:
            free.append(
                f"{memory.left:,} of {memory.limit:,} bytes of the limit (--memory, "
                f"{MEMORY_VARIABLE})"
            )
        beside = ", ".join(f"{name} {size:,} bytes" for name, size in needs.host.items())
        left = available_bytes() if needs.host else None
        if left is not None:
            free.append(f"{left:,} bytes on the host")
        return (
            f"{self._shapes.path}: needed on {info.name}: {needs}"
            f"{f' and on the host: {beside}' if beside else ''} | available: {', '.join(free)} | "
            f"{self._advice(needs)}"
        )

    def _misses(self, needs: MemoryNeeds) -> bool:
        memory = self._device.memory
        if memory.left is not None and needs.total > memory.left:
            return True
        if any(size > memory.free(heap) for heap, size in needs.heaps.items()):
            return True
        return sum(needs.host.values()) > self._room_on_host(needs)

    def _room_on_host(self, needs: MemoryNeeds) -> float:
        """Bytes for what is kept there beside the model; infinite where that is not known."""
        left = available_bytes() if needs.host else None
        if left is None:
            return math.inf
        shared = self._device.info.device_type in SHARES_HOST
        return max(0, left - needs.total) if shared else left

    def _advice(self, needs: MemoryNeeds) -> str:
        """The first that would fit: a format from the finest to the coarsest, or fewer slots."""
        own = self._config.dtype
        if needs.host and not self._misses(replace(needs, host={})):
            kept = " and ".join(needs.host)
            return f"would fit: {kept} of at most {self._room_on_host(needs):,} bytes"
        order = sorted(WEIGHT_FORMATS, key=lambda name: (name != "f32", name != own))
        coarser = {"f32", "bf16", "f16"}
        order = [n for n in order if n in coarser] + [n for n in WEIGHT_FORMATS if n not in coarser]
        finest = [WeightFormats(WEIGHT_FORMATS[name]) for name in order]
        least = None
        for formats in finest:
            tried = self._tried(formats)
            if tried is None or tried.total >= needs.total:
                continue
            if not self._misses(tried):
                return f"would fit: {formats} with {tried.total:,} bytes"
            least = tried
        said = "" if least is None else f" ({least.formats} needs {least.total:,} bytes)"
        fewer = {(1, needs.chunk): "1 slot", (1, 1): "1 slot and a chunk of 1"}
        for (slots, chunk), what in fewer.items():
            if (slots, chunk) == (needs.slots, needs.chunk):
                continue
            other = self._but(slots, chunk)
            for formats in (needs.formats, *finest):
                tried = other._tried(formats)
                if tried is not None and not self._misses(tried):
                    return (
                        f"no weight format fits{said}; would fit: {formats}, {what}, with "
                        f"{tried.total:,} bytes"
                    )
        return f"no weight format fits{said}"

    def _tried(self, formats: WeightFormats) -> MemoryNeeds | None:
        """What it would take; None where it cannot be in these formats."""
        try:
            return self.needs(formats)
        except KernelForgeError:
            return None

    def _but(self, slots: int, chunk: int) -> Preflight:
        """The same with another number of slots and tokens of a step."""
        other = copy(self)
        other.slots, other.chunk = slots, chunk
        return other
