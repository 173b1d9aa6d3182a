"""Reads the declarations of a SPIR-V module, instruction by instruction.

Only what KernelForge itself generates is let through; anything else is a SpirvError with its byte
offset. Time and memory are bounded by the size of the module: sizes are computed as types appear,
from types that came before, without recursion. What the declarations add up to is the business of
`kernelforge_runtime.abi.spirv`.

Source: SPIR-V specification 1.6, section 2.4 (logical layout).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kernelforge_runtime.abi.signature import ADDRESS_BYTES
from kernelforge_runtime.abi.spirv_words import (
    CAPABILITIES,
    EXTENSIONS,
    MAX_ID_BOUND,
    error_at,
    instructions,
    text_of,
    version_of,
    words_of,
)
from kernelforge_runtime.errors import SpirvError

INPUT, UNIFORM, WORKGROUP, PRIVATE, PUSH_CONSTANT, STORAGE_BUFFER = 1, 2, 4, 6, 9, 12
"""Storage classes that a variable of the module may have."""
PHYSICAL = 5349
"""Storage class of what a buffer address points to."""

BLOCK, ARRAY_STRIDE, BUILT_IN, NON_WRITABLE = 2, 6, 11, 24
BINDING, DESCRIPTOR_SET, OFFSET = 33, 34, 35
LOCAL_SIZE, LOCAL_SIZE_ID = 17, 38

_WITH_LITERAL = frozenset({ARRAY_STRIDE, BUILT_IN, BINDING, DESCRIPTOR_SET, OFFSET})
_GL_COMPUTE = 5
_MAX_TYPE_BYTES = 2**40
_VARIABLE = 59
_FUNCTIONS = 9  # the last section of the logical layout
# void, matrix, image, sampler, sampled image, function, cooperative matrix, tensor layout and view:
# known, without a size
_OPAQUE_TYPES = frozenset({19, 24, 25, 26, 27, 33, 4456, 5370, 5371})


@dataclass
class Type:
    """A type as far as sizes matter; `size` is None where it has no size that is known."""

    kind: str
    size: int | None = None
    members: tuple[int, ...] = ()
    element: int = 0
    storage: int = 0


@dataclass
class Declared:
    """Everything found on the way through the module."""

    bound: int
    version: tuple[int, int]
    capabilities: set[int] = field(default_factory=set)
    extensions: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    memory_models: int = 0
    entries: list[tuple[int, str]] = field(default_factory=list)
    modes: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)
    decorations: dict[int, dict[int, int]] = field(default_factory=dict)
    member_decorations: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    types: dict[int, Type] = field(default_factory=dict)
    forward: set[int] = field(default_factory=set)
    constants: dict[int, int | tuple[int, ...]] = field(default_factory=dict)
    variables: list[tuple[int, int, int, int]] = field(default_factory=list)
    functions: set[int] = field(default_factory=set)
    defined: set[int] = field(default_factory=set)
    section: int = 0
    place: str = "module"


def read(spirv: bytes) -> Declared:
    """Every declaration of the module.

    Raises:
        SpirvError: it is malformed, or declares what KernelForge never generates.
    """
    words = words_of(spirv)
    found = Declared(bound=words[3], version=version_of(words[1]))
    if not 1 <= found.bound <= MAX_ID_BOUND:
        raise error_at(3, f"id bound {found.bound}: expected 1 to {MAX_ID_BOUND}")
    for at, opcode, count in instructions(words):
        # Most of a module stands inside of blocks and declares nothing.
        if found.place != "block" or opcode in _NOTICED:
            _read(found, at, opcode, words[at + 1 : at + count])
    if found.place != "module":
        raise SpirvError(f"SPIR-V of {len(spirv)} bytes ends inside a {found.place}: it is cut off")
    return found


# ---- one instruction ----------------------------------------------------------------------

# opcode: (section of the logical layout, least operand count). A module keeps this order, which
# is what lets sizes be computed at once, with every decoration known and without recursion.
_LAYOUT: dict[int, tuple[int, int]] = {
    17: (0, 1),  # OpCapability
    10: (1, 1),  # OpExtension
    11: (2, 2),  # OpExtInstImport
    14: (3, 2),  # OpMemoryModel
    15: (4, 3),  # OpEntryPoint
    16: (5, 2),  # OpExecutionMode
    331: (5, 2),  # OpExecutionModeId
    71: (7, 2),  # OpDecorate
    72: (7, 3),  # OpMemberDecorate
    332: (7, 2),  # OpDecorateId
    73: (7, 1),  # OpDecorationGroup
    74: (7, 1),  # OpGroupDecorate
    75: (7, 1),  # OpGroupMemberDecorate
    20: (8, 1),  # OpTypeBool
    21: (8, 3),  # OpTypeInt
    22: (8, 2),  # OpTypeFloat
    23: (8, 3),  # OpTypeVector
    28: (8, 3),  # OpTypeArray
    29: (8, 2),  # OpTypeRuntimeArray
    30: (8, 1),  # OpTypeStruct
    32: (8, 3),  # OpTypePointer
    39: (8, 2),  # OpTypeForwardPointer
    43: (8, 3),  # OpConstant
    44: (8, 2),  # OpConstantComposite
    50: (8, 3),  # OpSpecConstant
    51: (8, 2),  # OpSpecConstantComposite
    54: (9, 4),  # OpFunction
}


# opcode: (places where it may stand, where the next one stands): a function is its head, then
# blocks from label to terminator. Drivers crash on a body that just ends.
_BODY: dict[int, tuple[tuple[str, ...], str]] = {
    54: (("module",), "function head"),  # OpFunction
    55: (("function head",), "function head"),  # OpFunctionParameter
    56: (("function",), "module"),  # OpFunctionEnd
    248: (("function head", "function"), "block"),  # OpLabel
    # OpBranch, OpBranchConditional, OpSwitch, OpKill, OpReturn, OpReturnValue, OpUnreachable
    **dict.fromkeys(range(249, 256), (("block",), "function")),
}
_LINES = frozenset({0, 8, 317})  # OpNop, OpLine, OpNoLine: anywhere


def _step(found: Declared, at: int, opcode: int) -> None:
    places, after = _BODY.get(opcode, (("block",), "block"))
    if found.place not in places and opcode not in _LINES:
        raise error_at(at, f"instruction {opcode} in a {found.place}: expected in a {places[0]}")
    if opcode not in _LINES:
        found.place = after


def _read(found: Declared, at: int, opcode: int, operands: list[int]) -> None:
    """Takes one instruction into `found`."""
    if opcode in _LAYOUT:
        section, least = _LAYOUT[opcode]
        if len(operands) < least:
            raise error_at(
                at, f"instruction {opcode} has {len(operands)} operands: expected {least}"
            )
        if section < found.section:
            raise error_at(at, f"instruction {opcode} comes after its section of the module")
        found.section = section
    if found.section == _FUNCTIONS or opcode in _BODY:
        _step(found, at, opcode)
    if opcode in _READERS:
        _READERS[opcode](found, at, operands)
    elif opcode in _OPAQUE_TYPES and operands:
        _define(found, at, operands[0])
        found.types[operands[0]] = Type("opaque")
    elif opcode == _VARIABLE and found.section < _FUNCTIONS:
        _read_variable(found, at, operands)


def _read_capability(found: Declared, at: int, operands: list[int]) -> None:
    if operands[0] not in CAPABILITIES:
        known = ", ".join(name for name, _ in CAPABILITIES.values())
        raise error_at(at, f"capability {operands[0]} is none that KernelForge uses ({known})")
    found.capabilities.add(operands[0])


def _read_extension(found: Declared, at: int, operands: list[int]) -> None:
    name, _ = text_of(at, operands)
    if name not in EXTENSIONS:
        raise error_at(at, f"extension {name[:80]!r} is none that KernelForge uses")
    found.extensions.add(name)


def _read_import(found: Declared, at: int, operands: list[int]) -> None:
    _define(found, at, operands[0])
    name, _ = text_of(at, operands[1:])
    if name != "GLSL.std.450":
        raise error_at(at, f"instruction set {name[:80]!r}: expected GLSL.std.450")


def _read_memory_model(found: Declared, at: int, operands: list[int]) -> None:
    if operands[0] not in (0, 5348) or operands[1] not in (1, 3):
        raise error_at(
            at, f"memory model {operands[0]}, {operands[1]}: not one of Vulkan's for compute"
        )
    found.memory_models += 1


def _read_entry_point(found: Declared, at: int, operands: list[int]) -> None:
    if operands[0] != _GL_COMPUTE:
        raise error_at(at, f"entry point of execution model {operands[0]}: expected GLCompute")
    name, _ = text_of(at, operands[2:])
    found.entries.append((operands[1], name))


def _read_execution_mode(found: Declared, at: int, operands: list[int]) -> None:
    if operands[1] in (LOCAL_SIZE, LOCAL_SIZE_ID):
        if len(operands) != 5:
            raise error_at(at, f"workgroup size of {len(operands) - 2} numbers: expected 3")
        found.modes.append((operands[0], operands[1], (operands[2], operands[3], operands[4])))


def _read_decorate(found: Declared, at: int, operands: list[int]) -> None:
    target, decoration = operands[0], operands[1]
    _put(found.decorations.setdefault(target, {}), at, decoration, operands[2:])


def _read_member_decorate(found: Declared, at: int, operands: list[int]) -> None:
    key, decoration = (operands[0], operands[1]), operands[2]
    _put(found.member_decorations.setdefault(key, {}), at, decoration, operands[3:])


def _put(decorations: dict[int, int], at: int, decoration: int, literals: list[int]) -> None:
    if decoration in _WITH_LITERAL:
        if len(literals) != 1:
            raise error_at(at, f"decoration {decoration} with {len(literals)} numbers: expected 1")
        if decoration in decorations:
            raise error_at(at, f"decoration {decoration} given twice")
    decorations[decoration] = literals[0] if literals else 0


def _refuse_group(found: Declared, at: int, operands: list[int]) -> None:
    raise error_at(at, "decoration groups and decorations by id are none that KernelForge uses")


def _define(found: Declared, at: int, result: int) -> None:
    if not 0 < result < found.bound:
        raise error_at(at, f"id {result}: expected 1 to {found.bound - 1}")
    if result in found.defined:
        raise error_at(at, f"id {result} is defined twice")
    found.defined.add(result)


def type_of(found: Declared, at: int, ref: int) -> Type:
    """The type that id `ref` names, declared or announced before word `at`."""
    if ref in found.types:
        return found.types[ref]
    if ref in found.forward:
        return Type("pointer", ADDRESS_BYTES)
    raise error_at(at, f"id {ref} is no type declared before")


def _read_scalar(found: Declared, at: int, operands: list[int]) -> None:
    """OpTypeBool, OpTypeInt and OpTypeFloat; a Boolean is taken as 32 bits."""
    width = operands[1] if len(operands) > 1 else 32
    if width not in (8, 16, 32, 64):
        raise error_at(at, f"number of {width} bits: expected 8, 16, 32 or 64")
    _define(found, at, operands[0])
    found.types[operands[0]] = Type("scalar", width // 8)


def _read_vector(found: Declared, at: int, operands: list[int]) -> None:
    result, element, count = operands[:3]
    scalar = type_of(found, at, element)
    if scalar.kind != "scalar" or scalar.size is None or not 2 <= count <= 4:
        raise error_at(at, f"vector of {count} elements: expected 2 to 4 numbers")
    _define(found, at, result)
    found.types[result] = Type("vector", scalar.size * count)


def _read_array(found: Declared, at: int, operands: list[int]) -> None:
    result, element, length_id = operands[:3]
    item = type_of(found, at, element)
    length = found.constants.get(length_id)
    if not isinstance(length, int) or length < 1:
        raise error_at(at, f"array length id {length_id} is no constant of 1 or more")
    stride = found.decorations.get(result, {}).get(ARRAY_STRIDE)
    if stride is not None and stride < (item.size or 0):
        raise error_at(at, f"array stride {stride}: an element takes {item.size} bytes")
    size = None if item.size is None else (stride or item.size) * length
    if size is not None and size > _MAX_TYPE_BYTES:
        raise error_at(at, f"array of {size} bytes: no device has as many")
    _define(found, at, result)
    found.types[result] = Type("array", size)


def _read_runtime_array(found: Declared, at: int, operands: list[int]) -> None:
    type_of(found, at, operands[1])
    _define(found, at, operands[0])
    found.types[operands[0]] = Type("runtime array", 0, element=operands[1])


def _read_struct(found: Declared, at: int, operands: list[int]) -> None:
    result, members = operands[0], tuple(operands[1:])
    end = total = 0
    sized, placed = True, True
    for index, member in enumerate(members):
        size = type_of(found, at, member).size
        offset = found.member_decorations.get((result, index), {}).get(OFFSET)
        sized, placed = sized and size is not None, placed and offset is not None
        end = max(end, (offset or 0) + (size or 0))
        total += size or 0
    size = (end if placed else total) if sized else None
    if size is not None and size > _MAX_TYPE_BYTES:
        raise error_at(at, f"structure of {size} bytes: no device has as many")
    _define(found, at, result)
    found.types[result] = Type("struct", size, members)


def _read_pointer(found: Declared, at: int, operands: list[int]) -> None:
    result, storage, element = operands[:3]
    _define(found, at, result)
    if result in found.forward and storage != PHYSICAL:
        raise error_at(at, f"pointer {result} was announced as a buffer address")
    size = ADDRESS_BYTES if storage == PHYSICAL else None
    found.types[result] = Type("pointer", size, element=element, storage=storage)


def _read_forward_pointer(found: Declared, at: int, operands: list[int]) -> None:
    if operands[1] != PHYSICAL:
        raise error_at(at, f"forward pointer of storage class {operands[1]}: expected {PHYSICAL}")
    found.forward.add(operands[0])


def _read_constant(found: Declared, at: int, operands: list[int]) -> None:
    _define(found, at, operands[1])
    found.constants[operands[1]] = sum(word << 32 * i for i, word in enumerate(operands[2:4]))


def _read_composite(found: Declared, at: int, operands: list[int]) -> None:
    _define(found, at, operands[1])
    found.constants[operands[1]] = tuple(operands[2:])


def _read_function(found: Declared, at: int, operands: list[int]) -> None:
    _define(found, at, operands[1])
    found.functions.add(operands[1])


def _read_variable(found: Declared, at: int, operands: list[int]) -> None:
    if len(operands) < 3:
        raise error_at(at, f"a variable has {len(operands)} operands: expected 3")
    pointer_id, result, storage = operands[:3]
    pointer = type_of(found, at, pointer_id)
    if pointer.kind != "pointer" or pointer.storage != storage:
        raise error_at(
            at, f"variable {result} of storage class {storage} is no pointer of that class"
        )
    if storage not in (INPUT, UNIFORM, WORKGROUP, PRIVATE, PUSH_CONSTANT, STORAGE_BUFFER):
        raise error_at(
            at, f"variable of storage class {storage}: kernels use buffers and shared memory only"
        )
    _define(found, at, result)
    found.variables.append((at, result, storage, pointer.element))


_READERS: dict[int, Callable[[Declared, int, list[int]], None]] = {
    10: _read_extension,
    11: _read_import,
    14: _read_memory_model,
    15: _read_entry_point,
    16: _read_execution_mode,
    17: _read_capability,
    20: _read_scalar,
    21: _read_scalar,
    22: _read_scalar,
    23: _read_vector,
    28: _read_array,
    29: _read_runtime_array,
    30: _read_struct,
    32: _read_pointer,
    39: _read_forward_pointer,
    43: _read_constant,
    44: _read_composite,
    50: _read_constant,
    51: _read_composite,
    54: _read_function,
    71: _read_decorate,
    72: _read_member_decorate,
    73: _refuse_group,
    74: _refuse_group,
    75: _refuse_group,
    331: _read_execution_mode,
    332: _refuse_group,
}
_NOTICED = frozenset({*_LAYOUT, *_BODY, *_READERS, *_OPAQUE_TYPES})
"""What says something wherever it stands."""
