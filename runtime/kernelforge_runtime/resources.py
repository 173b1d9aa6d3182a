"""Where tuned bundles are read from and written to.

What is in them is the business of `kernelforge_runtime.bundle`.
"""

import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]


def tuned_dir() -> Traversable:
    """The bundles that came with this installation.

    The packaged copy comes before the checkout: next to an installed package, `tuned` may be
    anybody's folder.
    """
    if override := os.environ.get("KERNELFORGE_TUNED"):
        return Path(override)
    packaged = files("kernelforge_runtime") / "_tuned"
    return packaged if packaged.is_dir() else _CHECKOUT / "tuned"


def tuned_output_dir() -> Path:
    """Where new bundles go: `tuned/` of a checkout, else the user's data folder.

    Never inside an installed package. The folder need not exist yet.
    """
    if override := os.environ.get("KERNELFORGE_TUNED"):
        return Path(override)
    in_runtime_folder = Path(__file__).parents[1] == _CHECKOUT / "runtime"
    if in_runtime_folder and (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / "tuned"
    return xdg_dir("XDG_DATA_HOME", ".local/share") / "tuned"


def tuned_search_path() -> tuple[Traversable, ...]:
    """Every folder that may hold bundles, the user's own first."""
    own, shipped = tuned_output_dir(), tuned_dir()
    return (own,) if own == shipped else (own, shipped)


def xdg_dir(variable: str, fallback: str) -> Path:
    """KernelForge's folder under an XDG base folder; a relative value counts as unset."""
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base / "kernelforge"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME and no such user, as in some containers: nothing can be kept
        home = Path(os.devnull)
    return home / fallback / "kernelforge"
