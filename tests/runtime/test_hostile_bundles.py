"""A bundle from anywhere can be refused, but can do no harm.

`KERNELFORGE_FUZZ_CASES=100000` runs the random part for longer: that many cases over four tests.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import KernelSet, open_bundle, read_manifest
from kernelforge_runtime.errors import BundleError, SpirvError
from tests.runtime.bundle_files import (
    DEVICE,
    SAXPY,
    SAXPY_SHA256,
    SIBLING,
    bundle_bytes,
    entry,
    kernels_for,
    with_constant,
    write,
    write_bundle,
)

CASES = int(os.environ.get("KERNELFORGE_FUZZ_CASES", "400"))
FUZZ = settings(
    max_examples=max(1, CASES // 4),
    deadline=None,
    database=None,
    derandomize="KERNELFORGE_FUZZ_CASES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
MANIFEST, KERNELS = bundle_bytes()
FLOOR_BYTES = 2 << 20  # what a small bundle may take beyond three times its size


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        yield Path(name)


def use(folder: Path) -> None:
    """Does all that a runtime does before the driver comes in; only our errors may come out."""
    for device in (None, DEVICE, SIBLING):
        with contextlib.suppress(BundleError, SpirvError):
            read_manifest(folder)
        try:
            bundle = open_bundle(folder, device)
        except (BundleError, SpirvError) as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
            continue
        with contextlib.suppress(SpirvError):
            bundle.check()
        bundle.stale({"saxpy": "1" * 64})
        kernels = KernelSet([bundle])
        kernels.describe()
        with contextlib.suppress(BundleError):
            kernels.select("saxpy", "f32", Problem(N=3))


def flip_refused(folder: Path, name: str, positions: range, bits: range) -> None:
    """Flips each of the bits of each of the bytes, one at a time."""
    with (folder / name).open("r+b", buffering=0) as file:
        data = file.read()
        for position in positions:
            for bit in bits:
                os.pwrite(file.fileno(), bytes([data[position] ^ (1 << bit)]), position)
                with pytest.raises(BundleError):
                    open_bundle(folder, DEVICE)
            os.pwrite(file.fileno(), data[position : position + 1], position)
    open_bundle(folder, DEVICE).check()


def test_every_flipped_bit_is_refused(folder: Path) -> None:
    write(folder, MANIFEST, KERNELS)
    header = 8 + struct.unpack_from("<Q", KERNELS)[0]
    flip_refused(folder, "manifest.json", range(len(MANIFEST)), range(8))
    flip_refused(folder, "kernels.safetensors", range(header), range(8))
    flip_refused(folder, "kernels.safetensors", range(header, len(KERNELS)), range(3, 4))


def test_every_truncation_is_refused(folder: Path) -> None:
    for name, data in (("manifest.json", MANIFEST), ("kernels.safetensors", KERNELS)):
        write(folder, MANIFEST, KERNELS)
        for length in range(len(data)):
            (folder / name).write_bytes(data[:length])
            with pytest.raises(BundleError):
                open_bundle(folder, DEVICE)


Edit = tuple[int, int, bytes]
EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 16), st.binary(max_size=16)),
    min_size=1,
    max_size=6,
)


def edit(data: bytes, edits: list[Edit]) -> bytes:
    for position, removed, added in edits:
        start = position % (len(data) + 1)
        data = data[:start] + added + data[start + removed :]
    return data


@FUZZ
@given(EDITS, EDITS, st.integers(1, 3))
def test_random_edits_of_the_files_do_no_harm(
    folder: Path, first: list[Edit], second: list[Edit], which: int
) -> None:
    manifest = edit(MANIFEST, first) if which & 1 else MANIFEST
    kernels = edit(KERNELS, second) if which & 2 else KERNELS
    write(folder, manifest, kernels)
    use(folder)


@FUZZ
@given(EDITS)
def test_random_edits_of_the_text_with_a_right_hash_do_no_harm(
    folder: Path, edits: list[Edit]
) -> None:
    manifest = edit(MANIFEST, edits)
    write(folder, manifest, kernels_for(manifest))
    use(folder)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=80)
    | st.sampled_from(["", "..", "N", "N/0", "f32", "read", "A" * 300, 2**31, 2**64, 10**30, -0.0]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inner:
        yield (*here, key)
        if isinstance(child, dict | list):
            yield from paths(child, (*here, key))


PATHS = sorted(paths(json.loads(MANIFEST)), key=repr)


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=3))
def test_random_values_with_a_right_hash_do_no_harm(
    folder: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    data = json.loads(MANIFEST)
    for (*way, last), value in changes:
        place = data
        with contextlib.suppress(KeyError, IndexError, TypeError):  # changed before: no such place
            for key in way:
                place = place[key]
            if isinstance(place, dict) == isinstance(last, str):
                place[last] = copy.deepcopy(value)
    manifest = (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()
    write(folder, manifest, kernels_for(manifest))
    use(folder)


@FUZZ
@given(st.lists(st.tuples(st.integers(1, len(SAXPY) // 4 - 1), st.integers(0, 2**32 - 1))))
def test_random_spirv_with_right_hashes_does_no_harm(
    folder: Path, words: list[tuple[int, int]]
) -> None:
    spirv = bytearray(SAXPY)
    for index, word in words:
        struct.pack_into("<I", spirv, 4 * index, word)
    name = hashlib.sha256(spirv).hexdigest()
    manifest = MANIFEST.replace(SAXPY_SHA256.encode(), name.encode())
    write(folder, manifest, kernels_for(manifest, [bytes(spirv)]))
    use(folder)


def peak_of_opening(folder: Path) -> tuple[int, int]:
    """Most memory that opening took, and the size of the two files, in bytes."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    with contextlib.suppress(BundleError, SpirvError):
        open_bundle(folder, DEVICE)  # once before, so that imports and caches do not count
    tracemalloc.start()
    try:
        opened = None
        with contextlib.suppress(BundleError, SpirvError):
            opened = open_bundle(folder, DEVICE)
        return tracemalloc.get_traced_memory()[1], size
    finally:
        del opened
        tracemalloc.stop()


def dense_entry(text: bytes, number: int) -> bytes:
    """An entry with as much in as little text as the format lets through."""
    data = json.loads(text)
    data["problem"] = {"N": number}
    data["signature"]["bindings"] = [[f"b{number}_{i}", "f32", [], "read"] for i in range(32)]
    dense = json.dumps(data, sort_keys=True, indent=0).replace("\n", "\n      ")
    return f"    {dense[: dense.rindex(chr(10))]}\n    }}".encode()


def test_memory_stays_within_three_times_the_files(tmp_path: Path) -> None:
    many = [entry(Problem(N=n)) for n in range(1, 1501)]
    modules = [with_constant(n) for n in range(1, 301)]
    each = [
        entry(Problem(N=n), module_sha256=hashlib.sha256(module).hexdigest())
        for n, module in enumerate(modules, start=1)
    ]
    wide = b"[" + b"[]," * 1_000_000 + b"[]]"
    object_ = b"{" + b",".join(b'"%d":0' % n for n in range(200_000)) + b"}"
    text = {
        "wide list in an entry": MANIFEST.replace(b"1e-07", wide),
        "wide object in an entry": MANIFEST.replace(b"1e-07", object_),
        "wide list elsewhere": MANIFEST.replace(b"9.5", wide),
        "wide object elsewhere": MANIFEST.replace(b"9.5", object_),
        "many small entries": MANIFEST.replace(
            b'  ],\n  "format"', b",\n    {\n    }" * 200_000 + b'\n  ],\n  "format"'
        ),
    }
    start = MANIFEST.index(b'    {\n      "default_ns"')
    end = MANIFEST.index(b'\n  ],\n  "format"')
    text["dense entries, no two alike"] = (
        MANIFEST[:start]
        + b",\n".join(dense_entry(MANIFEST[start:end], n) for n in range(1, 201))
        + MANIFEST[end:]
    )
    folders = [write(tmp_path / name, data, kernels_for(data)) for name, data in text.items()]
    folders.append(write_bundle(tmp_path / "many entries", entries=many))
    folders.append(write_bundle(tmp_path / "many modules", entries=each, modules=modules))
    hostile = folders.pop(-3)
    for folder in folders:
        peak, size = peak_of_opening(folder)
        assert peak <= 3 * size + FLOOR_BYTES, f"{folder.name}: {peak} bytes for {size}"
    assert len(open_bundle(hostile).entries) == 200  # valid, if not what the writer writes
    peak, size = peak_of_opening(hostile)
    assert peak <= 4 * size + FLOOR_BYTES, f"{hostile.name}: {peak} bytes for {size}"


def test_a_random_bundle_is_read_the_same_way_twice(folder: Path) -> None:
    rng = random.Random(7)
    for _ in range(20):
        entries = [entry(Problem(N=n)) for n in sorted(rng.sample(range(1, 10**6), 5))]
        write_bundle(folder, entries=entries)
        one, two = open_bundle(folder, DEVICE), open_bundle(folder, DEVICE)
        assert one.manifest == two.manifest
        assert one.sha256 == two.sha256
        assert list(one.entries) == entries
