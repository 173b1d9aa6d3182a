"""Puts a report's files into a folder, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kernelforge.errors import ReportError


def write_files(out: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes texts by file name; gives their paths in the same order.

    Raises:
        ReportError: one cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = out / f".{name}.part"
            partial.write_text(text, encoding="utf-8", newline="")
            partial.replace(out / name)
    except OSError as error:
        raise ReportError(
            f"{out}: cannot be written: {error.strerror or error}; choose another folder with --out"
        ) from error
    return [out / name for name in texts]
