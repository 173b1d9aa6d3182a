"""How far a long verb has come: a live bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

from kernelforge.cli.output import Output


class ProgressBar:
    """Steps towards a total, with a word on what is being done. Use it as a context manager.

    On a terminal one bar is redrawn in place, and lines appear above it. Elsewhere lines are
    printed as they come, and the bar itself is not shown.
    """

    def __init__(self, output: Output, what: str, total: int | None = None) -> None:
        self._shown = not output.quiet
        self._live: Any = None
        self._task: Any = None
        self._what, self._total = what, total

    def __enter__(self) -> ProgressBar:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Elapsed(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,  # stdout may be a pipe: it holds the results
            )
            try:
                self._live.start()
                self._task = self._live.add_task(self._what, total=self._total)
            except BaseException:  # an interrupt must not leave the cursor hidden
                with suppress(Exception):  # what has half started may not be able to stop
                    self._live.stop()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, done: int, total: int | None = None, what: str | None = None) -> None:
        """Moves the bar; on a terminal only."""
        if self._live is None:
            return
        changed: dict[str, Any] = {"completed": done}
        if total is not None:
            changed["total"] = total
        if what is not None:
            changed["description"] = what
        self._live.update(self._task, **changed)

    def line(self, text: str) -> None:
        """One finished thing."""
        if not self._shown:
            return
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text), soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
