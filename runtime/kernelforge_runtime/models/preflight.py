"""What a model will take of a device's memory, to the byte, before anything of it is allocated.

The model is loaded and its largest steps are written down on a device that only counts, by the same
code that does it in earnest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.errors import BundleError, KernelForgeError, OutOfMemoryError
from kernelforge_runtime.models.base import ModelConfig, ModelFile
from kernelforge_runtime.models.device_choice import ChoiceBuffers, can_choose
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.resident import ResidentStates
from kernelforge_runtime.models.shapes import Shapes
from kernelforge_runtime.models.step_size import BUCKETS, step_size
from kernelforge_runtime.models.step_writing import write_step
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.device_weights import CountedWeights
from kernelforge_runtime.ops.vulkan_step import StepBuffers, StepSize
from kernelforge_runtime.plan.arena import planned_blocks
from kernelforge_runtime.vk import Device
from kernelforge_runtime.vk.counting import CountingDevice
from kernelforge_runtime.vk.memory import MEMORY_VARIABLE
from kernelforge_runtime.weight_formats import WEIGHT_FORMATS, WeightFormats
from kernelforge_runtime.weights import Checkpoint

PARTS = ("weights", "state", "step buffers", "work")


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes of device memory, alignment included.

    Attributes:
        formats: of the weights.
        slots: sequences that a step can advance.
        chunk: tokens of a step at most.
        parts: bytes by what they are for; `work` is that of a prompt's step of `chunk` tokens and
            of a decoding step of all slots.
        heaps: the same bytes by memory heap.
        blocks: sizes of the weights' blocks.
    """

    formats: WeightFormats
    slots: int
    chunk: int
    parts: Mapping[str, int]
    heaps: Mapping[int, int]
    blocks: tuple[int, ...]

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:,}" for name, size in self.parts.items())
        return (
            f"{self.total:,} bytes ({parts}; weights {self.formats}, slots {self.slots}, "
            f"chunk {self.chunk})"
        )


class Preflight:
    """Asks what a model takes, in any formats.

    Attributes:
        layouts_of: how matrices lie in memory; what is found out once need not be again.
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
    ) -> None:
        self._file, self._shapes, self._config = file, Shapes(checkpoint), config
        self._device, self._kernels, self._activations = device, kernels, activations
        self.slots, self.chunk = slots, max(1, min(chunk, max(BUCKETS)))
        probe = VulkanOps(CountingDevice(device), kernels, WeightFormats(F32), activations)
        self.layouts_of = probe.store.layouts_of

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
        buffers = StepBuffers.make(device, max(BUCKETS))
        choices = self._choices(device)
        device.count_staging()
        device.kind = "work"
        vocab = self._config.vocab
        for step, output in self._steps(choices is not None):
            try:
                written, _ = write_step(
                    self._file, ops, weights, vocab, buffers, choices, step, output
                )
            except BundleError:  # the step itself says so, if it is ever run
                continue
            for size in (written.work_bytes(), *written.scratch_bytes().values()):
                if size:
                    device.count(size)
        parts, heaps = dict.fromkeys(PARTS, 0), Counter[int]()
        for (kind, heap), size in device.counted.items():
            parts[kind] += size
            heaps[heap] += size
        return MemoryNeeds(formats, self.slots, self.chunk, parts, heaps, tuple(blocks))

    def _choices(self, device: Device) -> ChoiceBuffers | None:
        """What an engine makes that lets the device choose, as it does on all but processors."""
        chosen = device.info.device_type != "cpu" and can_choose(self._kernels, self._config.vocab)
        return ChoiceBuffers(device, self.slots) if chosen else None

    def _steps(self, chosen: bool) -> list[tuple[StepSize, Output]]:
        """The largest step of a prompt, and that of decoding in every slot."""
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
        return (
            f"{self._shapes.path}: needed on {info.name}: {needs} | available: {', '.join(free)} | "
            f"{self._advice(needs)}"
        )

    def _misses(self, needs: MemoryNeeds) -> bool:
        memory = self._device.memory
        if memory.left is not None and needs.total > memory.left:
            return True
        return any(size > memory.free(heap) for heap, size in needs.heaps.items())

    def _advice(self, needs: MemoryNeeds) -> str:
        """The first that would fit: a format from the finest to the coarsest, or fewer slots."""
        own = self._config.dtype
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
