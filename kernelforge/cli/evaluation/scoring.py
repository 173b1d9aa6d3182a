"""Lets a model predict the answers of problems, many at once, and counts what is right.

Each symbol is predicted from the true ones before it, as the author of the demonstrations does: a
mistake does not spoil what follows. `free` lets the model go on from its own symbols instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from kernelforge.cli.evaluation.tasks import Sample, Task
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import Model, Reference

T = TypeVar("T")


@dataclass
class Tally:
    """What was right.

    Attributes:
        problems: how many.
        whole: problems with a wholly right answer.
        answer_right: symbols of answers that were right.
        answers: symbols of answers.
        ends_right: ends of answers that were seen.
        ends: of answers.
    """

    problems: int = 0
    whole: int = 0
    answer_right: int = 0
    answers: int = 0
    ends_right: int = 0
    ends: int = 0

    def add(self, sample: Sample, predicted: str) -> None:
        """Counts one problem."""
        self.problems += 1
        self.whole += predicted[: len(sample.answer)] == sample.answer
        self.answers += len(sample.answer)
        self.answer_right += _equal(sample.answer, predicted)
        self.ends += len(sample.end)
        self.ends_right += _equal(sample.end, predicted[len(sample.answer) :])

    def score(self, task: Task) -> tuple[int, int]:
        """(right, all) as the task's author counts."""
        if not task.end_is_scored:
            return self.answer_right, self.answers
        return self.answer_right + self.ends_right, self.answers + self.ends


@dataclass
class Result:
    """One run of a task.

    Attributes:
        predicted: what the model said of each problem, with the end.
        total: of all problems.
        groups: by group, in order of appearance.
        tokens: that the model was given.
        seconds: it took.
    """

    predicted: list[str]
    total: Tally = field(default_factory=Tally)
    groups: dict[str, Tally] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0


def evaluate(
    model: Model | Reference, task: Task, samples: Sequence[Sample], batch: int, free: bool = False
) -> Result:
    """Runs all problems, `batch` at a time.

    Raises:
        ModelError: the model has another vocabulary.
    """
    if model.config.vocab != len(task.symbols):
        raise ModelError(
            f"the task's vocabulary is {task.symbols} ({len(task.symbols)} tokens), this model has "
            f"{model.config.vocab}: it was made for something else"
        )
    started = time.perf_counter()
    texts = [
        (
            [task.symbols.index(c) for c in s.prompt],
            [task.symbols.index(c) for c in s.answer + s.end],
        )
        for s in samples
    ]
    if batch == 1 and not free:
        found = _predict_whole(model, texts)
    else:
        found = _predict_batch(model, texts, batch, free)
    result = Result(["".join(task.symbols[i] for i in ids) for ids in found])
    result.seconds = time.perf_counter() - started
    result.tokens = sum(len(prompt) + len(rest) - 1 for prompt, rest in texts)
    for sample, predicted in zip(samples, result.predicted, strict=True):
        result.total.add(sample, predicted)
        result.groups.setdefault(sample.group, Tally()).add(sample, predicted)
    return result


Text = tuple[list[int], list[int]]
"""A prompt, and the symbols to predict behind it."""


def _predict_whole(model: Model | Reference, texts: Sequence[Text]) -> list[list[int]]:
    """One problem after the other, all its tokens at once."""
    found = []
    for prompt, rest in texts:
        logits, _ = model.forward([*prompt, *rest[:-1]], full_output=True)
        found.append([int(i) for i in logits[len(prompt) - 1 :].argmax(-1)])
    return found


def _predict_batch(
    model: Model | Reference, texts: Sequence[Text], batch: int, free: bool
) -> list[list[int]]:
    """Many problems together: their prompts, then a token of each that has not ended."""
    found: list[list[int]] = [[] for _ in texts]
    # Those that end together run together, so that a batch is full for most of its steps.
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i][1]))
    for start in range(0, len(order), batch):
        running = order[start : start + batch]
        logits, states = model.forward_batch([texts[i][0] for i in running])
        while running:
            for i, row in zip(running, logits, strict=True):
                found[i].append(int(np.argmax(row)))
            going = [len(found[i]) < len(texts[i][1]) for i in running]
            running, states = _those(running, going), _those(states, going)
            if running:
                said = found if free else [rest for _, rest in texts]
                fed = [[said[i][len(found[i]) - 1]] for i in running]
                logits, states = model.forward_batch(fed, states)
    return found


def _those(items: Sequence[T], going: Sequence[bool]) -> list[T]:
    return [item for item, goes in zip(items, going, strict=True) if goes]


def marks(expected: str, predicted: str) -> str:
    """A dot below what is right, a caret below what is wrong."""
    return "".join("." if a == b else "^" for a, b in zip(expected, predicted, strict=True))


def _equal(expected: str, predicted: str) -> int:
    return sum(a == b for a, b in zip(expected, predicted, strict=False))
