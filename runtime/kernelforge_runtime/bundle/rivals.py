"""Bundles of one device, tuned on processors that are not this one: which of them is fastest here.

Of a software device, the processor decides which kernels win. What was found out once is kept in
the cache folder, under a name that stands for the device and for the bundles as they were.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.bundle.bundle import MANIFEST_FILE
from kernelforge_runtime.resources import xdg_dir
from kernelforge_runtime.written_file import written_whole

_log = logging.getLogger(__name__)


def remembered(device: DeviceInfo, rivals: Sequence[Path]) -> Path | None:
    """The fastest of these bundles here; None where that is not known."""
    try:
        digests = [_digest(folder) for folder in rivals]
        kept = _place(device, digests).read_text(encoding="ascii")
        return rivals[digests.index(kept)]
    except (OSError, ValueError):  # not there, not readable, or not what was written
        return None


def remember(device: DeviceInfo, rivals: Sequence[Path], fastest: Path) -> None:
    """Keeps the answer; a disk that refuses costs a warning, and the next start measures again."""
    try:
        digests = [_digest(folder) for folder in rivals]
        place = _place(device, digests)
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as file:
            file.write(digests[rivals.index(fastest)].encode("ascii"))
    except OSError as error:
        _log.warning("which bundle is fastest here could not be kept: %s", error)


def _digest(folder: Path) -> str:
    with (folder / MANIFEST_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(device: DeviceInfo, digests: Sequence[str]) -> Path:
    asked = (device.slug, device.driver_name, device.driver_info, str(device.driver_version))
    name = hashlib.sha256(os.fsencode("\n".join((*asked, device.processor, *digests))))
    return xdg_dir("XDG_CACHE_HOME", ".cache") / "fastest" / name.hexdigest()[:32]
