"""The recurrent state of one sequence: saved, loaded, cloned; parked on the host or on the device.

A device runs one sequence at a time through its recorded plans, so the state of the sequence that
ran last lives there (it is *resident*); it is read back only when somebody needs it on the host.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

from kernelforge_runtime.errors import ModelError

Arrays = dict[str, NDArray[Any]]
FORMAT = "kernelforge.state/1"


class Residence(Protocol):
    """Where a resident state's values are."""

    def read_state(self) -> Arrays:
        """Copies the values to the host."""


class State:
    """Recurrent state by name, e.g. `shift` [2 L, C] and `wkv` [L, H, N, N], float32.

    Attributes:
        version: the model version it belongs to.
    """

    def __init__(self, version: str, arrays: Arrays) -> None:
        self.version = version
        self._arrays = arrays
        self._residence: Residence | None = None

    @classmethod
    def zero(
        cls, version: str, shapes: Mapping[str, tuple[int, ...]], dtype: Any = np.float32
    ) -> State:
        """The state before the first token."""
        return cls(version, {name: np.zeros(shape, dtype) for name, shape in shapes.items()})

    @property
    def arrays(self) -> Arrays:
        """The values on the host; read back first where they are on the device."""
        if self._residence is not None:
            self._arrays = self._residence.read_state()
        return self._arrays

    def move_in(self, residence: Residence) -> None:
        """From now on the values are on the device."""
        self._residence = residence

    def move_out(self) -> None:
        """Brings the values back to the host."""
        self._arrays = self.arrays
        self._residence = None

    @property
    def nbytes(self) -> int:
        """Size in bytes; the same after one token and after a million."""
        return sum(array.nbytes for array in self._arrays.values())

    def check(self, version: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ModelError where this is not a state of such a model."""
        found = {name: array.shape for name, array in self._arrays.items()}
        if self.version != version or found != dict(shapes):
            raise ModelError(
                f"the state given is another model's: {self.version} {found}; "
                f"this model's are {version} {dict(shapes)}"
            )

    def clone(self) -> State:
        """An independent copy, on the host."""
        return State(self.version, {name: array.copy() for name, array in self.arrays.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file; a file that was there stays whole if this fails.

        Raises:
            ModelError: the folder cannot be written.
        """
        target = Path(path)
        tensors = {n: np.ascontiguousarray(a, np.float32) for n, a in self.arrays.items()}
        data = write_tensors(tensors, {"kernelforge": json.dumps([FORMAT, self.version])})
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
                temporary = Path(file.name)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise ModelError(
                f"state {target} was not written: {error.strerror}; use another path"
            ) from error

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], version: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> State:
        """Reads a state file for a model of this version and these shapes.

        Raises:
            ModelError: there is no such file, it is damaged, or it is another model's.
        """
        expected = sum(4 * int(np.prod(shape)) for shape in shapes.values())
        try:
            size = Path(path).stat().st_size
            if size > expected + (1 << 20):
                raise ModelError(f"state {path} has {size} bytes; this model's take {expected}")
            data = Path(path).read_bytes()
            tensors = read_tensors(data)
        except OSError as error:
            raise ModelError(f"state {path} cannot be read: {error.strerror}") from error
        except (SafetensorError, KeyError) as error:  # KeyError: an element type that NumPy lacks
            raise ModelError(f"state {path} is damaged or no state file: {error}") from error
        if (wrote := _version(data)) not in (None, version):
            raise ModelError(f"state {path} is of model version {wrote}; this one is {version}")
        found = {name: array.shape for name, array in tensors.items()}
        if found != dict(shapes):
            raise ModelError(
                f"state {path} is another model's: it holds {found}, this one needs {dict(shapes)}"
            )
        for name, array in tensors.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ModelError(f"state {path}: {name} is not finite float32")
        return cls(version, {name: np.array(array) for name, array in tensors.items()})


def _version(data: bytes) -> str | None:
    """The model version that a state file names; None where another program wrote it."""
    size = int.from_bytes(data[:8], "little")
    try:
        kind, version = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["kernelforge"])
    except (KeyError, TypeError, ValueError):
        return None
    return str(version) if kind == FORMAT else None
