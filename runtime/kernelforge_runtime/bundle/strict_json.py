"""Reads JSON from strangers: no duplicate keys, no NaN, no surprises of type or size.

What the fields mean is `manifest`'s business; this module only knows how to say no in one line.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Collection
from typing import Any, NoReturn

from kernelforge_runtime.errors import BundleError

MAX_COUNT = 2**53
"""Largest whole number a manifest may hold: beyond it JSON readers disagree."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_shorten = reprlib.Repr()
_shorten.maxstring = 80
_shorten.maxother = 80


def show(value: object) -> str:
    """A value for an error message: short, on one line, without control characters."""
    return _shorten.repr(value)


def decode(data: bytes) -> Any:
    """The value behind a JSON text.

    Raises:
        BundleError: not UTF-8 JSON, a repeated key, a number that is not finite, or too deep.
    """
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise BundleError("JSON is nested too deeply") from None
    except ValueError as error:  # JSON, UTF-8, and whole numbers of thousands of digits
        raise BundleError(f"not valid JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BundleError(f"key {show(twice)} is there twice")
    return result


def _not_finite(text: str) -> NoReturn:
    raise BundleError(f"{text[:40]} is not a finite number")


def _real(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_real, parse_constant=_not_finite
)


def check_lines(text: bytes, unindented: int = 0) -> None:
    """Refuses lines of an entry that hold more than one value, or are not indented.

    Args:
        text: whole lines.
        unindented: lines that need no indent.

    Raises:
        BundleError: it is not laid out so.
    """
    # One value per line, as the writer lays it out: a dense text would grow in memory much more.
    # No text of an entry may hold these characters, so that counting them is enough.
    dense = (
        text.count(b",") != text.count(b",\n")
        or text.count(b"[") != text.count(b"[\n") + text.count(b"[]")
        or text.count(b"{") != text.count(b"{\n") + text.count(b"{}")
        or text.count(b"\n      ") != text.count(b"\n") - unindented
    )
    if dense:
        raise BundleError("is not laid out with one value per line and two spaces of indent")


def record(value: Any, keys: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """An object with exactly these keys, and perhaps the optional ones."""
    if not isinstance(value, dict):
        raise BundleError(f"expected an object, found {show(value)}")
    if len(value) == len(keys) and value.keys() == {*keys}:
        return value
    for key in keys:
        if key not in value:
            raise BundleError(f"key {key} is missing")
    if len(value) != len(keys):
        for key in value:
            if key not in keys and key not in optional:
                raise BundleError(f"key {show(key)} is not known")
    return value


def listed(value: Any, name: str, most: int, least: int = 0) -> list[Any]:
    """A list of `least` to `most` items."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        found = f"{len(value)} items" if isinstance(value, list) else show(value)
        raise BundleError(f"{name}: expected a list of {least} to {most} items, found {found}")
    return value


def count(value: Any, name: str, most: int = MAX_COUNT, least: int = 0) -> int:
    """A whole number from `least` to `most`; True and 1.0 are not whole numbers."""
    if type(value) is not int or not least <= value <= most:
        raise BundleError(f"{name}: expected a whole number {least} to {most}, found {show(value)}")
    return value


def real(value: Any, name: str) -> float:
    """A finite number, 0 or more."""
    if type(value) is int and 0 <= value <= MAX_COUNT:
        return float(value)
    if type(value) is not float or not math.isfinite(value) or value < 0:
        raise BundleError(f"{name}: expected a number 0 or more, found {show(value)}")
    return value


def matching(value: Any, name: str, pattern: re.Pattern[str], most: int = 64) -> str:
    """A text of at most `most` characters that the pattern matches as a whole."""
    if type(value) is not str or len(value) > most or not pattern.fullmatch(value):
        raise BundleError(
            f"{name}: expected at most {most} characters of the form {pattern.pattern}, "
            f"found {show(value)}"
        )
    return value


def printable(value: Any, name: str, most: int = 256) -> str:
    """Text for people: printable, on one line, at most `most` characters."""
    if type(value) is not str or len(value) > most or not value.isprintable():
        raise BundleError(
            f"{name}: expected at most {most} printable characters, found {show(value)}"
        )
    return value


def sha256_hex(value: Any, name: str) -> str:
    """A SHA-256 in lower-case hex."""
    if type(value) is not str or not _SHA256.fullmatch(value):
        raise BundleError(f"{name}: expected a sha256 in hex, found {show(value)}")
    return value
