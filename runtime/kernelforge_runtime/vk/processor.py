"""The name of the processor that a software device computes on."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "cpu model", "uarch", "hardware", "processor")
"""Keys of /proc/cpuinfo that hold a model's name, by architecture; the best first."""
MOST = 128


@cache
def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The model's name as the system gives it, on one line; empty where nothing is known."""
    known: dict[str, str] = {}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        known.setdefault(key.strip().lower(), " ".join(value.split()))
    found = (known.get(name, "") for name in _NAMES)
    # On x86 "processor" is a running number, which names nothing.
    name = next((n for n in found if n and not n.isdigit()), "")
    name = name or platform.processor() or platform.machine()
    return "".join(c for c in name if c.isprintable())[:MOST]
