"""Holds a model to the logits and states of the official package's run, both ways it has."""

import numpy as np

LIMIT = 1e-3
PROMPT = list(b'"in')
"""Of rwkv.cpp's published logits."""


def worst(found, expected):
    return float(np.abs(np.asarray(found, np.float64) - expected).max())


def one_by_one(model, tokens):
    """Logits of every token [T, V] and the state, each token run by itself."""
    state, rows = None, []
    for token in tokens:
        logits, state = model.forward([token], state)
        rows.append(logits)
    return np.stack(rows), state


def assert_official(model, arrays, layer_state):
    """Both ways to run the tokens, against both of the official ways.

    Args:
        model: on any op set.
        arrays: of a golden file.
        layer_state: (state arrays, layer) -> what the official package keeps for it, in order.
    """
    tokens = arrays["tokens"].tolist()
    sequence, after_sequence = model.forward(tokens, full_output=True)
    single, after_single = one_by_one(model, tokens)
    for logits in (sequence, single):
        assert worst(logits, arrays["logits_seq"]) <= LIMIT
        assert worst(logits, arrays["logits_one"]) <= LIMIT
    for state in (after_sequence, after_single):
        found = [a for i in range(model.config.layers) for a in layer_state(state.arrays, i)]
        assert len(found) == sum(name.startswith("state.") for name in arrays)
        for k, values in enumerate(found):
            assert worst(values, arrays[f"state.{k}"]) <= LIMIT, f"state {k}"
