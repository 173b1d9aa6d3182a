"""The toolkit's errors: one per verb that can fail. The root is the runtime's."""

from __future__ import annotations

from kernelforge_runtime.errors import KernelForgeError


class SpaceError(KernelForgeError):
    """A search space or a variant's parameters are wrong."""


class RenderError(KernelForgeError):
    """A template could not be rendered."""


class CompileError(KernelForgeError):
    """GLSL did not compile, or there is no compiler."""


class MeasureError(KernelForgeError):
    """A kernel could not be measured or verified."""


class TuneError(KernelForgeError):
    """A study could not be run or resumed."""


class PackError(KernelForgeError):
    """A bundle could not be written."""


class ReportError(KernelForgeError):
    """A report could not be made."""


class ConvertError(KernelForgeError):
    """A model file could not be converted."""


class PeerError(KernelForgeError):
    """Another engine could not be run, or cannot run this model."""
