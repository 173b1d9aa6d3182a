"""Finds every kernel family in this folder by its file's name.

A file `gemv.py` here holds a module-level `KernelFamily` named `gemv`; that is all it takes to add
one. A file may hold more than one, where they share an oracle.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

from kernelforge.errors import SpaceError
from kernelforge.family import KernelFamily

__all__ = ["get_family", "load_families"]


def load_families() -> dict[str, KernelFamily]:
    """Every family by name, in alphabetical order.

    Raises:
        SpaceError: a file declares no family of its own name, or two declare the same.
    """
    return dict(_families())


def get_family(name: str) -> KernelFamily:
    """The family of this name.

    Raises:
        SpaceError: there is none.
    """
    families = _families()
    if name in families:
        return families[name]
    near = difflib.get_close_matches(name, families, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(families)}"
    raise SpaceError(f"no kernel family {name!r}; {hint}")


@cache
def _families() -> dict[str, KernelFamily]:
    found: dict[str, tuple[KernelFamily, str]] = {}
    for file in sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name[0] != "_"):
        declared = declared_families(f"{__name__}.{file}")
        if file not in declared:
            raise SpaceError(f"families/{file}.py declares no KernelFamily named {file!r}: add it")
        for name, family in declared.items():
            if name in found:
                raise SpaceError(f"families/{file}.py: {found[name][1]}.py also declares {name!r}")
            found[name] = (family, file)
    return {name: found[name][0] for name in sorted(found)}


def declared_families(module: str) -> dict[str, KernelFamily]:
    """The families that a module holds at its top level, by name."""
    values = vars(importlib.import_module(module)).values()
    return {v.name: v for v in values if isinstance(v, KernelFamily)}
