"""Which sequences' states are on the device, and in which slot.

States move in when a step needs them and out when another one needs the slot, or somebody asks for
their values.
"""

from __future__ import annotations

import reprlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.step_size import BUCKETS
from kernelforge_runtime.ops.device_state import DeviceState
from kernelforge_runtime.state import State, StateSpec
from kernelforge_runtime.vk import Device

FIRST_TOKENS = 1024
"""What a history that grows has room for at first; it doubles when it is full."""


class ResidentStates:
    """The slots of a model.

    Attributes:
        slots: sequences that fit at once.
        watched: whether a step stands still while an observer looks at it.
        settle: waits for what was submitted, before values are read.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        kept: dict[str, DeviceState],
        slots: int,
        model: str | None = None,
    ) -> None:
        whole = isinstance(slots, (int, np.integer)) and not isinstance(slots, bool)
        if not whole or not 1 <= slots <= max(BUCKETS):
            said = reprlib.repr(slots)
            raise ModelError(
                f"{said} slots: a model has a whole number of them, 1 to {max(BUCKETS)}"
            )
        self.device, self.config, self.slots = device, config, slots
        self._model = model
        self.watched = False
        self._kept = kept
        self.settle: Callable[[], None] = _at_rest
        self._capacity = FIRST_TOKENS
        self._held: list[weakref.ref[State] | None] = [None] * slots
        for name, spec in config.states.items():
            kept[name] = self._make(name, spec)

    def _make(self, name: str, spec: StateSpec) -> DeviceState:
        shape = spec.extent(self._capacity)[1:]
        return DeviceState(self.device, name, spec.entries, self.slots, shape, spec.dtype)

    def state_in(self, slot: int) -> State | None:
        """Whose values are in a slot; not whose were, that another model or the host has now."""
        held = self._held[slot]
        state = held() if held is not None else None
        return state if state is not None and state.lives_in(self, slot) else None

    def read_state(self, slot: int = 0) -> dict[str, NDArray[Any]]:
        """A slot's values."""
        self.settle()
        return {name: kept.read(slot) for name, kept in self._kept.items()}

    def require_open(self) -> None:
        """Raises ModelError once the buffers are gone: to write to them would be a crash."""
        if not self._kept or self.device.handle is None:
            what = "model" if self.device.handle is not None else "model's device"
            raise ModelError(f"this {what} was closed: load the model again")

    def place(self, states: Sequence[State], counts: Sequence[int]) -> tuple[list[int], bool]:
        """Makes states resident, with room for so many tokens more each.

        Returns:
            The slot of each, and whether device memory was replaced.

        Raises:
            ModelError: the model or its device is closed, an observer asks in the middle of a step,
                or a state is another model's.
        """
        self.require_open()
        if self.watched:
            raise ModelError("an observer cannot run the model that it looks at: run it afterwards")
        if len(states) == 1 and self.state_in(0) is states[0] and not self._grows:
            return [0], False
        moved = self._reserve(max(s.position + n for s, n in zip(states, counts, strict=True)))
        slots = {id(self.state_in(slot)): slot for slot in range(self.slots)}
        wanted = {id(state) for state in states}
        free = [s for s in range(self.slots) if id(self.state_in(s)) not in wanted]
        free.sort(key=lambda slot: self.state_in(slot) is not None)  # empty ones first
        found = []
        for state in states:
            slot = slots.get(id(state))
            if slot is None:
                slot = free.pop(0)
                self._move_in(state, slot)
            found.append(slot)
        return found, moved

    def slots_of(self, states: Sequence[State], counts: Sequence[int]) -> list[int] | None:
        """Where states are; None where one is elsewhere, or has no room for so many tokens more."""
        if self._grows and any(
            s.position + n > self._capacity for s, n in zip(states, counts, strict=True)
        ):
            return None
        slots = {id(self.state_in(slot)): slot for slot in range(self.slots)}
        found = [slots.get(id(state)) for state in states]
        known = [slot for slot in found if slot is not None]
        return known if len(known) == len(found) else None

    @property
    def _grows(self) -> bool:
        return any(spec.symbols_per_word for spec in self.config.states.values())

    def _move_in(self, state: State, slot: int) -> None:
        state.check(self.config.version, self.config.states, self._model)
        state.move_out()  # of another model that may hold it
        arrays = state.arrays
        if (current := self.state_in(slot)) is not None:
            current.move_out()
        self._held[slot] = None
        for name, array in arrays.items():
            words = self._kept[name].shape[-1]
            self._kept[name].write(slot, array[..., :words])
        state.move_in(self, slot)
        self._held[slot] = weakref.ref(state)

    def _reserve(self, tokens: int) -> bool:
        """Makes room for sequences of so many tokens; whether memory was replaced for it."""
        if tokens <= self._capacity or not self._grows:
            return False
        while self._capacity < tokens:
            self._capacity *= 2
        for name, spec in self.config.states.items():
            if not spec.symbols_per_word:
                continue
            old, new = self._kept[name], self._make(name, spec)
            for slot in range(self.slots):
                if self.state_in(slot) is not None:
                    new.write(slot, old.read(slot))
            self._kept[name] = new
            old.close()
        return True

    def release(self, state: State) -> None:
        """Brings one state back to the host; its slot is free."""
        for slot in range(self.slots):
            if self.state_in(slot) is state:
                self._bring_back(state)
                self._held[slot] = None

    def move_out(self) -> None:
        """Brings every state back to the host."""
        for slot in range(self.slots):
            if (state := self.state_in(slot)) is not None:
                self._bring_back(state)
        self._held = [None] * self.slots

    def _bring_back(self, state: State) -> None:
        """To the host; what was on a device that was lost or closed is lost too."""
        if self.device.handle is None:
            state.lose(f"{self.device.info.name} was closed before the model")
        elif self.device.lost:
            state.lose(f"{self.device.info.name} was lost while {self.device.lost}")
        else:
            state.move_out()


def _at_rest() -> None:
    """Nothing was submitted that is not waited for."""
