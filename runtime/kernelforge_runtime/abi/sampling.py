"""What a sampling kernel is told about a row of logits: eight words, and pairs of penalties.

A row's words are: kind, number of penalties, seed (low, high), count (draws before this one),
top_k (0 keeps all), top_p and 1 / temperature (float32 bits). A penalty is two words: a token, each
at most once, and the float32 that is subtracted from its logit.
"""

from __future__ import annotations

CHOICE_WORDS = 8
SKIP, DRAW, LARGEST = 0, 1, 2
"""Kinds: the row is nobody's, a token is drawn, or the largest logit wins."""
NO_TOKEN = 0xFFFFFFFF
"""The answer of a skipped row, and of one whose largest logit is not finite or that holds a NaN."""
FARTHEST = 104.0
"""A logit so far below the largest has no weight: exp(-104) is no float32 any more."""
