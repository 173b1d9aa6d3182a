"""Lists the Vulkan devices of this machine and the bundle that each would use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kernelforge.cli.output import Output
from kernelforge.stale import age
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.bundle import BundleMatch, locate, open_bundle
from kernelforge_runtime.errors import BundleError, DeviceError, KernelForgeError
from kernelforge_runtime.vk import list_devices

HEADERS = (
    "#", "name", "type", "driver", "subgroup", "float16", "int8", "coopmat", "BDA", "memory",
    "bundle",
)  # fmt: skip
EXACTNESS = {
    BundleMatch.EXACT: "exact",
    BundleMatch.OTHER_PROCESSOR: "other processor",
    BundleMatch.OTHER_DRIVER: "other driver",
    BundleMatch.SIMILAR_DEVICE: "similar device",
    BundleMatch.OTHER_DEVICE: "other device",
    BundleMatch.GENERIC: "generic",
}

RENDERED = 8
"""Kernels of each family with an edited template that are looked at: a list of devices is quick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This verb has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    output = Output(args)
    found = list_devices()
    if not found:
        raise DeviceError(
            "no Vulkan device: the loader found no driver; install one "
            "(apt-get install mesa-vulkan-drivers) or run on the CPU with --device cpu"
        )
    bundles = [_bundle(info) for info in found]
    listed = list(zip(found, bundles, strict=True))
    output.table(HEADERS, [_row(i, *pair) for i, pair in enumerate(listed)])
    for bundle in bundles:
        if bundle["match"] != "exact":
            output.note(bundle["reason"])
        if bundle["stale"]:
            output.note(f"{bundle['path']}: {bundle['stale']}")
    described = [
        {"index": i, "slug": info.slug, **info.to_json(), "bundle": bundle}
        for i, (info, bundle) in enumerate(listed)
    ]
    output.document({"devices": described})
    return 0


def _bundle(info: DeviceInfo) -> dict[str, Any]:
    """Which bundle the device would use: path, how exact, and why."""
    if info.api_version < (1, 2, 0):
        version = ".".join(map(str, info.api_version))
        reason = f"{info.name}: Vulkan {version} only; 1.2 is needed"
        return {"path": None, "match": "none", "reason": reason, "stale": ""}
    try:
        located = locate(info)
    except BundleError as error:
        return {"path": None, "match": "none", "reason": str(error), "stale": ""}
    return {
        "path": located.bundle_path,
        "match": EXACTNESS[located.match],
        "reason": located.reason,
        "stale": _stale(located.bundle_path),
    }


def _stale(folder: Path) -> str:
    """What has become of it since it was made, on one line; `inspect` looks at every kernel."""
    try:
        bundle = open_bundle(folder)
        known = age(bundle, most=RENDERED) or age(bundle, templates=False)
    except KernelForgeError as error:
        return str(error)
    if known is None or known.stale or not known.edited:
        return known.line() if known is not None else ""
    return (
        f"templates were edited since: {', '.join(known.edited)}; kernelforge inspect {folder} "
        "says whether that reached a kernel"
    )


def _row(index: int, info: DeviceInfo, bundle: dict[str, Any]) -> list[str]:
    size = str(info.subgroup_size)
    if info.subgroup_min != info.subgroup_max:
        size = f"{info.subgroup_min} to {info.subgroup_max}"
    features = ("float16", "int8", "cooperative_matrix", "buffer_device_address")
    path = bundle["path"]
    return [
        str(index),
        info.name,
        info.device_type,
        f"{info.driver_name} {info.driver_info}".strip(),
        size,
        *("yes" if feature in info.features else "no" for feature in features),
        f"{info.memory_bytes / 2**30:.1f} GiB",
        _named(path, bundle["match"]),
    ]


def _named(path: Path | None, match: str) -> str:
    if path is None:
        return "none"
    return path.name if path.name == match else f"{path.name} ({match})"
