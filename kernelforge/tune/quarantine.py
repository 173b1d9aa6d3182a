"""Programs that are not run again, because they cost a process or a device its life.

Known by the hash of their SPIR-V, from the journal: what hung a device yesterday hangs it today. A
new driver may do better, so only what this driver did counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from kernelforge.measure.measurement import ENDED, LOSSES, Measurement
from kernelforge_runtime.abi.device_info import DeviceInfo


def quarantined(journal: Iterable[Measurement], info: DeviceInfo) -> dict[str, Measurement]:
    """SPIR-V hash -> the first measurement that was lost with it, on this device and driver."""
    driver = f"{info.driver_name} {info.driver_info}".strip()
    found: dict[str, Measurement] = {}
    for m in journal:
        lost = m.outcome in LOSSES or m.note == ENDED
        if lost and m.spirv_sha256 and (m.device, m.driver) == (info.slug, driver):
            found.setdefault(m.spirv_sha256, m)
    return found
