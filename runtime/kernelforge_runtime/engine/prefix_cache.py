"""States of prompts' beginnings, so that what many prompts share is read once.

A new prompt goes on from the longest beginning that is kept. Kept are the states at whole
multiples of `every` tokens of a prompt, at its end, in that one's place at the end of its answer,
and where it parts from another one that is known: from the third prompt on,
what they share is not read again, be it of any length. A hit is never the whole prompt, for its
last token gives the first logits.

States are on the host. They and the tokens they stand for never take more than the budget; what was
used longest ago goes first.

What a prompt gets is what it gets without: bit for bit where its steps were cut at the same tokens,
as those of a prompt alone are at multiples of 256; else up to rounding, as always where a step has
another number of tokens and so another kernel.
"""

from __future__ import annotations

import secrets
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kernelforge_runtime.engine.spelling import DIGEST_BYTES, Spelling, spell
from kernelforge_runtime.engine.token_trie import NODE_BYTES, Node, Tokens, TokenTrie
from kernelforge_runtime.errors import OutOfMemoryError, RequestError
from kernelforge_runtime.host_memory import available_bytes
from kernelforge_runtime.models.inputs import Rows
from kernelforge_runtime.models.step_size import BUCKETS
from kernelforge_runtime.state import State

SHORTEST = 8
"""Tokens: for fewer, a state is not worth its room."""


def _none(count: int) -> bytes:
    """Of a prompt without vectors."""
    return b""


@dataclass
class PrefixStatistics:
    """What came of a cache so far.

    Attributes:
        prompts: that were looked up.
        hits: of these, how many went on from a kept state.
        prompt_tokens: of all of them.
        reused_tokens: of these, how many were not read again.
        kept: states that were put into the cache.
        evicted: states that had to go for others.
    """

    prompts: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    kept: int = 0
    evicted: int = 0


@dataclass(eq=False)
class Trail:
    """Where a sequence was kept last, so that it is not walked from its start when it has grown.

    Else a prompt of 100,000 tokens is walked 400 times.
    """

    node: Node[State] | None = None


class PrefixCache:
    """States by the tokens that led to them, for one model.

    Attributes:
        budget: bytes that states and tokens may take together.
        every: tokens from one kept state of a long prompt to the next.
        statistics: what came of it.
    """

    def __init__(self, budget: int, every: int = max(BUCKETS)) -> None:
        """An empty cache.

        Args:
            budget: bytes; a state that alone needs more is not kept.
            every: tokens, at least 1.

        Raises:
            RequestError: the budget or `every` is no such number.
        """
        for name, value, least in (("budget", budget, 0), ("every", every, 1)):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or value < least:
                raise RequestError(
                    f"prefix cache: {name} is {value!r}, it must be a whole number from {least} up"
                )
        self.budget, self.every = int(budget), int(every)
        self.statistics = PrefixStatistics()
        self._trie: TokenTrie[State] = TokenTrie()
        self._used: OrderedDict[Node[State], int] = OrderedDict()
        """Every node that has a state, and the state's bytes; what was used last is at the end."""
        self._proofs: dict[Node[State], bytes] = {}
        """Of the states that vectors led to: what those are known by."""
        self._key = secrets.token_bytes(DIGEST_BYTES)
        self._states_nbytes = 0
        self._model: weakref.ref[Any] | None = None

    def __len__(self) -> int:
        """States that are kept."""
        return len(self._used)

    @property
    def nbytes(self) -> int:
        """What is taken of the budget."""
        return self._states_nbytes + self._trie.nbytes

    def __str__(self) -> str:
        found = self.statistics
        return (
            f"prefix cache: {found.reused_tokens} of {found.prompt_tokens} prompt tokens not read "
            f"again, {found.hits} of {found.prompts} prompts; {len(self)} states in "
            f"{self.nbytes / 1e6:.1f} MB of {self.budget / 1e6:.1f} MB"
        )

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        sizes = {"budget": self.budget, "nbytes": self.nbytes, "states": len(self)}
        return {**sizes, **asdict(self.statistics)}

    def attach(self, model: object, instead: object = None) -> None:
        """Says whose states these are; several engines of one model may share a cache.

        Args:
            model: whose.
            instead: of this one, which was loaded from the same file, and as this one.

        Raises:
            RequestError: they are another model's already.
        """
        held = self._model() if self._model is not None else model
        if held is not model and (instead is None or held is not instead):
            raise RequestError("this prefix cache holds states of another model: make a new one")
        self._model = weakref.ref(model)

    def require_room(self) -> None:
        """Raises OutOfMemoryError where the host cannot give what the budget still allows."""
        left, wanted = available_bytes(), self.budget - self.nbytes
        if left is not None and wanted > left:
            raise OutOfMemoryError(
                f"prefix cache: its budget is {self.budget:,} bytes, of which {wanted:,} are not "
                f"taken yet, and the host has {left:,}: give it a smaller one"
            )

    def spell(self, ids: Tokens, rows: Rows) -> Spelling:
        """How this cache knows a prompt: its ids, GIVEN where a vector stands, and the vectors."""
        return spell(ids, rows, self._key)

    def longest(self, prompt: Tokens, proof: Callable[[int], bytes] = _none) -> State | None:
        """A copy of the state after the longest beginning that is kept; None where none is.

        Its position is that beginning's length, which is less than the prompt's.

        Args:
            prompt: as it is spelled.
            proof: what the vectors in a beginning of this length are known by.
        """
        self.statistics.prompts += 1
        self.statistics.prompt_tokens += len(prompt)
        path, _ = self._trie.walk(prompt)
        for node in reversed(path):
            if node.kept is None or node.length >= len(prompt):
                continue
            if self._proofs.get(node, b"") == proof(node.length):
                self._used.move_to_end(node)
                node.hits += 1
                self.statistics.hits += 1
                self.statistics.reused_tokens += node.length
                return node.kept.clone()
        return None

    def parting(self, prompt: Tokens) -> int:
        """Where a prompt parts from all that is known, at the latest before its last token."""
        _, known = self._trie.walk(prompt)
        known = min(known, len(prompt) - 1)
        return known if known >= SHORTEST else 0

    def keep(
        self, tokens: Tokens, state: State, proof: bytes = b"", trail: Trail | None = None
    ) -> bool:
        """Keeps a copy of the state after these tokens; whether it is kept.

        It is not where it does not fit the budget, or is not finite: that of a damaged model.

        Args:
            tokens: as they are spelled.
            state: after them.
            proof: what the vectors among them are known by.
            trail: of this sequence, which grows.
        """
        trail = trail if trail is not None else Trail()
        if len(tokens) < SHORTEST or self._over(len(tokens), state.nbytes):
            return False
        start = self._start(trail, tokens)
        path = self._trie.walk(tokens, start)[0]
        node = path[-1] if path else start
        if node is not None and node.kept is not None and node.length == len(tokens):
            if self._proofs.get(node, b"") != proof:  # other vectors, spelled alike by chance
                return False
            self._used.move_to_end(node)
            trail.node = node
            return True
        if any(a.dtype != np.uint32 and not np.isfinite(a).all() for a in state.arrays.values()):
            return False
        nbytes = state.nbytes
        if self._over(len(tokens), nbytes):
            return False
        while self.nbytes + nbytes + _most(len(tokens)) > self.budget:
            self._evict()
        node = trail.node = self._trie.place(tokens, self._start(trail, tokens))
        node.kept = state.clone()
        self._used[node] = nbytes
        if proof:
            self._proofs[node] = proof
        self._states_nbytes += nbytes
        self.statistics.kept += 1
        return True

    def forget(self, tokens: Tokens) -> None:
        """Lets go of the state after these tokens if nobody has gone on from it."""
        path = self._trie.walk(tokens)[0]
        node = path[-1] if path else self._trie.root
        if node in self._used and node.length == len(tokens) and not node.hits:
            self._let_go(node, self._used.pop(node))

    def clear(self) -> None:
        """Lets go of everything; the statistics stay."""
        self._trie, self._used, self._states_nbytes = TokenTrie(), OrderedDict(), 0
        self._proofs.clear()

    def _start(self, trail: Trail, tokens: Tokens) -> Node[State] | None:
        """Where a walk may begin: what is kept no more may be out of the trie.

        A sequence that is run again, after an interrupt for one, is shorter than it was.
        """
        node = trail.node
        known = node is not None and node in self._used and node.length <= len(tokens)
        return node if known else None

    def _over(self, tokens: int, nbytes: int) -> bool:
        return nbytes + _most(tokens) > self.budget

    def _evict(self) -> None:
        node, nbytes = self._used.popitem(last=False)
        self.statistics.evicted += 1
        self._let_go(node, nbytes)

    def _let_go(self, node: Node[State], nbytes: int) -> None:
        self._states_nbytes -= nbytes
        self._proofs.pop(node, None)
        self._trie.prune(node)


def _most(tokens: int) -> int:
    """Bytes that a new sequence adds to the trie at most: its tokens, a node, and one split off."""
    return 4 * tokens + 2 * NODE_BYTES
