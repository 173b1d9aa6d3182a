"""Runs VkFFT through OpenCL with the package `pyvkfft`: its bandwidth, and convolutions by it."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from lines import seconds, serve

REPEATS = 5
_queue: Any = None


def load(name: str, cpu: bool) -> str:
    """Chooses the OpenCL device that is the same silicon: by its name, or any processor."""
    global _queue
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
    import pyopencl
    from pyvkfft.opencl import VkFFTApp  # noqa: F401  its absence is to be found now

    found = []
    for platform in pyopencl.get_platforms():
        for device in platform.get_devices():
            is_cpu = bool(device.type & pyopencl.device_type.CPU)
            found.append(device.name.strip())
            if is_cpu == cpu and (cpu or _alike(name, device.name)):
                _queue = pyopencl.CommandQueue(pyopencl.Context([device]))
                return (
                    f"VkFFT (pyvkfft {version('pyvkfft')}) through OpenCL on "
                    f"{device.name.strip()}, {platform.name.strip()}"
                )
    there = ", ".join(found) or "no device"
    raise LookupError(f"no OpenCL device is {name}; there is {there}")


def _alike(one: str, other: str) -> bool:
    """Whether two APIs' names mean one device: one of them may add words."""
    ours, theirs = (set(name.lower().replace("(", " ").split()) for name in (one, other))
    return bool(ours and theirs) and (ours <= theirs or theirs <= ours)


def bandwidth(nbytes: int, length: int) -> float:
    """GB/s of complex transforms of that length, in place: read and written once per pass."""
    import numpy as np
    import pyopencl.array
    from pyvkfft.opencl import VkFFTApp

    shape = (max(1, nbytes // (8 * length)), length)
    values = np.random.default_rng(1).standard_normal((*shape, 2), np.float32)
    array = pyopencl.array.to_device(_queue, values.view(np.complex64)[..., 0])
    app = VkFFTApp(shape, np.complex64, queue=_queue, ndim=1, inplace=True, norm="ortho")

    def work() -> None:
        app.fft(array)
        _queue.finish()

    work()
    moved = 2 * array.nbytes * sum(app.get_nb_upload())
    return moved / min(seconds(work) for _ in range(REPEATS)) / 1e9


def convolve(x: str, g: str, y: str, size: int) -> float:
    """Causal convolution along the last axis, transforms of `size`; seconds of the fastest.

    Only the transforms and the product are timed: `g` is a model's, transformed when it is loaded.

    Args:
        x: a NumPy file, [R, T] float32.
        g: a NumPy file, [G, T] float32; row i of `x` takes row i % G.
        y: where the result goes, [R, T].
        size: of the transforms, at least 2T - 1.
    """
    import numpy as np
    import pyopencl.array
    from pyvkfft.opencl import VkFFTApp

    given, kernel = np.load(x), np.load(g)
    rows, tokens = given.shape
    real, complex_ = (rows, size), (rows, size // 2 + 1)

    def padded(values: Any) -> Any:
        full = np.zeros(real, np.float32)
        full[:, :tokens] = values
        return pyopencl.array.to_device(_queue, full)

    app = VkFFTApp(real, np.float32, queue=_queue, ndim=1, r2c=True, inplace=False)
    factor = pyopencl.array.empty(_queue, complex_, np.complex64)
    app.fft(padded(np.tile(kernel, (rows // len(kernel), 1))), factor)
    source = padded(given)
    middle, result = (pyopencl.array.empty_like(one) for one in (factor, source))

    def work() -> None:
        app.fft(source, middle)
        middle.__imul__(factor)
        app.ifft(middle, result)
        _queue.finish()

    work()
    taken = min(seconds(work) for _ in range(REPEATS))
    np.save(y, result.get()[:, :tokens])
    return taken


serve({"load": load, "bandwidth": bandwidth, "convolve": convolve})
