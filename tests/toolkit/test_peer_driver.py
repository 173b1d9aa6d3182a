"""A peer sees the driver of the device that it is compared on, and no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelforge.peers import driver
from kernelforge.peers.driver import DRIVER_FILES, manifests, only_driver_of
from kernelforge_runtime.vk import Device
from tests.conftest import DEVICES

FIND = """
import json, sys
from kernelforge.peers.driver import only_driver_of
from kernelforge_runtime import open_device
with open_device(sys.argv[1]) as device:
    print(json.dumps(only_driver_of(device)))
"""
LIST = "from kernelforge_runtime import list_devices; print(*[d.slug for d in list_devices()])"


def said(script: str, *args: str, **variables: str) -> str:
    """By a process of its own, without the validation layer: that would be before the driver."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    env.pop("KERNELFORGE_VALIDATION", None)
    done = subprocess.run(
        [sys.executable, "-c", script, *args], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.vulkan
@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_another_process_finds_that_devices_driver_alone(device: Device) -> None:
    found = json.loads(said(FIND, device.info.slug))
    if not found:
        pytest.skip("the driver of this device has no manifest in a place that is known")
    assert said(LIST, **found).split() == [device.info.slug]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable of the loader is set, and folders are searched below this one."""
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def manifest(path: Path, library: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"ICD": {"library_path": library}}))
    return path


def test_manifests_are_those_that_the_loader_reads(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = manifest(plain / "XDG_DATA_DIRS" / "vulkan" / "icd.d" / "a.json", "liba.so")
    added = manifest(plain / "more" / "b.json", "libb.so")
    assert usual in manifests()
    assert added not in manifests()
    monkeypatch.setenv("VK_ADD_DRIVER_FILES", str(added.parent))
    assert manifests()[0] == added
    assert usual in manifests()
    monkeypatch.setenv(DRIVER_FILES, f"{usual}{os.pathsep}{plain / 'gone.json'}")
    assert manifests() == [usual, plain / "gone.json"]


@pytest.mark.vulkan
def test_damaged_manifests_and_unknown_drivers_leave_everything_visible(
    llvmpipe: Device, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain / "XDG_DATA_DIRS" / "vulkan" / "icd.d"
    manifest(folder / "number.json", 3)
    (folder / "broken.json").write_bytes(b"\xff{")
    (folder / "list.json").write_text("[]")
    (folder / "folder.json").mkdir()
    monkeypatch.setattr(driver, "_library", lambda device: Path("/nowhere/libnone.so"))
    assert only_driver_of(llvmpipe) == {}
    right = manifest(folder / "right.json", "../../../libnone.so")
    monkeypatch.setattr(driver, "_library", lambda device: plain / "libnone.so")
    assert only_driver_of(llvmpipe) == {DRIVER_FILES: str(right)}
    monkeypatch.setattr(driver, "_library", lambda device: None)
    assert only_driver_of(llvmpipe) == {}
