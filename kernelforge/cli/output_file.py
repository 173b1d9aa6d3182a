"""A file of results that an option names: checked before anything runs, and written whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.written_file import place_of, written_whole


def check_place(option: str, path: str) -> None:
    """Raises KernelForgeError, which names the option, where no file can be written."""
    if not _is_stream(path):
        with _named(option, path):
            place_of(path)


def write_text(option: str, path: str, text: str) -> None:
    """Writes a file in place of what is there, whole or not at all; onto a stream, at its end.

    Raises:
        KernelForgeError: it cannot be written; the message names the option and the path.
    """
    with _named(option, path):
        if _is_stream(path):
            sys.stdout.flush()  # which it may be
            with Path(path).open("a", encoding="utf-8") as stream:
                stream.write(text)
            return
        with written_whole(place_of(path)) as file:
            file.write(text.encode())


def _is_stream(path: str) -> bool:
    """Whether it is written as it comes: a pipe, or /dev/stdout, be that a file's other name."""
    place = Path(path)
    return place.exists() and not place.is_dir() and (path[:5] == "/dev/" or not place.is_file())


@contextmanager
def _named(option: str, path: str) -> Iterator[None]:
    """An error of the system names the option and the path."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise KernelForgeError(f"{option} {path}: {why}: use another path") from None
