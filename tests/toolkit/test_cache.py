import logging
import multiprocessing

import pytest

from kernelforge.compile.cache import SpirvCache
from kernelforge.compile.glslang import FLAGS, Compiler

COMPILER = Compiler("/bin/glslang", "11:12.0.0")
KEY = SpirvCache.key("void main() {}", COMPILER)


@pytest.fixture
def cache(tmp_path):
    return SpirvCache(tmp_path / "spirv")


def entry(cache):
    [path] = [p for p in cache.folder.rglob("*") if p.is_file()]
    return path


def test_what_was_put_comes_back(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, b"words")
    assert cache.get(KEY) == b"words"
    cache.put(KEY, b"words")
    assert entry(cache).name == f"{KEY}.spv"


def test_source_flags_and_compiler_version_decide_the_key():
    keys = {
        KEY,
        SpirvCache.key("void main() { }", COMPILER),
        SpirvCache.key("void main() {}", Compiler("/bin/glslang", "11:13.0.0")),
        SpirvCache.key("void main() {}", COMPILER, (*FLAGS, "-Os")),
        SpirvCache.key("void main() {}", COMPILER, (*FLAGS[:-2], "".join(FLAGS[-2:]))),
    }
    assert len(keys) == 5
    assert SpirvCache.key("void main() {}", Compiler("/usr/bin/other", "11:12.0.0")) == KEY


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
)
def test_a_damaged_entry_is_not_used_and_can_be_replaced(cache, caplog, damage):
    cache.put(KEY, b"words")
    path = entry(cache)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert "is damaged: compiling again" in caplog.text
    cache.put(KEY, b"words")
    assert cache.get(KEY) == b"words"


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_no_result(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = SpirvCache(tmp_path / "file" / "spirv")
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, b"words")
        cache.put(KEY, b"words")
    assert cache.get(KEY) is None
    assert caplog.text.count("cannot keep compiled kernels") == 1


def test_the_default_folder_is_below_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERNELFORGE_CACHE", str(tmp_path))
    assert SpirvCache().folder == tmp_path / "spirv"


def _hammer(folder, seed):
    cache = SpirvCache(folder)
    for i in range(100):
        data = cache.get(KEY)
        assert data in (None, b"words" * 5000)
        if (i + seed) % 3 == 0:
            cache.put(KEY, b"words" * 5000)


def test_processes_that_share_a_folder_never_see_half_an_entry(cache):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hammer, args=(cache.folder, i)) for i in range(2)]
    for worker in workers:
        worker.start()
    _hammer(cache.folder, 2)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    entry(cache)  # no temporary file is left
