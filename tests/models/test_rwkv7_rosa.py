"""RWKV-7 with ROSA: the published arithmetic and reversal models solve what they were made for."""

import random

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.weights import open_checkpoint
from tests.models import plain
from tests.models.plain import weights_of

REVERSE, ARITHMETIC = "0123456789,#", "0123456789+-="
FILES = {
    "reverse": ("260123_reverse_L2.pth", REVERSE, "31415926535897,79853562951413#"),
    "control": ("260123_reverse_L2_only_rwkv7.pth", REVERSE, "20406080,08060402#"),
    "digits": ("251024_rosaQKV_L2_digit20.pth", ARITHMETIC, "98765432109-1234567=98764197542="),
}
every_file = pytest.mark.parametrize("which", list(FILES))


def by_definition(path, tokens):
    with open_checkpoint(path) as read:
        x, v_first = weights_of(read, "e.")["weight"][tokens], None
        for n in (1, 2):

            def normed(which, x=x, n=n):
                return plain.layer_norm(x, **weights_of(read, f"ln{n}{which}."))

            found = plain.rosa_qkv(weights_of(read, f"rosa{n}."), normed("c"), 1)
            y, v_first = plain.time_mix(weights_of(read, f"rwkv{n}."), normed("a"), v_first)
            x = x + y + found
            x = x + plain.channel_mix(weights_of(read, f"ffn{n}."), normed("b", x))
        head = weights_of(read, "o.")
        x = plain.layer_norm(x, **weights_of(read, "lno."))
        return x @ head["weight"].T + head["bias"]


@every_file
def test_numpy_equals_the_definition(shared, which):
    name, letters, text = FILES[which]
    tokens = [letters.index(c) for c in text]
    model = kf.load_reference(shared / name, np.float64)
    logits, _ = model.forward(tokens, full_output=True)
    assert model.config.version == "rwkv7-rosa"
    assert np.abs(logits - by_definition(shared / name, tokens)).max() < 1e-4


@pytest.mark.vulkan
@every_file
def test_vulkan_chooses_as_numpy_does_and_keeps_the_same_bits(shared, device, which):
    name, letters, text = FILES[which]
    tokens = [letters.index(c) for c in text]
    expected, before = kf.load_reference(shared / name, np.float64).forward(
        tokens, full_output=True
    )
    with kf.load_model(shared / name, device, weights="f32") as model:
        logits, state = model.forward(tokens, full_output=True)
        assert (logits.argmax(-1) == expected.argmax(-1)).all()
        words = before.arrays["rosa"].shape[-1]
        assert (state.arrays["rosa"][..., :words] == before.arrays["rosa"]).all()


def right_answers(model, letters, problems):
    """(right, all) symbols behind the prompts, each predicted from the true ones before it."""
    right = symbols = 0
    for prompt, answer in problems:
        tokens = [letters.index(c) for c in prompt + answer]
        logits, _ = model.forward(tokens[:-1], full_output=True)
        hits = logits.argmax(-1)[len(prompt) - 1 :] == tokens[len(prompt) :]
        right, symbols = right + int(hits.sum()), symbols + len(hits)
    return right, symbols


@pytest.mark.parametrize("which", ["reverse", "control"])
def test_numbers_of_up_to_sixty_digits_are_reversed(shared, which):
    draw = random.Random(42)
    texts = [str(draw.randint(10 ** (n - 1), 10**n - 1)) for n in range(1, 61, 4)]
    problems = [(f"{text},", f"{text[::-1]}#") for text in texts]
    right, symbols = right_answers(kf.load_reference(shared / FILES[which][0]), REVERSE, problems)
    assert right == symbols if which == "control" else right >= 0.99 * symbols


def test_sums_and_differences_are_mostly_right_but_their_end_is_never_seen(shared):
    draw = random.Random(42)
    answers, ends = [], []
    for longer in range(1, 21):  # as the author draws them: one number of each length, one shorter
        for shorter in range(1, longer + 1, 4):
            a, b = (draw.randint(10 ** (n - 1), 10**n - 1) for n in (shorter, longer))
            sign = draw.choice("+-")
            result = a + b if sign == "+" else a - b
            answers.append((f"{a}{sign}{b}=", str(result)))
            ends.append((f"{a}{sign}{b}={result}", "="))
    model = kf.load_reference(shared / FILES["digits"][0])
    right, symbols = right_answers(model, ARITHMETIC, answers)
    assert right >= 0.94 * symbols
    assert right_answers(model, ARITHMETIC, ends) == (0, len(ends))


def test_the_controls_rosa_layers_give_their_bias_alone(shared):
    with open_checkpoint(shared / FILES["control"][0]) as read:
        assert not any(weights_of(read, f"rosa{n}.")["rosa_qkv.emb"].any() for n in (1, 2))
