"""The ROSA demonstrations: their problems, laid out as the author of their models does.

Source: BlinkDL, RWKV-LM, RWKV-v8: 251016 and 251018 (counting), 251024 (arithmetic), 251105 and
260123 (reversal).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

PUBLISHED_STARTS = (3, 12, 42, 150, 525)
COUNTED_SYMBOLS = 128
PER_LENGTH = 10
"""Numbers of each length that the author reverses."""
MOST_DIGITS = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One problem.

    Attributes:
        prompt: what the model is given.
        answer: what it should say, without what ends it.
        end: the symbol that ends the answer, or nothing.
        group: which of the shown groups it belongs to.
    """

    prompt: str
    answer: str
    end: str
    group: str


@dataclass(frozen=True)
class Task:
    """One demonstration.

    Attributes:
        symbols: the model's vocabulary in order.
        digits: lengths of the numbers, from and to, unless asked otherwise.
        end_is_scored: whether the author counts the symbol that ends an answer.
        scoring: what is counted, in words.
        make: problems of (how many; None: the author's number, from, to, random).
    """

    symbols: str
    digits: tuple[int, int]
    end_is_scored: bool
    scoring: str
    make: Callable[[int | None, int, int, random.Random], list[Sample]]


def _reverse(count: int | None, low: int, high: int, draw: random.Random) -> list[Sample]:
    lengths = range(low, high + 1)
    chosen = _spread(lengths, PER_LENGTH * len(lengths) if count is None else count)
    samples = []
    for digits in chosen:
        text = _number(draw, digits)
        samples.append(Sample(f"{text},", text[::-1], "#", _tens(digits)))
    return samples


def _arithmetic(count: int | None, low: int, high: int, draw: random.Random) -> list[Sample]:
    lengths = [pair for longer in range(low, high + 1) for pair in _pairs(longer)]
    samples = []
    for first, second in _spread(lengths, len(lengths) if count is None else count):
        a, b = int(_number(draw, first)), int(_number(draw, second))
        sign = draw.choice("+-")
        answer = a + b if sign == "+" else a - b
        prompt = f"{a}{sign}{b}="
        samples.append(Sample(prompt, str(answer), "=", _tens(max(first, second), 5)))
    return samples


def _count(count: int | None, low: int, high: int, draw: random.Random) -> list[Sample]:
    if count is None:
        starts = list(PUBLISHED_STARTS)
    else:
        starts = [int(_number(draw, draw.randint(low, high))) for _ in range(count)]
    samples = []
    for start in starts:
        text, number = "A", start
        while len(text) < COUNTED_SYMBOLS:
            text += f"{number}A"
            number += 1
        group = f"from {start}" if count is None else str(len(str(start)))
        samples.append(Sample(text[:1], text[1:COUNTED_SYMBOLS], "", group))
    return samples


def _number(draw: random.Random, digits: int) -> str:
    """A number of so many digits; one of a single digit may be 0."""
    return str(draw.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))


def _pairs(longer: int) -> list[tuple[int, int]]:
    """Every pair of lengths of which the longer one is this."""
    return [(i, longer) for i in range(1, longer + 1)] + [
        (longer, i) for i in range(longer - 1, 0, -1)
    ]


def _spread(choices: Sequence[T], count: int) -> list[T]:
    """So many of the choices, in order and evenly; each as often as the next where it fits."""
    return [choices[i * len(choices) // count] for i in range(count)]


def _tens(digits: int, width: int = 10) -> str:
    first = (digits - 1) // width * width + 1
    return f"{first}-{first + width - 1}"


TASKS = {
    "reverse": Task(
        "0123456789,#",
        (1, 60),
        True,
        "digits of the reversed number and the # that ends it",
        _reverse,
    ),
    "arithmetic": Task(
        "0123456789+-=",
        (1, 20),
        False,
        "symbols of the sum or difference, its minus sign too, without the = that ends it",
        _arithmetic,
    ),
    "count": Task(
        "0123456789A",
        (1, 3),
        False,
        f"all {COUNTED_SYMBOLS - 1} symbols behind the first A (A: end of a number)",
        _count,
    ),
}
