"""Puts a report's files into a folder: all of them, or what was there before stays."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernelforge.errors import ReportError


def write_files(
    out: Path,
    texts: Mapping[str, str | bytes],
    gone: Sequence[str] = (),
    option: str = "--out",
) -> list[Path]:
    """Writes files by name; gives their paths in the same order.

    Everything is on the disk before the first old file is replaced, so that a full one leaves no
    page beside the numbers of another.

    Args:
        out: the folder; made if it is not there.
        texts: contents by file name.
        gone: names of files that an earlier report may have left.
        option: that names the folder.

    Raises:
        ReportError: one cannot be written.
    """
    partial = {name: out / f".{name}.part" for name in texts}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial[name].write_bytes(
                text.encode(errors="backslashreplace") if isinstance(text, str) else text
            )
        for name, path in partial.items():
            path.replace(out / name)
        for name in gone:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise ReportError(
            f"{out}: cannot be written: {error.strerror or error}; "
            f"choose another folder with {option}"
        ) from error
    return [out / name for name in texts]
