"""How much memory the host can still give: what will be kept there is refused beforehand."""

from __future__ import annotations

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Bytes that can be had without swapping, within a container's limit; None if not known.

    Source: proc(5), MemAvailable; the kernel's cgroup-v2.rst, memory.max.
    """
    known = [size for size in (_of_system(), _of_group()) if size is not None]
    return min(known, default=None)


def _of_system() -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d{1,15}) kB$", _text(_MEMINFO), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _of_group() -> int | None:
    """What a container's limit leaves; files that are merely cached do not count."""
    most, used = _text(_GROUP / "memory.max").strip(), _text(_GROUP / "memory.current").strip()
    if not (most.isdigit() and used.isdigit()):
        return None
    cached = re.search(r"^inactive_file (\d{1,18})$", _text(_GROUP / "memory.stat"), re.MULTILINE)
    return max(0, int(most) - int(used) + (int(cached[1]) if cached else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
