"""Opening a bundle: hashes, form of the files, and what reaches the driver."""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load, save

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import BundleMatch, bundle, container, open_bundle, read_manifest
from kernelforge_runtime.errors import BundleError, SpirvError
from tests.runtime.bundle_files import (
    DEVICE,
    SAXPY,
    SAXPY_SHA256,
    SIBLING,
    SIGNATURE,
    bundle_bytes,
    entry,
    kernels_for,
    with_constant,
    write,
    write_bundle,
)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        open_bundle(folder, DEVICE)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_an_opened_bundle_hands_out_checked_modules(tmp_path: Path) -> None:
    opened = open_bundle(write_bundle(tmp_path), DEVICE)
    (only,) = opened.entries
    module = opened.module(only)
    assert module.spirv == SAXPY
    assert module.sha256 == SAXPY_SHA256
    assert module.name == "saxpy/f32/WORKGROUP64"
    assert module.signature == SIGNATURE
    assert opened.module(only) is module
    assert (opened.slug, opened.match, opened.skipped) == ("example-x1", BundleMatch.EXACT, ())
    assert len(opened.sha256) == 64


def test_a_bundle_is_two_regular_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no bundle in .*: No such file")
    refused(tmp_path, "manifest.json is missing")
    manifest, kernels = bundle_bytes()
    (tmp_path / "manifest.json").write_bytes(manifest)
    refused(tmp_path, "kernels.safetensors is missing")
    os.mkfifo(tmp_path / "kernels.safetensors")
    refused(tmp_path, "must be a regular file")  # and does not wait for a writer
    (tmp_path / "kernels.safetensors").unlink()
    (tmp_path / "kernels.safetensors").mkdir()
    refused(tmp_path, "must be a regular file")
    file = tmp_path / "file"
    file.write_bytes(manifest + kernels)
    refused(file, "no bundle in")
    with pytest.raises(BundleError, match="no bundle in"):
        open_bundle("a\0b")


def test_links_are_refused(tmp_path: Path) -> None:
    real = write_bundle(tmp_path / "real")
    for name in ("manifest.json", "kernels.safetensors"):
        linked = write_bundle(tmp_path / f"linked-{name}")
        (linked / name).unlink()
        (linked / name).symlink_to(real / name)
        refused(linked, "not a link")
    (tmp_path / "alias").symlink_to(real)
    assert open_bundle(tmp_path / "alias").entries  # the folder itself is the user's choice


def test_the_name_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    assert open_bundle(write_bundle(tmp_path / "copied here"), DEVICE).slug == "example-x1"


def test_the_kernels_file_is_a_valid_safetensors_file() -> None:
    modules = [with_constant(n) for n in range(5)]
    _, kernels = bundle_bytes(
        entries=[
            entry(Problem(N=n + 1), module_sha256=name)
            for n, name in enumerate(load(kernels_for(b"", modules)))
        ],
        modules=modules,
    )
    tensors = load(kernels)
    assert sorted(t.tobytes() for t in tensors.values()) == sorted(modules)
    digest = container.read_header(kernels)[1]
    assert save(tensors, {"manifest_sha256": digest}) == kernels


def test_the_header_has_one_canonical_form(tmp_path: Path) -> None:
    manifest, kernels = bundle_bytes()
    (length,) = struct.unpack_from("<Q", kernels)
    header, body = kernels[8 : 8 + length], kernels[8 + length :]

    def with_header(changed: bytes, tail: bytes = body) -> bytes:
        padded = changed + b" " * (-len(changed) % 8)
        return struct.pack("<Q", len(padded)) + padded + tail

    assert with_header(header) == kernels
    stripped = header.rstrip()
    spelled = stripped.replace(b'"U32"', b'"U\\u00332"')
    one = stripped[stripped.index(b',"') + 1 : -1]
    for changed in (
        kernels + b"\0\0\0\0",
        kernels[:-4],
        kernels[:20],
        b"",
        with_header(stripped + b" " * 8),
        with_header(stripped.replace(b":", b": ")),
        with_header(spelled),
        with_header(stripped[:-1] + b"," + one + b"}"),
        with_header(stripped[:-1] + b"," + one + b"}", body + body),
        with_header(stripped.replace(b"U32", b"F32")),
        with_header(stripped.replace(b"[0,", b"[00,")),
        with_header(stripped.replace(b"[0,", b"[4,")),
        with_header(stripped.replace(b'_sha256":', b'_sha256":"x","more":')),
        with_header(b"{}"),
        struct.pack("<Q", 2**63) + kernels[8:],
        struct.pack("<Q", length + 1) + header + b" " + body,
        with_header(stripped.replace(b"[0,1312]", b"[4,1316]"), b"\0\0\0\0" + body),
    ):
        write(tmp_path, manifest, changed)
        refused(tmp_path, "kernels.safetensors|manifest.json")


def test_modules_out_of_order_are_refused() -> None:
    one, two = SAXPY, with_constant(1)
    kernels = kernels_for(b"", [one, two])
    start, _, spans = container.read_header(kernels)
    header = kernels[8:start].decode()
    first, second = (name for name, _, _ in spans)
    swapped = header.replace(first, "?").replace(second, first).replace("?", second)
    body = kernels[start + len(one) :] + kernels[start : start + len(one)]
    with pytest.raises(BundleError, match="out of order"):
        container.read_container(kernels[:8] + swapped.encode() + body)


def test_a_module_is_named_by_its_sha256(tmp_path: Path) -> None:
    manifest, kernels = bundle_bytes()
    write(tmp_path, manifest, kernels.replace(SAXPY, with_constant(9)))
    refused(tmp_path, "its sha256 does not match its name")
    text = b"not SPIR-V at all, but long enough.."
    write(tmp_path, manifest, kernels_for(manifest, [text]))
    refused(tmp_path, "is not little-endian SPIR-V")
    big = SAXPY + bytes(container.MAX_MODULE_BYTES)
    write(tmp_path, manifest, kernels_for(manifest, [big]))
    refused(tmp_path, "20 to 1048576 bytes are allowed")


def test_metadata_is_the_sha256_of_the_manifest(tmp_path: Path) -> None:
    _, kernels = bundle_bytes()
    other, _ = bundle_bytes(entries=[entry(median_ns=1)])
    write(tmp_path, other, kernels)
    refused(tmp_path, "does not match the sha256 in kernels.safetensors")
    with pytest.raises(BundleError, match="does not match"):
        read_manifest(tmp_path)


def test_every_module_belongs_to_an_entry(tmp_path: Path) -> None:
    manifest, _ = bundle_bytes()
    write(tmp_path, manifest, kernels_for(manifest, [SAXPY, with_constant(1)]))
    refused(tmp_path, "belongs to no entry")
    write(tmp_path, manifest, kernels_for(manifest, []))
    refused(tmp_path, "is not there")


def test_oversized_files_are_refused_unread(tmp_path: Path) -> None:
    for name, most in (
        ("manifest.json", bundle.MAX_MANIFEST_BYTES),
        ("kernels.safetensors", bundle.MAX_FILE_BYTES),
    ):
        folder = write_bundle(tmp_path / name)
        os.truncate(folder / name, most + 1)  # sparse: takes no room
        refused(folder, f"at most {most} are allowed")


def test_spirv_must_agree_with_the_manifest(tmp_path: Path) -> None:
    lies = (
        replace(SIGNATURE, workgroup=32),
        replace(SIGNATURE, bindings=SIGNATURE.bindings[:1]),
        replace(SIGNATURE, push_constants=SIGNATURE.push_constants[:1]),
        replace(SIGNATURE, bindings=(SIGNATURE.bindings[1], SIGNATURE.bindings[0])),
    )
    for number, lie in enumerate(lies):
        folder = write_bundle(tmp_path / str(number), entries=[entry(signature=lie)])
        opened = open_bundle(folder, DEVICE)
        with pytest.raises(SpirvError, match=r"saxpy/f32/WORKGROUP64.*the signature says"):
            opened.module(opened.entries[0])
        with pytest.raises(SpirvError):
            opened.check()
        with pytest.raises(SpirvError):
            open_bundle(folder, SIBLING)


def test_entries_the_device_cannot_run_are_skipped(tmp_path: Path) -> None:
    needs = {
        "needs float16": replace(SIGNATURE, features=("float16",)),
        "needs a_feature_of_tomorrow": replace(SIGNATURE, features=("a_feature_of_tomorrow",)),
        "needs buffer_device_address": replace(SIGNATURE, addressing="address"),
        "needs workgroups of 256": replace(SIGNATURE, workgroup=256),
        "needs subgroups of 64": replace(SIGNATURE, subgroup=64),
    }
    entries = [entry(Problem(N=9))] + [
        entry(Problem(N=10 + n), signature=signature) for n, signature in enumerate(needs.values())
    ]
    opened = open_bundle(write_bundle(tmp_path, entries=entries), DEVICE)
    assert [e.problem for e in opened.entries] == [Problem(N=9)]
    for (_, reason), expected in zip(opened.skipped, needs, strict=True):
        assert reason.startswith(expected)
    control = replace(DEVICE, features=DEVICE.features | {"subgroup_size_control"}, subgroup_max=64)
    assert len(open_bundle(tmp_path, control).entries) == 2
    small = replace(DEVICE, max_push_constants=4)
    assert "needs 8 bytes of push constants" in open_bundle(tmp_path, small).skipped[0][1]
    assert len(open_bundle(tmp_path).entries) == 6


def test_elsewhere_the_spirv_decides_what_can_run(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    opened = open_bundle(folder, replace(SIBLING, api_version=(1, 0, 0)))
    assert opened.match is BundleMatch.SIMILAR_DEVICE
    assert not opened.entries
    assert "SPIR-V 1.5" in opened.skipped[0][1]


def test_stale_entries_are_named(tmp_path: Path) -> None:
    opened = open_bundle(write_bundle(tmp_path))
    assert opened.stale({"saxpy": "1" * 64, "other": "3" * 64}) == []
    assert opened.stale({"saxpy": "3" * 64}) == ["saxpy: its template has changed; tune it again"]
    assert opened.stale({}) == ["saxpy: there is no such family any more"]


def test_a_foreign_entry_has_no_module(tmp_path: Path) -> None:
    opened = open_bundle(write_bundle(tmp_path), DEVICE)
    with pytest.raises(BundleError, match="not of this bundle"):
        opened.module(entry(module_sha256="f" * 64))


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        open_bundle(folder)
        read_manifest(folder)
    (folder / "kernels.safetensors").write_bytes(b"")
    with pytest.raises(BundleError):
        open_bundle(folder)
    assert len(list(descriptors.iterdir())) == before


def test_the_library_does_not_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("kernelforge_runtime").addHandler(logging.NullHandler())
    open_bundle(write_bundle(tmp_path), DEVICE)
    assert capfd.readouterr() == ("", "")
