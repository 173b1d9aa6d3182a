"""Where the templates are, and where compiled kernels are kept."""

import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from kernelforge_runtime.resources import tuned_output_dir, xdg_dir

__all__ = ["cache_dir", "templates_dir", "tuned_output_dir"]

_CHECKOUT = Path(__file__).parents[1]


def templates_dir() -> Traversable:
    """The GLSL templates that came with this installation.

    The packaged copy comes before the checkout: next to an installed package, `templates` may be
    anybody's folder.
    """
    if override := os.environ.get("KERNELFORGE_TEMPLATES"):
        return Path(override)
    packaged = files("kernelforge") / "_templates"
    return packaged if packaged.is_dir() else _CHECKOUT / "templates"


def cache_dir() -> Path:
    """Where compiled kernels are kept; it need not exist yet, and may be deleted at any time."""
    if override := os.environ.get("KERNELFORGE_CACHE"):
        return Path(override)
    return xdg_dir("XDG_CACHE_HOME", ".cache")
