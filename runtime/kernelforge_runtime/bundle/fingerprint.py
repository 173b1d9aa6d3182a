"""Which device a bundle was tuned on, and how well that fits the device at hand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.bundle.strict_json import count, listed, matching, printable, record
from kernelforge_runtime.errors import BundleError

SLUG = re.compile(r"[a-z0-9]+([.-]+[a-z0-9]+)*")
"""Device slugs that may name a folder: no separator, nothing hidden, never `.` or `..`."""
FEATURE = re.compile(r"[a-z][a-z0-9_]*")
MAX_FEATURES = 64
_NOT_KEPT = frozenset({"integer_dot", "uniform_windows"})
"""Features that tell nothing of a device which its driver does not, asked for since bundles exist:
one that was tuned before is tuned for the same device. Each kernel names what it needs itself."""
_U32 = 2**32 - 1
_U64 = 2**64 - 1

_LIMITS = (
    "max_push_constants",
    "max_shared_memory",
    "max_storage_buffer",
    "max_workgroup_invocations",
    "min_storage_alignment",
)
_LIMITS_3D = ("max_workgroup_count", "max_workgroup_size")


class BundleMatch(Enum):
    """How a bundle's device relates to the one at hand, best first."""

    EXACT = "tuned on this device and driver"
    OTHER_PROCESSOR = "tuned on this device on another processor"
    OTHER_DRIVER = "tuned on this device under another driver"
    SIMILAR_DEVICE = "tuned on a similar device"
    OTHER_DEVICE = "tuned on another device"
    GENERIC = "generic"


@dataclass(frozen=True)
class Fingerprint:
    """What a manifest keeps of a DeviceInfo: nothing that tells one card from its twin.

    Attributes:
        limits: limits by DeviceInfo's names; three numbers where the limit has three axes.
        api_version: newest version of Vulkan that the driver offers; None where it was not kept.
        processor: model of the processor behind a device of type "cpu", whose speed is the
            device's; empty where it was not kept, and for other devices.
    """

    name: str
    slug: str
    device_type: str
    vendor_id: int
    device_id: int
    driver_name: str
    driver_info: str
    driver_version: int
    subgroup: tuple[int, int, int]
    """Subgroup size: usual, smallest, largest."""
    features: frozenset[str]
    limits: tuple[tuple[str, int | tuple[int, ...]], ...]
    api_version: tuple[int, ...] | None = None
    processor: str = ""

    @classmethod
    def of(cls, info: DeviceInfo) -> Fingerprint:
        """The fingerprint of a device."""
        limits = {name: getattr(info, name) for name in (*_LIMITS, *_LIMITS_3D)}
        return cls(
            name=info.name,
            slug=info.slug,
            device_type=info.device_type,
            vendor_id=info.vendor_id,
            device_id=info.device_id,
            driver_name=info.driver_name,
            driver_info=info.driver_info,
            driver_version=info.driver_version,
            subgroup=(info.subgroup_size, info.subgroup_min, info.subgroup_max),
            features=info.features - _NOT_KEPT,
            limits=tuple(sorted(limits.items())),
            api_version=info.api_version,
            processor=info.processor,
        )

    @property
    def generic(self) -> bool:
        """Whether this is the profile that stands for any device."""
        return self.slug == GENERIC.slug and self.vendor_id == GENERIC.vendor_id

    @property
    def driver(self) -> str:
        """Driver name and version for people."""
        return f"{self.driver_name} {self.driver_info or self.driver_version}".strip() or "none"

    def to_json(self) -> dict[str, Any]:
        """Form kept in manifests."""
        size, smallest, largest = self.subgroup
        limits = {k: list(v) if isinstance(v, tuple) else v for k, v in self.limits}
        kept: dict[str, Any] = {}
        if self.api_version is not None:
            kept["api_version"] = list(self.api_version)
        if self.processor:
            kept["processor"] = self.processor
        return {
            **kept,
            "device_id": self.device_id,
            "device_type": self.device_type,
            "driver_info": self.driver_info,
            "driver_name": self.driver_name,
            "driver_version": self.driver_version,
            "features": sorted(self.features),
            "limits": limits,
            "name": self.name,
            "slug": self.slug,
            "subgroup": {"max": largest, "min": smallest, "size": size},
            "vendor_id": self.vendor_id,
        }

    @classmethod
    def from_json(cls, data: Any) -> Fingerprint:
        """Reads what `to_json` wrote; a wrong form raises BundleError."""
        record(data, _KEYS, optional=_LATER_KEYS)
        subgroup = record(data["subgroup"], ("max", "min", "size"))
        limits: dict[str, int | tuple[int, ...]] = {}
        record(data["limits"], (*_LIMITS, *_LIMITS_3D))
        for name in _LIMITS:
            limits[name] = count(data["limits"][name], name, _U64)
        for name in _LIMITS_3D:
            axes = listed(data["limits"][name], name, 3, 3)
            limits[name] = tuple(count(axis, name, _U32) for axis in axes)
        features = [
            matching(feature, "feature", FEATURE)
            for feature in listed(data["features"], "features", MAX_FEATURES)
        ]
        if features != sorted(set(features)):
            raise BundleError("features: expected names in order, each once")
        return cls(
            name=printable(data["name"], "name"),
            slug=matching(data["slug"], "slug", SLUG, 128),
            device_type=matching(data["device_type"], "device_type", FEATURE),
            vendor_id=count(data["vendor_id"], "vendor_id", _U32),
            device_id=count(data["device_id"], "device_id", _U32),
            driver_name=printable(data["driver_name"], "driver_name"),
            driver_info=printable(data["driver_info"], "driver_info"),
            driver_version=count(data["driver_version"], "driver_version", _U32),
            subgroup=(
                count(subgroup["size"], "subgroup size", 1024),
                count(subgroup["min"], "subgroup min", 1024),
                count(subgroup["max"], "subgroup max", 1024),
            ),
            features=frozenset(features),
            limits=tuple(sorted(limits.items())),
            api_version=_version(data["api_version"]) if "api_version" in data else None,
            processor=printable(data.get("processor", ""), "processor"),
        )

    def match(self, device: DeviceInfo) -> BundleMatch:
        """How the tuned device relates to `device`."""
        if self.generic:
            return BundleMatch.GENERIC
        other = Fingerprint.of(device)
        if (self.slug, self.vendor_id) == (other.slug, other.vendor_id):
            differing = self.differences(other)
            if not differing:
                return BundleMatch.EXACT
            only = [name for name, _, _ in differing] == ["processor"]
            return BundleMatch.OTHER_PROCESSOR if only else BundleMatch.OTHER_DRIVER
        if self.capability_class == other.capability_class:
            return BundleMatch.SIMILAR_DEVICE
        return BundleMatch.OTHER_DEVICE

    def differences(self, other: Fingerprint) -> list[tuple[str, str, str]]:
        """What tells two fingerprints of one device apart: name, here, there; empty if nothing.

        What one of them does not know is no difference.
        """
        found = []
        # driver_info too: software devices give 1 as the version of every driver.
        names = ("driver_name", "driver_info", "driver_version")
        if any(getattr(self, name) != getattr(other, name) for name in names):
            mine, theirs = self.driver, other.driver
            if mine == theirs:
                mine, theirs = (f"{f.driver} ({f.driver_version})" for f in (self, other))
            found.append(("driver", mine, theirs))
        if self.device_id != other.device_id:
            found.append(("device id", f"{self.device_id:#x}", f"{other.device_id:#x}"))
        if self.subgroup != other.subgroup:
            mine, theirs = (f"{s} ({a} to {b})" for s, a, b in (self.subgroup, other.subgroup))
            found.append(("subgroup size", mine, theirs))
        if self.features != other.features:
            gone, new = self.features - other.features, other.features - self.features
            found.append(("features", _names("with", gone), _names("with", new)))
        if None not in (self.api_version, other.api_version) and (
            self.api_version != other.api_version
        ):
            mine, theirs = (".".join(map(str, f.api_version or ())) for f in (self, other))
            found.append(("Vulkan", mine, theirs))
        if self.processor and other.processor and self.processor != other.processor:
            found.append(("processor", self.processor, other.processor))
        return found

    @property
    def capability_class(self) -> tuple[int, tuple[int, int, int], frozenset[str]]:
        """Vendor, subgroup sizes and features: devices of one class like the same kernels."""
        return self.vendor_id, self.subgroup, self.features


_KEYS = (
    "device_id",
    "device_type",
    "driver_info",
    "driver_name",
    "driver_version",
    "features",
    "limits",
    "name",
    "slug",
    "subgroup",
    "vendor_id",
)
_LATER_KEYS = ("api_version", "processor")
"""Not in every manifest: they were not kept from the beginning, or say nothing of the device."""


def _version(data: Any) -> tuple[int, ...]:
    parts = listed(data, "api_version", 3, 3)
    return tuple(count(part, "api_version", _U32) for part in parts)


def _names(before: str, features: frozenset[str]) -> str:
    return f"{before} {', '.join(sorted(features))}" if features else "no others"


def why_not(signature: Signature, device: DeviceInfo) -> str | None:
    """Why `device` cannot run a kernel of this signature; None when it can."""
    missing = sorted(set(signature.features) - device.features)
    if missing:
        return f"needs {', '.join(missing)}"
    if signature.addressing == "address" and "buffer_device_address" not in device.features:
        return "needs buffer_device_address"
    most = min(device.max_workgroup_invocations, device.max_workgroup_size[0])
    if signature.workgroup > most:
        return f"needs workgroups of {signature.workgroup} invocations; the device has {most}"
    if signature.push_constant_bytes > device.max_push_constants:
        return (
            f"needs {signature.push_constant_bytes} bytes of push constants; "
            f"the device has {device.max_push_constants}"
        )
    size = signature.subgroup
    if size and size != device.subgroup_size:
        if "subgroup_size_control" not in device.features:
            return f"needs subgroups of {size}; the device has {device.subgroup_size}"
        if not device.subgroup_min <= size <= device.subgroup_max:
            return (
                f"needs subgroups of {size}; "
                f"the device has {device.subgroup_min} to {device.subgroup_max}"
            )
    return None
