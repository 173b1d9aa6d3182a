"""Small real bundles for tests: a compiled saxpy kernel, and the ways to damage a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.bundle import Entry, Fingerprint, Manifest, Toolchain, Verified
from kernelforge_runtime.bundle.container import write_container
from kernelforge_runtime.dtypes import F32

SAXPY = (Path(__file__).parent / "fixtures" / "saxpy.spirv").read_bytes()
SAXPY_SHA256 = hashlib.sha256(SAXPY).hexdigest()
SIGNATURE = Signature(
    bindings=(Binding("x", F32, ("N",)), Binding("y", F32, ("N",), "readwrite")),
    push_constants=(PushConstant("N"), PushConstant("alpha", F32)),
    grid=Grid((CeilDiv("N", 64),)),
    workgroup=64,
)
TOOLCHAIN = Toolchain("0.1.0", "11.12.0", ("--target-env", "vulkan1.2"))

DEVICE = replace(
    GENERIC,
    name="Example X1 (TM) Graphics",
    vendor_id=0x1234,
    device_id=7,
    driver_name="example",
    driver_info="1.0",
    driver_version=100,
    device_type="discrete",
    subgroup_size=32,
    subgroup_min=32,
    subgroup_max=32,
    device_uuid="00" * 16,
)
SIBLING = replace(DEVICE, name="Example X2", device_id=8)
STRANGER = replace(DEVICE, name="Other Z9", vendor_id=0x9999)


def with_constant(number: int) -> bytes:
    """Saxpy for another generator: other bytes and another hash, but the same kernel."""
    return SAXPY[:8] + number.to_bytes(4, "little") + SAXPY[12:]


def entry(problem: Problem | None = None, family: str = "saxpy", **changes: Any) -> Entry:
    """A manifest entry of saxpy."""
    result = Entry(
        family=family,
        precision="f32",
        problem=problem or Problem(N=1024),
        variant=f"{family}/f32/WORKGROUP64",
        signature=SIGNATURE,
        module_sha256=SAXPY_SHA256,
        template_sha256="1" * 64,
        glsl_sha256="2" * 64,
        median_ns=1000,
        spread_ns=10,
        trials=5,
        default_ns=1500,
        verified=Verified(seed=1, max_abs_error=1e-7, tolerance=1e-5),
    )
    return replace(result, **changes)


def bundle_bytes(
    device: DeviceInfo = DEVICE,
    entries: Sequence[Entry] | None = None,
    modules: Sequence[bytes] = (SAXPY,),
) -> tuple[bytes, bytes]:
    """Manifest and kernels of a bundle."""
    chosen = (entry(),) if entries is None else tuple(entries)
    manifest = Manifest(Fingerprint.of(device), TOOLCHAIN, chosen, (("read_bandwidth_gbps", 9.5),))
    text = manifest.to_bytes()
    return text, kernels_for(text, modules)


def kernels_for(manifest: bytes, modules: Sequence[bytes] = (SAXPY,)) -> bytes:
    """A kernels file that belongs to this manifest text, whatever is in it."""
    named = {hashlib.sha256(module).hexdigest(): module for module in modules}
    return write_container(hashlib.sha256(manifest).hexdigest(), named)


def write(folder: Path, manifest: bytes, kernels: bytes) -> Path:
    """Puts the two files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "kernels.safetensors").write_bytes(kernels)
    return folder


def write_bundle(folder: Path, *args: Any, **kwargs: Any) -> Path:
    """Writes the bundle that `bundle_bytes` makes."""
    return write(folder, *bundle_bytes(*args, **kwargs))


def edited(change: Callable[[dict[str, Any]], Any], manifest: bytes | None = None) -> bytes:
    """A manifest's text after a change to its data, laid out as it must be."""
    data = json.loads(bundle_bytes()[0] if manifest is None else manifest)
    change(data)
    return (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()
