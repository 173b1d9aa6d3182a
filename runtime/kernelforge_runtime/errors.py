"""The errors of the runtime: one root, and one class per thing that can go wrong.

A message is one line that says what was asked, what was found, and what to do.
"""


class KernelForgeError(Exception):
    """Root of every error that KernelForge raises on purpose; the command line prints it as is."""


class DeviceError(KernelForgeError):
    """Vulkan could not do what was asked: no loader, no device, a failed call."""


class DeviceLostError(DeviceError):
    """The device stopped answering (VK_ERROR_DEVICE_LOST, or a wait that ran out of time)."""


class OutOfMemoryError(DeviceError):
    """The device or the host has no memory left for an allocation."""


class SpirvError(KernelForgeError):
    """A SPIR-V module is malformed, or does not match the signature declared for it."""


class BundleError(KernelForgeError):
    """A bundle is missing, damaged, hostile, or cannot serve what was asked."""


class PlanError(KernelForgeError):
    """A dispatch does not fit its kernel: a wrong buffer, a missing dimension, too large a grid."""


class ModelError(KernelForgeError):
    """A model file is missing, damaged, hostile, or of a kind that is not known."""


class TokenizerError(KernelForgeError):
    """Text cannot be turned into tokens, or a vocabulary cannot be loaded."""


class RequestError(KernelForgeError):
    """A request to the engine cannot be served as it is; nobody else's is touched."""
