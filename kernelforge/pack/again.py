"""Makes the module of a bundle's entry anew: the same bytes, or none."""

from __future__ import annotations

import hashlib
import logging

from kernelforge.compile import compile_variant
from kernelforge.errors import CompileError, RenderError, SpaceError
from kernelforge.families import load_families
from kernelforge.variant import Variant
from kernelforge_runtime.bundle import Entry

_log = logging.getLogger(__name__)


def made_again(entry: Entry) -> bytes | None:
    """The SPIR-V of an entry, as it was measured and verified.

    Returns:
        None where today's templates, declarations or compiler make another module, or none.
    """
    family = load_families().get(entry.family)
    if family is None:
        return None
    try:
        params = family.space.normalise(Variant.parse(entry.variant).values)
        module = compile_variant(family, entry.precision, params)
    except (SpaceError, RenderError, CompileError) as error:
        _log.info("%s: not made again: %s", entry.variant, error)
        return None
    same = hashlib.sha256(module.spirv).hexdigest() == entry.module_sha256
    return module.spirv if same and module.signature == entry.signature else None
