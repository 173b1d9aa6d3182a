"""What is known of a Vulkan device: names, limits, subgroup sizes, features."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

FEATURES = (
    "buffer_device_address",
    "cooperative_matrix",
    "float16",
    "int64",
    "int8",
    "integer_dot",
    "matrix_elements",
    "matrix_flexible",
    "matrix_tensors",
    "matrix_workgroup",
    "storage16",
    "storage8",
    "subgroup_arithmetic",
    "subgroup_clustered",
    "subgroup_shuffle",
    "subgroup_size_control",
    "uniform_windows",
)
"""Every feature name that a kernel may require."""


CooperativeShape = tuple[int, int, int, str, str, str, str]
"""Cooperative matrices D = A B + C of a subgroup: m, n, k, and the element types of A, B, C, D."""


_TABLES = ("cooperative_shapes", "flexible_matrices")
FlexibleMatrix = tuple[int, int, int, str, str, str, str, str, int, int]
"""Cooperative matrices of any multiple of a size: m, n, k, the element types of A, B, C, D, whose
they are ("subgroup" or "workgroup"), invocations of such a workgroup, and the largest size."""


@dataclass(frozen=True)
class DeviceInfo:
    """One physical device as the kernels see it. Sizes in bytes, periods in ns.

    Attributes:
        processor: model of the processor that a device of type "cpu" computes on; empty for others.
    """

    name: str
    device_type: str  # "discrete" "integrated" "virtual" "cpu" "other"
    vendor_id: int
    device_id: int
    driver_name: str
    driver_info: str
    driver_version: int
    api_version: tuple[int, int, int]
    device_uuid: str
    pipeline_cache_uuid: str
    subgroup_size: int
    subgroup_min: int
    subgroup_max: int
    max_workgroup_invocations: int
    max_workgroup_size: tuple[int, int, int]
    max_workgroup_count: tuple[int, int, int]
    max_shared_memory: int
    max_push_constants: int
    max_storage_buffer: int
    min_storage_alignment: int
    timestamp_period_ns: float
    timestamp_bits: int
    memory_bytes: int
    features: frozenset[str]
    cooperative_shapes: tuple[CooperativeShape, ...] = ()
    flexible_matrices: tuple[FlexibleMatrix, ...] = ()
    processor: str = ""

    @property
    def slug(self) -> str:
        """Name for files and folders: `nvidia-h200`, `llvmpipe`, `swiftshader`."""
        name = re.sub(r"\((r|tm|c)\)", " ", self.name, flags=re.IGNORECASE)
        name = re.sub(r"\(.*?\)", " ", name)
        words = re.findall(r"[a-z0-9.]+", name.lower())
        return "-".join(w for w in words if w not in ("device", "graphics", "gpu")) or "unknown"

    def to_json(self) -> dict[str, Any]:
        """Plain data, with features as a sorted list."""
        data = asdict(self)
        data["features"] = sorted(self.features)
        for key, value in data.items():
            if isinstance(value, tuple):
                data[key] = list(value)
        for name in _TABLES:
            data[name] = [list(shape) for shape in getattr(self, name)]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceInfo:
        """Reads what `to_json` wrote; KeyError or TypeError for a wrong form.

        The tables of matrices and the processor may be missing: they were not always written.
        """
        tables = {name: [tuple(shape) for shape in data.get(name, [])] for name in _TABLES}
        data = {"processor": "", **data, **tables}
        known = {f.name: data[f.name] for f in fields(cls)}
        for key, value in known.items():
            if isinstance(value, list):
                known[key] = tuple(value)
        known["features"] = frozenset(known["features"])
        return cls(**known)


GENERIC = DeviceInfo(
    name="generic",
    device_type="other",
    vendor_id=0,
    device_id=0,
    driver_name="",
    driver_info="",
    driver_version=0,
    api_version=(1, 2, 0),
    device_uuid="",
    pipeline_cache_uuid="",
    subgroup_size=0,
    subgroup_min=1,
    subgroup_max=128,
    max_workgroup_invocations=128,
    max_workgroup_size=(128, 128, 64),
    max_workgroup_count=(65535, 65535, 65535),
    max_shared_memory=16384,
    max_push_constants=128,
    max_storage_buffer=2**27,
    min_storage_alignment=256,
    timestamp_period_ns=0.0,
    timestamp_bits=0,
    memory_bytes=2**28,
    features=frozenset({"subgroup_arithmetic"}),
)
"""What every Vulkan 1.2 device that matters can do: the profile of the generic bundle."""
