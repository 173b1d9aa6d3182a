"""The recurrent state of one sequence: saved, loaded, cloned; parked on the host or on the device.

The states of the sequences that ran last live in slots of the device (they are *resident*); one is
read back only when somebody needs it on the host, or another sequence its slot.

A state file says which model it is of, by the model's hash (weights.model_hash): the same version
and sizes are not enough. Another conversion of the same model takes it (model_identity), and says
so of files. Files from before that, without a hash, are taken with a warning.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.errors import DeviceLostError, ModelError
from kernelforge_runtime.model_identity import ModelHash, is_hash
from kernelforge_runtime.written_file import place_of, written_whole

Arrays = dict[str, NDArray[Any]]
FORMAT = "kernelforge.state/1"
log = logging.getLogger(__name__)
_SLACK = 1 << 20
_REMEDY = "; load the model (and adapters) that it was saved with, or a conversion of it"
_SPARE = 2048
_LONGEST = 1 << 24  # tokens that ROSA's kernels can tell apart
_MOST_TOKENS = 1 << 40


class Residence(Protocol):
    """Where a resident state's values are."""

    def read_state(self, slot: int = 0) -> Arrays:
        """Copies the values of a slot to the host."""


@dataclass(frozen=True)
class StateSpec:
    """One kind of recurrent state of one sequence.

    Attributes:
        entries: how many, mostly one per layer.
        shape: of an entry. Where the state grows, its last axis is a number of words.
        dtype: F32 or U32.
        initial: before the first token: one value, or one for each row of an entry's first axis.
        symbols_per_word: tokens that a word of the last axis holds; 0 where nothing grows.
    """

    entries: int
    shape: tuple[int, ...]
    dtype: DType = F32
    initial: tuple[float, ...] = (0.0,)
    symbols_per_word: int = 0

    def extent(self, capacity: int) -> tuple[int, ...]:
        """[entries, *shape] of a sequence of so many tokens."""
        if not self.symbols_per_word:
            return (self.entries, *self.shape)
        words = max(-(-capacity // self.symbols_per_word), 1)
        return (self.entries, *self.shape[:-1], words)

    def zero(self, capacity: int = 0, dtype: Any = None) -> NDArray[Any]:
        """The state before the first token."""
        array = np.zeros(self.extent(capacity), dtype or self.dtype.np)
        first = np.asarray(self.initial, array.dtype)
        array += first.reshape(-1, *([1] * (len(self.shape) - 1))) if first.any() else first[0]
        return array


Specs = Mapping[str, StateSpec]


class State:
    """Recurrent state by name, e.g. `shift` [2 L, C] and `wkv` [L, H, N, N].

    All of it is float32 but ROSA's history, packed words that grow with the sequence.

    Attributes:
        version: the model version it belongs to.
        position: tokens that the sequence has consumed.
        model: hash of the model it is of; None where that is not known.
    """

    def __init__(
        self, version: str, arrays: Arrays, position: int = 0, model: str | None = None
    ) -> None:
        self.version = version
        self.model = model
        self.position = position
        self._arrays = arrays
        self._residence: Residence | None = None
        self._slot = 0

    @classmethod
    def zero(cls, version: str, specs: Specs, dtype: Any = np.float32) -> State:
        """The state before the first token; floats in `dtype`."""
        return cls(
            version,
            {n: s.zero(dtype=dtype if s.dtype == F32 else None) for n, s in specs.items()},
        )

    @property
    def arrays(self) -> Arrays:
        """The values on the host; a copy to be read where they are on a device.

        To change those, `clone` the state, or have its model `release` it.
        """
        if self._residence is not None:
            self._arrays = self._residence.read_state(self._slot)
            for array in self._arrays.values():
                array.flags.writeable = False  # else a change would be lost without a word
        return self._arrays

    def move_in(self, residence: Residence, slot: int = 0) -> None:
        """From now on the values are in a slot of the device."""
        self._residence, self._slot = residence, slot

    def lives_in(self, residence: Residence, slot: int) -> bool:
        """Whether the values are in this slot, and not on the host or another model's by now."""
        return self._residence is residence and self._slot == slot

    def move_out(self) -> None:
        """Brings the values back to the host, where they are not there."""
        if self._residence is not None:
            self._arrays = self._residence.read_state(self._slot)
        self._residence = None

    def lose(self, why: str) -> None:
        """The values were on a device that is gone: whoever asks for them is told."""
        self._residence = _Lost(why)

    @property
    def nbytes(self) -> int:
        """Size in bytes; but for ROSA's history the same after one token and after a million."""
        return sum(array.nbytes for array in self._arrays.values())

    def check(self, version: str, specs: Specs, model: str | None = None) -> None:
        """Raises ModelError where this is not a state of such a model, of this hash if known."""
        found = {name: array.shape for name, array in self._arrays.items()}
        # On a device a history has grown there; what is on the host is of before.
        position = self.position if self._residence is None else 0
        if self.version != version or not _fits(found, specs, position):
            raise ModelError(
                f"the state given is another model's: {self.version} {found}; "
                f"this model's are {version} {_expected(specs, self.position)}"
            )
        if model is not None and self.model is not None:
            _require_kin(self.model, model, "the state given")

    def reserve(self, specs: Specs, tokens: int) -> None:
        """Makes what grows large enough for so many more tokens; at least doubles it."""
        for name, spec in specs.items():
            array = self.arrays[name]
            wanted = spec.extent(self.position + tokens)[-1]
            if spec.symbols_per_word and wanted > array.shape[-1]:
                more = max(wanted, 2 * array.shape[-1]) - array.shape[-1]
                self._arrays[name] = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, more)])

    def clone(self) -> State:
        """An independent copy, on the host."""
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        return State(self.version, arrays, self.position, self.model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file; a file that was there stays whole if this fails.

        Raises:
            ModelError: the folder cannot be written, or something else than a file is there.
        """
        tensors = {
            n: np.ascontiguousarray(a, np.uint32 if a.dtype == np.uint32 else np.float32)
            for n, a in self.arrays.items()
        }
        known = [] if self.model is None else [ModelHash.of(self.model).to_json()]
        note = json.dumps([FORMAT, self.version, self.position, self.model, *known])
        data = write_tensors(tensors, {"kernelforge": note})
        try:
            with written_whole(place_of(path), lasting=True) as file:
                file.write(data)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = error.strerror if isinstance(error, OSError) else error
            raise ModelError(f"state {path} was not written: {why}; use another path") from error

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        version: str,
        specs: Specs,
        model: str | None = None,
    ) -> State:
        """Reads a state file for a model of this version and these kinds of state.

        Args:
            path: of the file.
            version: of the model.
            specs: its kinds of state.
            model: its hash; where None, or where the file has none, that is not compared.

        Raises:
            ModelError: there is no such file, it is damaged, or it is another model's.
        """
        try:
            size = Path(path).stat().st_size
            wrote, position, of_model = _note(path)
            # What grows has room for at most twice its tokens, and for some at first.
            room = 2 * min(position, _LONGEST) + _SPARE
            most = sum(4 * math.prod(s.extent(room)) for s in specs.values())
            if size > most + _SLACK:
                raise ModelError(f"state {path} has {size} bytes; this model's take {most}")
            data = Path(path).read_bytes()
            tensors = read_tensors(data)
        except OSError as error:
            raise ModelError(f"state {path} cannot be read: {error.strerror}") from error
        except (SafetensorError, KeyError) as error:  # KeyError: an element type that NumPy lacks
            raise ModelError(f"state {path} is damaged or no state file: {error}") from error
        if wrote not in (None, version):
            raise ModelError(f"state {path} is of model version {wrote}; this one is {version}")
        found = {name: array.shape for name, array in tensors.items()}
        if not _fits(found, specs, position):
            raise ModelError(
                f"state {path} is another model's: it holds {found}, "
                f"this one needs {_expected(specs, position)}"
            )
        _compare(path, of_model, model)
        for name, array in tensors.items():
            if array.dtype != specs[name].dtype.np or not np.isfinite(array).all():
                raise ModelError(f"state {path}: {name} is not finite {specs[name].dtype.np}")
        arrays = {name: np.array(array) for name, array in tensors.items()}
        return cls(version, arrays, position, model or of_model)


@dataclass(frozen=True)
class _Lost:
    """Where values were that are no more."""

    why: str

    def read_state(self, slot: int = 0) -> Arrays:
        """Says so."""
        raise DeviceLostError(
            f"the state's values are lost: {self.why}; run its tokens again, or load a saved state"
        )


def _expected(specs: Specs, position: int) -> dict[str, tuple[int, ...]]:
    return {name: spec.extent(position) for name, spec in specs.items()}


def _fits(found: Mapping[str, tuple[int, ...]], specs: Specs, position: int) -> bool:
    """Whether shapes are those of a model; what grows may have room to spare."""
    expected = _expected(specs, position)
    return found.keys() == expected.keys() and all(
        shape == expected[name]
        if not specs[name].symbols_per_word
        else len(shape) == len(expected[name])
        and shape[:-1] == expected[name][:-1]
        and shape[-1] >= expected[name][-1]
        for name, shape in found.items()
    )


def _compare(path: str | os.PathLike[str], found: str | None, model: str | None) -> None:
    """Refuses a state of another model."""
    if model is None:
        return
    if found is None:
        log.warning("state %s does not say which model it is of: taken as this one's", path)
    elif _require_kin(found, model, f"state {path}", _REMEDY) == "conversion":
        log.warning(
            "state %s was saved with another conversion of this model (of hash %s, this one has "
            "%s): taken; the text may differ as far as the weights are rounded otherwise",
            *(path, found, model),
        )


def _require_kin(found: str, model: str, what: str, remedy: str = "") -> str:
    """How a state's model is related to the one that is to go on from it; a stranger is refused."""
    kin = ModelHash.of(found).kinship(model)
    if kin in ("same", "conversion"):
        return kin
    same = " and the same architecture" if kin == "sibling" else ""
    raise ModelError(
        f"{what} is another model's: of hash {found}, this one has {model}{same}{remedy}"
    )


def _note(path: str | os.PathLike[str]) -> tuple[str | None, int, str | None]:
    """(version, tokens consumed, model's hash) that a state file names.

    (None, 0, None) of another program's.

    Raises:
        ModelError: the note is of another format, or damaged.
    """
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, _SLACK))
    try:
        note = json.loads(header)["__metadata__"]["kernelforge"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None, 0, None
    try:
        kind, version, *rest = json.loads(note)
    except (TypeError, ValueError, RecursionError):
        raise ModelError(
            f"state {path} is damaged: its note {str(note)[:40]!r} says nothing"
        ) from None
    if kind != FORMAT:
        raise ModelError(
            f"state {path} is of the format {str(kind)[:40]!r}, this program reads {FORMAT}: read "
            "it with the version that wrote it"
        )
    tokens = rest[0] if rest else 0
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    if not whole or not 0 <= tokens <= _MOST_TOKENS:
        raise ModelError(
            f"state {path} is damaged: it says that it has read {str(tokens)[:40]} tokens"
        )
    model = rest[1] if len(rest) > 1 else None
    if model is not None and not is_hash(model):
        raise ModelError(
            f"state {path} is damaged: it names {str(model)[:40]!r} as its model's hash"
        )
    if model is None or len(rest) < 3:
        return str(version), tokens, model
    known = rest[2] if isinstance(rest[2], dict) else {"architecture": rest[2]}
    for name in ("architecture", "origin"):
        if known.get(name) is not None and not is_hash(known[name]):
            raise ModelError(
                f"state {path} is damaged: it names {str(known[name])[:40]!r} as its model's {name}"
            )
    return str(version), tokens, ModelHash(model, known.get("architecture"), known.get("origin"))
