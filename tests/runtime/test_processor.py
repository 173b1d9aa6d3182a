"""The name of the processor behind a software device."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk import list_devices
from kernelforge_runtime.vk.processor import MOST, processor_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Fast(R)  9000 @ 2 GHz\n", "Fast(R) 9000 @ 2 GHz"),
        ("processor\t: 0\nmodel name\t: One\nprocessor\t: 1\nmodel name\t: Two\n", "One"),
        ("processor\t: 0\nhart\t: 0\nuarch\t: example,u74\n", "example,u74"),
        ("Processor\t: ARMv7 rev 4\nHardware\t: Example Board\n", "Example Board"),
        ("model name\t: a\x1bb\x7f" + "c" * 500 + "\n", "ab" + "c" * (MOST - 2)),
    ],
)
def test_the_first_model_named_by_the_system_is_taken(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_name(tmp_path / "cpuinfo") == name


def test_a_system_that_tells_nothing_gives_what_python_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "example64")
    assert processor_name(tmp_path / "nothing") == "example64"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: Example\n")
    assert processor_name(tmp_path / "cpuinfo") == "example64"


def test_only_software_devices_have_a_processor() -> None:
    try:
        found = list_devices()
    except DeviceError as error:
        pytest.skip(f"no Vulkan here: {error}")
    if not found:
        pytest.skip("no Vulkan device here")
    for info in found:
        assert bool(info.processor) == (info.device_type == "cpu")
        assert DeviceInfo.from_json(info.to_json()) == info


def test_a_profile_written_before_processors_were_kept_is_read() -> None:
    data = GENERIC.to_json()
    del data["processor"]
    assert DeviceInfo.from_json(data) == GENERIC
