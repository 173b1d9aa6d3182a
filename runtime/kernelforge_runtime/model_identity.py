"""Which model something is of: its own hash, and whether another file is a conversion of it.

A converted file has other bytes and so another hash. It says which file it comes from, its origin,
and conversions of conversions say the same one: files of one origin are the same model, rounded
otherwise. What has the architecture alone in common, a fine-tuned model for one, is another model.
"""

from __future__ import annotations

import re
from typing import Any, Literal

DIGEST_BYTES = 16
_HASH = re.compile("[0-9a-f]{8,128}")

Kinship = Literal["same", "conversion", "sibling", "stranger"]
"""`sibling`: another model of the same architecture."""


class ModelHash(str):
    """A model's hash, with what else tells models apart.

    Attributes:
        architecture: hash of the tensors' names and shapes; None where it is not known.
        origin: hash of the model that it was converted from; None where it was not.
    """

    architecture: str | None
    origin: str | None

    def __new__(
        cls, digest: str, architecture: str | None = None, origin: str | None = None
    ) -> ModelHash:
        """The hash itself is the text."""
        made = super().__new__(cls, digest)
        made.architecture, made.origin = architecture, origin
        return made

    @property
    def root(self) -> str:
        """What all conversions of a model have in common."""
        return self.origin or str(self)

    @classmethod
    def of(cls, known: str) -> ModelHash:
        """A hash of which nothing else need be known."""
        return known if isinstance(known, cls) else cls(known)

    def kinship(self, other: str) -> Kinship:
        """How this model is related to another one."""
        held = ModelHash.of(other)
        if str(self) == str(held):
            return "same"
        differ = None not in (self.architecture, held.architecture)
        differ = differ and self.architecture != held.architecture
        if self.root == held.root and not differ:
            return "conversion"
        return "sibling" if self.architecture == held.architecture is not None else "stranger"

    def to_json(self) -> dict[str, str | None]:
        """What there is besides the hash itself."""
        return {"architecture": self.architecture, "origin": self.origin}


def is_hash(text: Any) -> bool:
    """Whether it may be the hash of a model or of an architecture."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None
