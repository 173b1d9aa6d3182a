"""What the host can give: of the system, and of a container's limit."""

import pytest

import kernelforge_runtime as kf
from kernelforge_runtime import host_memory
from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.errors import OutOfMemoryError
from tests.models.checkpoints import random_rwkv7


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Writes what the system says of itself."""
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_GROUP", tmp_path)

    def write(**files):
        for path in tmp_path.iterdir():
            path.unlink()
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return write


def test_the_less_of_the_systems_and_of_the_containers_is_what_there_is(host):
    system = "MemTotal:       9000 kB\nMemAvailable:    100 kB\n"
    host(meminfo=system)
    assert host_memory.available_bytes() == 102_400
    group = {"memory_max": "50000\n", "memory_current": "30000\n"}
    host(meminfo=system, **group)
    assert host_memory.available_bytes() == 20_000
    host(meminfo=system, **group, memory_stat="anon 5\ninactive_file 1000\n")
    assert host_memory.available_bytes() == 21_000
    host(meminfo=system, memory_max="max\n", memory_current="30000\n")
    assert host_memory.available_bytes() == 102_400
    host(memory_max="5\n", memory_current="30\n")
    assert host_memory.available_bytes() == 0


@pytest.mark.parametrize(
    "text", ["", "MemAvailable: much kB", "\0\xff", "MemAvailable:" + "9" * 99]
)
def test_a_system_that_does_not_say_refuses_nothing(host, text):
    host(meminfo=text)
    assert host_memory.available_bytes() is None
    PrefixCache(1 << 60).require_room()


def test_an_engine_refuses_a_cache_that_the_host_has_no_room_for(host, tmp_path_factory):
    path = random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors")
    host(meminfo="MemAvailable:    100 kB\n")
    with kf.load_reference(path) as model:
        with pytest.raises(OutOfMemoryError, match=r"102,401 bytes.* the host has 102,400: give"):
            kf.Engine(model, slots=1, prefix_cache=102_401)
        assert kf.Engine(model, slots=1, prefix_cache=102_400).prefix_cache is not None
