"""The pipeline cache on disk: what is damaged or foreign never reaches the driver.

Neither software device puts anything behind its cache's header, so that the tests write what a
GPU's driver would.
"""

import dataclasses
import hashlib
import struct
from pathlib import Path

import pytest

from kernelforge_runtime.vk.pipeline_cache import _HEADER, MAGIC, MAX_BYTES, PipelineCache

pytestmark = pytest.mark.vulkan


def driver_blob(info, vendor=None, uuid=None, version=1, payload=b"pipelines" * 50):
    uuid = bytes.fromhex(uuid or info.pipeline_cache_uuid)
    vendor = info.vendor_id if vendor is None else vendor
    return struct.pack("<IIII16s", 32, version, vendor, info.device_id, uuid) + payload


@pytest.fixture
def make(device, tmp_path, monkeypatch):
    """Makes caches of the device below a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make():
        made.append(PipelineCache(device))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


def test_there_is_none_at_first_and_nobody_is_warned(make, tmp_path, caplog):
    cache = make()
    assert cache._loaded == b""
    assert cache.path.is_relative_to(tmp_path / "kernelforge")
    cache.close()
    cache.close()
    assert caplog.messages == []


def test_what_is_written_is_what_the_next_one_loads(make, device):
    blob = driver_blob(device.info)
    make().write(blob)
    again = make()
    assert again._loaded == blob
    assert [p.name for p in again.path.parent.iterdir()] == [again.path.name]


def test_the_same_again_is_not_written_again(make, device):
    make().write(driver_blob(device.info))
    again = make()
    before = again.path.stat().st_mtime_ns
    again.path.chmod(0o400)
    again.write(driver_blob(device.info))
    assert again.path.stat().st_mtime_ns == before


def test_a_bare_header_is_not_worth_a_file(make, device):
    cache = make()
    cache.write(driver_blob(device.info, payload=b""))
    assert not cache.path.exists()


def packed(blob):
    return _HEADER.pack(MAGIC, len(blob), hashlib.sha256(blob).digest()) + blob


DAMAGE = {
    "truncated": lambda data, info: data[:-1],
    "cut to almost nothing": lambda data, info: data[:9],
    "empty": lambda data, info: b"",
    "a bit flipped in the driver's part": lambda data, info: data[:-5] + b"\0" + data[-4:],
    "a bit flipped in the header": lambda data, info: b"X" + data[1:],
    "longer": lambda data, info: data + b"more",
    "another device": lambda data, info: packed(driver_blob(info, vendor=info.vendor_id + 1)),
    "another driver": lambda data, info: packed(driver_blob(info, uuid="ab" * 16)),
    "another header version": lambda data, info: packed(driver_blob(info, version=2)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_ignored_with_one_warning_and_repaired_by_the_next_write(
    make, device, caplog, damage
):
    blob = driver_blob(device.info)
    path = make().path
    make().write(blob)
    path.write_bytes(DAMAGE[damage](path.read_bytes(), device.info))
    cache = make()
    assert cache._loaded == b""
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert "rebuilt" in caplog.messages[0]
    cache.write(blob)
    assert make()._loaded == blob


def test_a_huge_file_is_not_read(make, device, caplog):
    cache = make()
    cache.write(driver_blob(device.info))
    with cache.path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    assert make()._loaded == b""
    assert "too large" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning_only(make, tmp_path, device, caplog):
    (tmp_path / "kernelforge").write_text("a file where the folder should be")
    cache = make()
    cache.write(driver_blob(device.info))
    assert any("not saved" in m for m in caplog.messages)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernelforge"]


def test_a_folder_in_the_file_s_place_leaves_nothing_behind(make, device, caplog):
    cache = make()
    cache.path.mkdir(parents=True)
    make().write(driver_blob(device.info))
    assert any("not saved" in m for m in caplog.messages)
    assert list(cache.path.parent.iterdir()) == [cache.path]


def test_every_driver_has_a_file_of_its_own(make, device, monkeypatch):
    names = {make().path.name}
    for change in (
        {"driver_version": device.info.driver_version + 1},
        {"device_id": device.info.device_id + 1},
        {"pipeline_cache_uuid": "ab" * 16},
    ):
        monkeypatch.setattr(device, "info", dataclasses.replace(device.info, **change))
        names.add(make().path.name)
        monkeypatch.undo()
    assert len(names) == 4


def test_without_a_home_folder_nothing_is_kept(make, device, monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    cache = make()
    assert cache._loaded == b""
    cache.write(driver_blob(device.info))
    assert any("not saved" in m for m in caplog.messages)
