"""Replayed searches kept in a file, one line each, so that a long comparison can be interrupted."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import TuneError
from kernelforge.tune.recorded import RecordedSpace

Floats = NDArray[np.float64]
SEARCHING = ("acquisition.py", "encoded.py", "gaussian_process.py")
"""Modules beside this one that decide what is proposed."""
SEEDING = ("experience.py", "guided.py", "portfolio.py", "transfer.py")
"""And those that decide where a search with a portfolio begins."""


@dataclass(frozen=True)
class FinishedRun:
    """One search of one space.

    Attributes:
        curve: [evaluations] best time in ms so far; inf before anything worked.
        cpu_s: processor time of it all; NaN where another process searched.
        searcher: what searched, with its version.
    """

    curve: Floats
    cpu_s: float
    searcher: str


class FinishedRuns:
    """Searches by space, strategy, seed, length, and what searched.

    Args:
        path: the file, read if it is there and appended to; None keeps nothing.

    Raises:
        TuneError: the file holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[tuple[Any, ...], FinishedRun] = {}
        if path is None:
            return
        if not path.exists():
            if not path.absolute().parent.is_dir():  # before hours of searching
                raise TuneError(f"--runs {path}: there is no folder {path.parent}; make it first")
            return
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TuneError(f"--runs {path}: cannot be read: {error}") from None
        for line in lines:
            # A line may be torn: whoever wrote it was interrupted. That search is run again.
            with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                data = json.loads(line)
                cpu_s = math.nan if data["cpu_s"] is None else float(data["cpu_s"])
                run = FinishedRun(_unfolded(data), cpu_s, data["searcher"])
                self._found[tuple(data[name] for name in _KEY)] = run
        if lines and not self._found:
            raise TuneError(f"--runs {path}: holds no finished run; name another file")

    def get(
        self, space: RecordedSpace, strategy: str, searcher: str, seed: int, evaluations: int
    ) -> FinishedRun | None:
        """The search, if it was run before by the same code on the same space."""
        return self._found.get((space.digest, strategy, searcher, seed, evaluations))

    def add(self, space: RecordedSpace, strategy: str, seed: int, run: FinishedRun) -> None:
        """Keeps a search.

        Raises:
            TuneError: the file cannot be written.
        """
        key = (space.digest, strategy, run.searcher, seed, len(run.curve))
        self._found[key] = run
        if self._path is None:
            return
        better = [0, *(np.flatnonzero(np.diff(run.curve)) + 1).tolist()]
        steps = [[at, float(run.curve[at])] for at in better if math.isfinite(run.curve[at])]
        cpu = run.cpu_s if math.isfinite(run.cpu_s) else None
        line = {"name": space.name, **dict(zip(_KEY, key, strict=True)), "cpu_s": cpu}
        try:
            torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
            with self._path.open("a") as file:
                file.write("\n" * torn + json.dumps({**line, "steps": steps}) + "\n")
        except OSError as error:
            raise TuneError(f"--runs {self._path}: {error.strerror or error}") from None


MOST_EVALUATIONS = 1 << 20
"""Of one search: a line that says more is no search of ours."""
_KEY = ("space", "strategy", "searcher", "seed", "evaluations")


def _unfolded(data: dict[str, Any]) -> Floats:
    evaluations, steps = data["evaluations"], data["steps"]
    if not 1 <= evaluations <= MOST_EVALUATIONS:
        raise ValueError(f"{evaluations} evaluations")
    curve = np.full(evaluations, math.inf)
    for at, time in steps:
        if not (0 <= at < evaluations and 0 < time < curve[at]):
            raise ValueError(f"{time} ms after {at} evaluations")
        curve[at:] = time
    return curve


def own_searcher(also: tuple[str, ...] = ()) -> str:
    """Names our own code as it proposes: the same until a statement of it changes.

    Comments, docstrings and layout do not count.

    Args:
        also: further modules that count.
    """
    hasher = hashlib.sha256()
    for name in SEARCHING + also:
        tree = ast.parse(Path(__file__).with_name(name).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
        hasher.update(ast.dump(tree).encode())
    return f"kernelforge {hasher.hexdigest()[:12]}"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
