"""VkFFT in a process of its own: its bandwidth, and convolutions that stand in for a recurrence."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import PeerError
from kernelforge.measure.fft_wkv import transform_size
from kernelforge.peers.process import PeerProcess

LENGTHS = (256, 1024, 4096)
"""Short enough for one pass over the memory on every device."""
START_S = 120.0
CALL_S = 120.0


class RunningFft:
    """A process that transforms.

    Attributes:
        label: what transforms, and where.
        spent_s: seconds of the transforms and products of all convolutions so far.
    """

    def __init__(self, process: PeerProcess, label: str, folder: Path) -> None:
        self.label, self.spent_s = label, 0.0
        self._process, self._folder = process, folder

    def bandwidth(self, nbytes: int, lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
        """GB/s by length of the transforms, over this many bytes.

        Raises:
            PeerError: see PeerProcess.ask.
        """
        return {
            length: self._process.ask_number("bandwidth", CALL_S, nbytes=nbytes, length=length)
            for length in lengths
        }

    def convolve(self, x: NDArray[Any], g: NDArray[Any]) -> NDArray[Any]:
        """In float32; see `measure.fft_wkv.Convolve`. Leading axes of `g` are the last of `x`'s.

        Raises:
            PeerError: see PeerProcess.ask.
        """
        tokens = x.shape[-1]
        paths = {name: self._folder / f"{name}.npy" for name in "xgy"}
        for name, values in (("x", x), ("g", g)):
            np.save(paths[name], values.astype(np.float32).reshape(-1, tokens))
        names = {name: str(path) for name, path in paths.items()}
        size = transform_size(tokens)
        self.spent_s += self._process.ask_number("convolve", CALL_S, size=size, **names)
        try:
            found: NDArray[Any] = np.load(paths["y"])
            return found.astype(np.float64).reshape(x.shape)
        except (OSError, ValueError, EOFError) as error:
            raise PeerError(f"what it convolved cannot be read: {error}") from None


@contextlib.contextmanager
def open_fft(name: str, cpu: bool, python: str | None) -> Iterator[RunningFft]:
    """Starts VkFFT.

    Args:
        name: of the device, which OpenCL is asked for too.
        cpu: whether that is a software device: then any processor of OpenCL's is the same silicon.
        python: the interpreter that has pyvkfft; this one by default.

    Raises:
        PeerError: pyvkfft is not there, OpenCL has no such device, or it failed.
    """
    with tempfile.TemporaryDirectory(prefix="kernelforge-fft-") as folder:
        process = PeerProcess("vkfft", Path(folder), python)
        try:
            label = process.ask_label("load", START_S, name=name, cpu=cpu)
            yield RunningFft(process, label, Path(folder))
        finally:
            process.close()
