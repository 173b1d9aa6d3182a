"""Sequences of tokens by their common beginnings, with something kept at the end of some of them.

A path of nodes spells a sequence; of two that begin alike, the common part is there once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Tokens = NDArray[np.uint32]
NODE_BYTES = 512
"""About what a node takes besides its tokens."""


class Node(Generic[T]):
    """A place in the trie.

    Attributes:
        tokens: from its parent to it; at least one, but for the root.
        length: of the sequence that ends here.
        kept: what is kept for that sequence.
        hits: how often that was of use.
    """

    __slots__ = ("__weakref__", "children", "hits", "kept", "length", "parent", "tokens")

    def __init__(self, tokens: Tokens, parent: Node[T] | None, length: int) -> None:
        self.tokens, self.parent, self.length = tokens, parent, length
        self.children: dict[int, Node[T]] = {}
        self.kept: T | None = None
        self.hits = 0


class TokenTrie(Generic[T]):
    """The trie.

    Attributes:
        nbytes: what nodes and their tokens take; what is kept does not count.
    """

    def __init__(self) -> None:
        self.root: Node[T] = Node(np.empty(0, np.uint32), None, 0)
        self.nbytes = 0

    def walk(self, tokens: Tokens, start: Node[T] | None = None) -> tuple[list[Node[T]], int]:
        """The nodes along a sequence, as far as it is known, and how many tokens of it are.

        Args:
            tokens: the sequence.
            start: a node on its way, from which on they are wanted; the root where None.
        """
        node, path = start or self.root, list[Node[T]]()
        while node.length < len(tokens):
            child = node.children.get(int(tokens[node.length]))
            if child is None:
                return path, node.length
            alike = _alike(child.tokens, tokens[node.length :])
            if alike < len(child.tokens):
                return path, node.length + alike
            node = child
            path.append(node)
        return path, node.length

    def place(self, tokens: Tokens, start: Node[T] | None = None) -> Node[T]:
        """The node at the end of a sequence of at least one token; made if there is none."""
        path, known = self.walk(tokens, start)
        node = path[-1] if path else start or self.root
        if node.length < known:
            node = self._split(node.children[int(tokens[node.length])], known)
        if node.length < len(tokens):
            node = self._add(node, tokens[node.length :].copy())
        return node

    def prune(self, node: Node[T]) -> None:
        """Lets go of a node of which nothing is kept any more, and of what only led to it."""
        node.kept = None
        while node.kept is None and not node.children and node.parent is not None:
            parent = node.parent
            del parent.children[int(node.tokens[0])]
            self.nbytes -= _taken(node)
            node = parent
        if node.kept is None and len(node.children) == 1 and node.parent is not None:
            self._join(node)

    def __iter__(self) -> Iterator[Node[T]]:
        """Every node but the root."""
        left = [*self.root.children.values()]
        while left:
            node = left.pop()
            left += node.children.values()
            yield node

    def _add(self, parent: Node[T], tokens: Tokens) -> Node[T]:
        node = Node(tokens, parent, parent.length + len(tokens))
        parent.children[int(tokens[0])] = node
        self.nbytes += _taken(node)
        return node

    def _split(self, node: Node[T], length: int) -> Node[T]:
        """A new node on the way to a node, where a sequence of this length ends."""
        parent = node.parent
        assert parent is not None
        self.nbytes -= _taken(node)
        count = length - parent.length
        middle = self._add(parent, node.tokens[:count].copy())
        node.tokens, node.parent = node.tokens[count:].copy(), middle
        middle.children[int(node.tokens[0])] = node
        self.nbytes += _taken(node)
        return middle

    def _join(self, node: Node[T]) -> None:
        """Takes a node out of the way to its only child."""
        (child,) = node.children.values()
        parent = node.parent
        assert parent is not None
        self.nbytes -= _taken(node) + _taken(child)
        child.tokens, child.parent = np.concatenate([node.tokens, child.tokens]), parent
        parent.children[int(child.tokens[0])] = child
        self.nbytes += _taken(child)


def _taken(node: Node[T]) -> int:
    return NODE_BYTES + node.tokens.nbytes


def _alike(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    count = min(len(a), len(b))
    unlike = np.flatnonzero(a[:count] != b[:count])
    return int(unlike[0]) if len(unlike) else count
