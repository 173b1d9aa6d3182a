"""Names of processes that work on a study, and whether one of them is known to have ended.

A number alone names no process: systems give it away again, containers of one host have their own
numbers, and machines are called alike. So the name also says when and where the number was given.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PROC = Path("/proc")


@lru_cache(maxsize=2)
def _named(pid: int) -> str:
    born = _birth(pid)
    return f"{socket.gethostname()}:{pid}" + (f"@{_place()}.{born}" if born else "")


def this_process() -> str:
    """This process, as `host:number@place.birth`; without the end where no system tells it."""
    return _named(os.getpid())


def is_of_this_host(process: str) -> bool:
    """Whether this machine can tell if a process still runs: same name, boot and numbers."""
    host, _, place, _ = _parts(process)
    return host == socket.gethostname() and place in ("", _place())


def is_gone(process: str) -> bool:
    """Whether a process, as `this_process` names it, is known to have ended.

    So it is where its machine was started again since; unless another one is called the same.
    """
    host, pid, place, born = _parts(process)
    if host != socket.gethostname():
        return False
    if place and place != _place():
        return place.partition("-")[0] != _boot()
    return not _alive(pid, born)


def _parts(process: str) -> tuple[str, int, str, str]:
    """Host, number, place and birth; older versions wrote the first two only."""
    host, _, rest = process.rpartition(":")
    number, _, end = rest.partition("@")
    place, _, born = end.partition(".")
    return host, int(number) if number.isdecimal() else 0, place, born


def _alive(pid: int, born: str) -> bool:
    if pid in (0, os.getpid()):
        return False  # no number; or this process, which is asked about before it has a trial
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    now = _birth(pid)
    return not (born and now) or born == now


def _birth(pid: int) -> str:
    """When the system gave this number away, in its ticks; empty where it does not say."""
    with suppress(OSError, IndexError):
        # The second field is the program's name, which may hold anything.
        text = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2]
        return text.split()[19].decode()
    return ""


@lru_cache(maxsize=1)
def _boot() -> str:
    with suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text().split("-")[0].strip()
    return ""


@lru_cache(maxsize=1)
def _place() -> str:
    """This start of this machine, and the processes that see each other's numbers."""
    with suppress(OSError):
        return f"{_boot()}-{(PROC / 'self/ns/pid').stat().st_ino}"
    return _boot()
