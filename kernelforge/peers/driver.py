"""Leaves a peer one Vulkan driver: that of the device that it is compared on.

A peer takes whichever device it likes best, and may not say which. The loader reads one manifest
per driver, from folders and variables that its documentation names ("Driver Discovery" in
LoaderDriverInterface.md of Vulkan-Loader), and only what VK_DRIVER_FILES lists where that is set.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path

from kernelforge_runtime.vk import Device

DRIVER_FILES = "VK_DRIVER_FILES"
_OLDER_NAME = "VK_ICD_FILENAMES"
_ADDED = "VK_ADD_DRIVER_FILES"


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3): what holds an address."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def only_driver_of(device: Device) -> dict[str, str]:
    """Variables for a process that is to see no other driver than this device's.

    Empty where it is not known which that is: on systems without dladdr, or with a layer between.
    Devices of one driver are not told apart.
    """
    library = _library(device)
    if library is None:
        return {}
    found = [manifest for manifest in manifests() if _is_of(manifest, library)]
    return {DRIVER_FILES: os.pathsep.join(map(str, found))} if found else {}


def manifests() -> list[Path]:
    """Every driver's manifest that the loader of this process reads."""
    listed = os.environ.get(DRIVER_FILES) or os.environ.get(_OLDER_NAME)
    if listed:
        return [*_in_list(listed)]
    added = [*_in_list(os.environ.get(_ADDED, ""))]
    return added + [file for folder in _folders() for file in sorted(folder.glob("*.json"))]


def _in_list(text: str) -> Iterator[Path]:
    """Manifests of a variable: files, and those in folders."""
    for name in filter(None, text.split(os.pathsep)):
        path = Path(name)
        yield from sorted(path.glob("*.json")) if path.is_dir() else [path]


def _folders() -> Iterator[Path]:
    home = Path.home()
    places = (
        os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config",
        *(os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep),
        "/usr/local/etc",
        "/etc",
        os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share",
        *(os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(os.pathsep),
    )
    for place in dict.fromkeys(filter(None, places)):
        yield Path(place) / "vulkan" / "icd.d"


def _library(device: Device) -> Path | None:
    """The file that has the device's commands: told by one that overlays leave alone."""
    pointer = device.lib.vkGetDeviceProcAddr(device.handle, b"vkGetDeviceMemoryCommitment")
    address = int(device.ffi.cast("uintptr_t", pointer))
    place = _Place()
    try:
        known = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(place))
    except (OSError, AttributeError, TypeError):
        return None
    return Path(os.fsdecode(place.file)) if known and place.file else None


def _is_of(manifest: Path, library: Path) -> bool:
    """Whether a manifest names this library; a bare name is looked for where libraries are."""
    try:
        named = str(json.loads(manifest.read_bytes())["ICD"]["library_path"])
        if os.sep not in named:
            return Path(named).name == library.name
        return (manifest.parent / named).resolve() == library.resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return False
