"""What a SPIR-V module declares, and whether that agrees with the signature it came with.

A bundle may come from anywhere, and drivers trust what they are given. So every module passes here
before it reaches one. Function bodies are walked, not validated: that is spirv-val's trade, and
`inspect --check` runs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import ADDRESS_BYTES, Signature
from kernelforge_runtime.abi.spirv_reader import (
    BINDING,
    BLOCK,
    BUILT_IN,
    DESCRIPTOR_SET,
    LOCAL_SIZE_ID,
    NON_WRITABLE,
    OFFSET,
    PUSH_CONSTANT,
    STORAGE_BUFFER,
    UNIFORM,
    WORKGROUP,
    Declared,
    Type,
    read,
    type_of,
)
from kernelforge_runtime.abi.spirv_words import CAPABILITIES, error_at
from kernelforge_runtime.abi.windows import WINDOW_BYTES
from kernelforge_runtime.errors import SpirvError

__all__ = ["BindingUse", "Reflection", "check_module", "reflect"]

_BUILT_IN_WORKGROUP_SIZE = 25
_MAX_BLOCK_MEMBERS = 64  # a kernel has at most 16 buffers and a few constants
# Newest SPIR-V that a Vulkan version takes without extensions, newest first.
_SPIRV_OF_API = (((1, 3), (1, 6)), ((1, 2), (1, 5)), ((1, 1), (1, 3)), ((0, 0), (1, 0)))


class BindingUse(NamedTuple):
    """One storage buffer of a module: where it is bound, and whether it is only read."""

    set: int
    binding: int
    readonly: bool


@dataclass(frozen=True)
class Reflection:
    """What a module declares.

    Attributes:
        entry_point: its name.
        workgroup: invocations in x, y, z.
        bindings: storage buffers by (set, binding).
        addresses: for each buffer address in the push constants, in order, whether it is only read.
        windowed: sets of the arrays of uniform buffers, in order.
        push_constant_bytes: size of the push constant block.
        shared_bytes: memory of workgroup variables.
        capabilities: names, sorted.
        extensions: names, sorted.
        version: of SPIR-V, e.g. (1, 5).
    """

    entry_point: str
    workgroup: tuple[int, int, int]
    bindings: tuple[BindingUse, ...]
    addresses: tuple[bool, ...]
    windowed: tuple[int, ...]
    push_constant_bytes: int
    shared_bytes: int
    capabilities: tuple[str, ...]
    extensions: tuple[str, ...]
    version: tuple[int, int]

    @property
    def features(self) -> tuple[str, ...]:
        """Device features that the capabilities stand for, sorted."""
        needs = dict(CAPABILITIES.values())
        return tuple(sorted({needs[c] for c in self.capabilities} - {""}))


@lru_cache(maxsize=64)
def reflect(spirv: bytes) -> Reflection:
    """What the module declares; of the last few it is kept, as they are checked more than once.

    Raises:
        SpirvError: it is malformed, or declares what KernelForge never generates.
    """
    return _summary(read(spirv))


def check_module(module: ShaderModule, info: DeviceInfo | None = None) -> Reflection:
    """What the module declares, once that agrees with its signature and with the device's limits.

    Raises:
        SpirvError: malformed, or in disagreement; names the module and both sides.
    """
    try:
        found = reflect(module.spirv)
        _check_signature(found, module.signature)
        if info is not None:
            _check_device(found, module.signature, info)
    except SpirvError as error:
        raise SpirvError(f"module {module.name}: {error}") from None
    return found


# ---- the whole module ---------------------------------------------------------------------


def _summary(found: Declared) -> Reflection:
    if found.memory_models != 1:
        raise SpirvError(f"SPIR-V declares {found.memory_models} memory models: expected 1")
    if len(found.entries) != 1:
        raise SpirvError(f"SPIR-V has {len(found.entries)} entry points: expected 1")
    entry_id, entry_name = found.entries[0]
    if entry_id not in found.functions:
        raise SpirvError(f"SPIR-V entry point {entry_name[:80]!r} is no function of the module")
    bindings: list[BindingUse] = []
    addresses: list[bool] = []
    windowed: list[int] = []
    push_bytes, shared_bytes = None, 0
    for at, variable, storage, element in found.variables:
        if storage == STORAGE_BUFFER:
            bindings.append(_binding(found, at, variable, element))
        elif storage == UNIFORM:
            windowed.append(_window(found, at, variable, element))
        elif storage == PUSH_CONSTANT:
            if push_bytes is not None:
                raise error_at(at, "a second push constant block: expected one")
            push_bytes, addresses = _push_block(found, at, element)
        elif storage == WORKGROUP:
            size = type_of(found, at, element).size
            if size is None:
                raise error_at(at, f"workgroup variable {variable} has no known size")
            shared_bytes += size
    return Reflection(
        entry_point=entry_name,
        workgroup=_workgroup(found, entry_id),
        bindings=tuple(sorted(bindings)),
        addresses=tuple(addresses),
        windowed=tuple(sorted(windowed)),
        push_constant_bytes=push_bytes or 0,
        shared_bytes=shared_bytes,
        capabilities=tuple(sorted(CAPABILITIES[c][0] for c in found.capabilities)),
        extensions=tuple(sorted(found.extensions)),
        version=found.version,
    )


def _block(found: Declared, at: int, type_id: int) -> Type:
    block = type_of(found, at, type_id)
    if block.kind != "struct" or BLOCK not in found.decorations.get(type_id, {}):
        raise error_at(at, f"type {type_id} is no block: expected a structure decorated Block")
    if len(block.members) > _MAX_BLOCK_MEMBERS:
        raise error_at(
            at, f"block of {len(block.members)} members: expected {_MAX_BLOCK_MEMBERS} at most"
        )
    return block


def _readonly(found: Declared, type_id: int, block: Type) -> bool:
    """Whether every member is decorated NonWritable."""
    return bool(block.members) and all(
        NON_WRITABLE in found.member_decorations.get((type_id, index), {})
        for index in range(len(block.members))
    )


def _binding(found: Declared, at: int, variable: int, type_id: int) -> BindingUse:
    block = _block(found, at, type_id)
    decorations = found.decorations.get(variable, {})
    if DESCRIPTOR_SET not in decorations or BINDING not in decorations:
        raise error_at(at, f"storage buffer {variable} has no set or no binding number")
    readonly = NON_WRITABLE in decorations or _readonly(found, type_id, block)
    return BindingUse(decorations[DESCRIPTOR_SET], decorations[BINDING], readonly)


def _window(found: Declared, at: int, variable: int, type_id: int) -> int:
    """The set at which an array of uniform buffers is bound."""
    array = type_of(found, at, type_id)
    if array.kind != "runtime array":
        raise error_at(at, f"uniform buffer {variable}: expected an array without a length")
    block = _block(found, at, array.element)
    if block.size is None or block.size > WINDOW_BYTES:
        raise error_at(
            at, f"uniform buffer {variable} of {block.size} bytes: expected {WINDOW_BYTES} at most"
        )
    decorations = found.decorations.get(variable, {})
    if DESCRIPTOR_SET not in decorations or decorations.get(BINDING) != 0:
        raise error_at(at, f"uniform buffer {variable} has no set, or another binding than 0")
    return decorations[DESCRIPTOR_SET]


def _push_block(found: Declared, at: int, type_id: int) -> tuple[int, list[bool]]:
    """Size of the push constant block, and whether what each address points to is only read."""
    block = _block(found, at, type_id)
    addresses: list[tuple[int, bool]] = []
    for index, member in enumerate(block.members):
        offset = found.member_decorations.get((type_id, index), {}).get(OFFSET)
        if offset is None:
            raise error_at(at, f"push constant {index} has no offset")
        kind = type_of(found, at, member)
        if kind.kind == "pointer":
            pointee = _block(found, at, kind.element)
            addresses.append((offset, _readonly(found, kind.element, pointee)))
    addresses.sort()
    if [offset for offset, _ in addresses] != [ADDRESS_BYTES * i for i in range(len(addresses))]:
        raise error_at(at, "buffer addresses do not come first, in order, in the push constants")
    if block.size is None:
        raise error_at(at, "the push constant block has no known size")
    return block.size, [readonly for _, readonly in addresses]


def _workgroup(found: Declared, entry_id: int) -> tuple[int, int, int]:
    """The workgroup size; a constant decorated WorkgroupSize overrides the execution mode."""
    sizes = [_resolve(found, mode, v) for target, mode, v in found.modes if target == entry_id]
    for target, decorations in found.decorations.items():
        if decorations.get(BUILT_IN) == _BUILT_IN_WORKGROUP_SIZE:
            parts = found.constants.get(target)
            if not isinstance(parts, tuple) or len(parts) != 3:
                raise SpirvError(f"SPIR-V id {target}, WorkgroupSize, is no constant of 3 numbers")
            sizes.append(_resolve(found, LOCAL_SIZE_ID, (parts[0], parts[1], parts[2])))
    if not sizes or len(set(sizes)) > 1:
        raise SpirvError(f"SPIR-V declares the workgroup sizes {sizes[:4]}: expected one")
    if min(sizes[0]) < 1:
        raise SpirvError(f"SPIR-V declares workgroup size {sizes[0]}: expected 1 or more")
    return sizes[0]


def _resolve(found: Declared, mode: int, values: tuple[int, ...]) -> tuple[int, int, int]:
    numbers = [found.constants.get(v) for v in values] if mode == LOCAL_SIZE_ID else list(values)
    x, y, z = numbers
    if not (isinstance(x, int) and isinstance(y, int) and isinstance(z, int)):
        raise SpirvError(f"SPIR-V workgroup size ids {values} are no constants")
    return x, y, z


# ---- against the signature and the device -------------------------------------------------


def _check_signature(found: Reflection, signature: Signature) -> None:
    if found.entry_point != "main":
        raise SpirvError(f"entry point {found.entry_point[:80]!r}: expected main")
    invocations = math.prod(found.workgroup)
    if invocations != signature.workgroup:
        raise SpirvError(f"workgroup {found.workgroup}: the signature says {signature.workgroup}")
    readonly = tuple(b.access == "read" for b in signature.bindings)
    if signature.addressing == "address":
        declared: tuple[BindingUse, ...] = ()
        addresses = readonly
    else:
        declared = tuple(BindingUse(0, i, r) for i, r in enumerate(readonly))
        addresses = ()
    if found.bindings != declared:
        raise SpirvError(f"{_spell(found.bindings)}: the signature says {_spell(declared)}")
    if found.addresses != addresses:
        raise SpirvError(
            f"buffer addresses, read-only or not, {list(found.addresses[:20])}: "
            f"the signature says {list(addresses)}"
        )
    if found.windowed != tuple(range(len(signature.windowed))):
        raise SpirvError(
            f"uniform buffers at sets {list(found.windowed[:20])}: "
            f"the signature says that {list(signature.windowed)} have windows"
        )
    if found.push_constant_bytes != signature.push_constant_bytes:
        raise SpirvError(
            f"push constants of {found.push_constant_bytes} bytes: "
            f"the signature says {signature.push_constant_bytes}"
        )
    implied = {"buffer_device_address"} if signature.addressing == "address" else set()
    missing = set(found.features) - set(signature.features) - implied
    if missing:
        raise SpirvError(f"it uses {', '.join(sorted(missing))}: the signature does not list that")


def _spell(bindings: tuple[BindingUse, ...]) -> str:
    parts = [f"{b.set}.{b.binding} {'read' if b.readonly else 'write'}" for b in bindings[:20]]
    return f"bindings [{', '.join(parts)}]"


def _check_device(found: Reflection, signature: Signature, info: DeviceInfo) -> None:
    limits = [
        ("workgroup invocations", math.prod(found.workgroup), info.max_workgroup_invocations),
        ("push constant bytes", found.push_constant_bytes, info.max_push_constants),
        ("shared memory bytes", found.shared_bytes, info.max_shared_memory),
        *(
            (f"workgroup size in {axis}", size, limit)
            for axis, size, limit in zip(
                "xyz", found.workgroup, info.max_workgroup_size, strict=True
            )
        ),
    ]
    for what, value, limit in limits:
        if value > limit:
            raise SpirvError(f"{what}: {value}, more than the {limit} of {info.name}")
    missing = (set(found.features) | set(signature.features)) - info.features
    if missing:
        raise SpirvError(f"it needs {', '.join(sorted(missing))}, which {info.name} does not offer")
    newest = next(spirv for api, spirv in _SPIRV_OF_API if info.api_version[:2] >= api)
    if found.version > newest:
        raise SpirvError(
            f"SPIR-V {found.version[0]}.{found.version[1]}: "
            f"{info.name} takes {newest[0]}.{newest[1]}"
        )
