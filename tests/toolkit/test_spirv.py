"""Reading SPIR-V: what honest modules declare, and that damaged ones only raise SpirvError."""

import contextlib
import struct
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.grid import Grid
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.abi.spirv import BindingUse, check_module, reflect
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import SpirvError
from tests.toolkit.fixtures.saxpy import FOLDER, SAXPY

# Compiled from saxpy.comp.j2 with 64 invocations and the shared route.
DESCRIPTOR = (FOLDER / "saxpy_descriptor.spirv").read_bytes()
ADDRESS = (FOLDER / "saxpy_address.spirv").read_bytes()
ADDRESSES = replace(GENERIC, features=frozenset({"buffer_device_address"}))


def signature(address):
    return SAXPY.signature(F32, {"WORKGROUP": 64, "ADDRESS": address})


def module(spirv, address=False, **changes):
    return ShaderModule("saxpy/f32/X1", spirv, replace(signature(address), **changes))


# ---- writing small modules ----


def op(opcode, *operands):
    words = []
    for operand in operands:
        if isinstance(operand, str):
            data = operand.encode() + b"\0"
            data += b"\0" * (-len(data) % 4)
            words += struct.unpack(f"<{len(data) // 4}I", data)
        else:
            words.append(operand)
    return struct.pack(f"<{1 + len(words)}I", (1 + len(words)) << 16 | opcode, *words)


HEADER = struct.pack("<5I", 0x07230203, 0x00010500, 0, 100, 0)
# id 1 void, 2 function type, 3 the entry point; 10 uint, 11 float
SHADER = op(17, 1)
LOGICAL = op(14, 0, 1)
MAIN = op(15, 5, 3, "main")
MODE = op(16, 3, 17, 64, 1, 1)
TYPES = op(19, 1) + op(33, 2, 1) + op(21, 10, 32, 0) + op(22, 11, 32)
END = op(54, 1, 3, 0, 2) + op(248, 91) + op(253) + op(56)


def build(
    decorations=b"",
    declarations=b"",
    capability=SHADER,
    library="GLSL.std.450",
    memory=LOGICAL,
    entry=MAIN,
    mode=MODE,
    end=END,
):
    start = capability + op(11, 90, library) + memory + entry + mode
    return HEADER + start + decorations + TYPES + declarations + end


# ---- what honest modules declare ----


def test_a_descriptor_module_is_read():
    found = reflect(DESCRIPTOR)
    assert found.entry_point == "main"
    assert found.workgroup == (64, 1, 1)
    assert found.bindings == (
        BindingUse(0, 0, True),
        BindingUse(0, 1, True),
        BindingUse(0, 2, False),
    )
    assert (found.addresses, found.push_constant_bytes, found.shared_bytes) == ((), 8, 256)
    assert (found.capabilities, found.extensions, found.version) == (("Shader",), (), (1, 5))
    assert found.features == ()


def test_an_address_module_is_read():
    found = reflect(ADDRESS)
    assert (found.bindings, found.addresses) == ((), (True, True, False))
    assert found.push_constant_bytes == 3 * 8 + 2 * 4
    assert found.features == ("buffer_device_address",)


@pytest.mark.parametrize(("spirv", "address"), [(DESCRIPTOR, False), (ADDRESS, True)])
def test_an_honest_module_agrees_with_its_signature(spirv, address):
    check_module(module(spirv, address))
    check_module(module(spirv, address), ADDRESSES)


def test_sizes_of_push_constants_follow_offsets_strides_and_vectors():
    decorations = op(71, 20, 2) + op(72, 20, 0, 35, 0) + op(72, 20, 1, 35, 16) + op(71, 21, 6, 16)
    declarations = (
        op(43, 10, 30, 3)
        + op(28, 21, 11, 30)  # float[3], stride 16
        + op(23, 22, 11, 3)  # vec3
        + op(30, 20, 22, 21)
        + op(32, 23, 9, 20)
        + op(59, 23, 24, 9)
    )
    assert reflect(build(decorations, declarations)).push_constant_bytes == 16 + 3 * 16


def test_shared_memory_adds_up_over_structures_and_arrays():
    declarations = (
        op(43, 10, 30, 10)
        + op(23, 22, 11, 4)
        + op(30, 25, 22, 11)  # struct { vec4; float; }
        + op(28, 21, 25, 30)
        + op(32, 23, 4, 21)
        + op(59, 23, 24, 4)
        + op(32, 26, 4, 11)
        + op(59, 26, 27, 4)
    )
    assert reflect(build(b"", declarations)).shared_bytes == 10 * 20 + 4


def test_a_workgroup_size_by_constants_is_resolved():
    mode = op(331, 3, 38, 30, 31, 31)
    constants = op(43, 10, 30, 8) + op(43, 10, 31, 2)
    assert reflect(build(b"", constants, mode=mode)).workgroup == (8, 2, 2)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workgroup": 32}, r"workgroup \(64, 1, 1\): the signature says 32"),
        ({"push_constants": (PushConstant("M"),)}, "push constants of 8 bytes: .* says 4"),
        ({"addressing": "address"}, r"bindings \[0.0 read.*: the signature says bindings \[\]"),
        ({"bindings": ()}, r"the signature says bindings \[\]"),
        (
            {"bindings": tuple(Binding(n, F32, ("M",), "write") for n in "abc")},
            r"\[0.0 read, .*: the signature says bindings \[0.0 write",
        ),
    ],
)
def test_disagreement_with_the_signature_names_both_sides(change, message):
    with pytest.raises(SpirvError, match=f"module saxpy/f32/X1: .*{message}"):
        check_module(module(DESCRIPTOR, **change))


def test_what_an_address_only_reads_is_compared_too():
    wrong = tuple(replace(b, access="readwrite") for b in signature(True).bindings)
    with pytest.raises(SpirvError, match="read-only or not"):
        check_module(module(ADDRESS, True, bindings=wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_workgroup_invocations": 32}, "workgroup invocations: 64, more than the 32 of gen"),
        ({"max_workgroup_size": (32, 64, 64)}, "workgroup size in x: 64, more than the 32"),
        ({"max_push_constants": 4}, "push constant bytes: 8, more than the 4"),
        ({"max_shared_memory": 255}, "shared memory bytes: 256, more than the 255"),
        ({"api_version": (1, 1, 0)}, "SPIR-V 1.5: generic takes 1.3"),
    ],
)
def test_the_limits_of_the_device_are_kept(change, message):
    with pytest.raises(SpirvError, match=message):
        check_module(module(DESCRIPTOR), replace(GENERIC, **change))


def test_a_feature_that_the_device_lacks_is_named():
    with pytest.raises(SpirvError, match="needs buffer_device_address, which generic does not"):
        check_module(module(ADDRESS, True), GENERIC)


def test_a_feature_that_the_signature_hides_is_named():
    spirv = build(capability=op(17, 1) + op(17, 9))
    hidden = ShaderModule("m", spirv, Signature((), (), Grid(), 64))
    with pytest.raises(SpirvError, match="it uses float16: the signature does not list that"):
        check_module(hidden)
    check_module(replace(hidden, signature=replace(hidden.signature, features=("float16",))))


def pointer(storage, decorations=b""):
    """A variable of a storage class, of a structure with one uint."""
    declarations = op(30, 20, 10) + op(32, 21, storage, 20) + op(59, 21, 22, storage)
    return build(decorations, declarations)


BLOCK = op(71, 20, 2) + op(72, 20, 0, 35, 0)
HOSTILE = {
    "magic number": b"\x07\x23\x02\x03" + DESCRIPTOR[4:],
    "version word": DESCRIPTOR[:4] + struct.pack("<I", 0x00020000) + DESCRIPTOR[8:],
    "id bound": DESCRIPTOR[:12] + struct.pack("<I", 2**31) + DESCRIPTOR[16:],
    "instruction schema": DESCRIPTOR[:16] + struct.pack("<I", 1) + DESCRIPTOR[20:],
    "expected whole words": DESCRIPTOR[:-1],
    "at least 5": DESCRIPTOR[:16],
    "instruction 0 of 0 words": HEADER + struct.pack("<I", 0),
    "are left in the file": DESCRIPTOR[:-4] + struct.pack("<I", 9 << 16 | 56),
    "0 memory models": HEADER,
    "0 entry points": HEADER + op(14, 0, 1),
    "2 entry points": build(entry=MAIN + MAIN),
    "is no function": build(end=b""),
    "expected GLCompute": build(entry=op(15, 4, 3, "main")),
    "a text does not end": build(entry=op(15, 5, 3, 0x61616161)),
    "a text is not UTF-8": build(entry=op(15, 5, 3, 0xFF)),
    "capability 22": build(capability=op(17, 22)),
    "extension 'SPV_X'": build(capability=op(10, "SPV_X")),
    "instruction set 'OpenCL.std'": build(library="OpenCL.std"),
    "memory model 2, 2": build(memory=op(14, 2, 2)),
    "workgroup size of 2 numbers": build(mode=op(16, 3, 17, 8, 8)),
    "expected 1 or more": build(mode=op(16, 3, 17, 0, 1, 1)),
    r"workgroup sizes \[\]": build(mode=b""),
    "are no constants": build(mode=op(331, 3, 38, 7, 7, 7)),
    "WorkgroupSize, is no constant": build(op(71, 30, 11, 25)),
    r"workgroup sizes \[\(64": build(
        op(71, 30, 11, 25), op(43, 10, 31, 2) + op(44, 10, 30, 31, 31, 31)
    ),
    "comes after its section": build(end=END + op(17, 1)),
    "is defined twice": build(b"", op(21, 10, 32, 0)),
    "id 100: expected": build(b"", op(21, 100, 32, 0)),
    "is no type declared before": build(b"", op(30, 20, 77)),
    "number of 7 bits": build(b"", op(22, 20, 7)),
    "vector of 9 elements": build(b"", op(23, 20, 11, 9)),
    "is no constant of 1 or more": build(b"", op(28, 20, 11, 10)),
    "no device has as many": build(
        b"", op(43, 10, 30, 2**32 - 1) + op(28, 20, 11, 30) + op(28, 21, 20, 30)
    ),
    "array stride 2": build(op(71, 20, 6, 2), op(43, 10, 30, 4) + op(28, 20, 11, 30)),
    "given twice": build(op(71, 20, 33, 0) + op(71, 20, 33, 1)),
    "decoration 33 with 0 numbers": build(op(71, 20, 33)),
    "decoration groups": build(op(73, 20)),
    "has 1 operands: expected 3": build(b"", op(32, 20)),
    "variable of storage class 0": pointer(0),
    "variable of storage class 3": pointer(3),
    "expected an array without a length": pointer(2),
    "is no pointer of that class": build(b"", op(32, 21, 9, 10) + op(59, 21, 22, 12)),
    "forward pointer of storage class": build(b"", op(39, 20, 12)),
    "was announced as a buffer address": build(b"", op(39, 20, 5349) + op(32, 20, 12, 10)),
    "is no block": pointer(12),
    "has no set or no binding": pointer(12, BLOCK),
    "has no offset": pointer(9, op(71, 20, 2)),
    "a second push constant block": build(
        BLOCK, op(30, 20, 10) + op(32, 21, 9, 20) + op(59, 21, 22, 9) + op(59, 21, 23, 9)
    ),
    "buffer addresses do not come first": build(
        op(71, 20, 2) + op(72, 20, 0, 35, 0) + op(72, 20, 1, 35, 8) + op(71, 25, 2),
        op(30, 25, 10)
        + op(32, 24, 5349, 25)
        + op(30, 20, 10, 24)
        + op(32, 21, 9, 20)
        + op(59, 21, 22, 9),
    ),
    "block of 65 members": build(
        op(71, 20, 2), op(30, 20, *[10] * 65) + op(32, 21, 9, 20) + op(59, 21, 22, 9)
    ),
    "workgroup variable 22 has no known size": build(
        b"", op(24, 20, 11, 4) + op(32, 21, 4, 20) + op(59, 21, 22, 4)
    ),
}  # fmt: skip


def test_the_small_module_that_the_hostile_ones_vary_is_sound():
    assert reflect(build()).workgroup == (64, 1, 1)
    assert reflect(pointer(9, BLOCK)).push_constant_bytes == 4


@pytest.mark.parametrize("message", HOSTILE)
def test_a_hostile_module_is_refused_with_a_reason(message):
    with pytest.raises(SpirvError, match=message):
        reflect(HOSTILE[message])


def test_an_error_says_at_which_byte():
    spirv = build(end=END + op(17, 1))
    with pytest.raises(SpirvError, match=f"^SPIR-V byte {len(spirv) - 8}: "):
        reflect(spirv)


# ---- mutations ----

WORDS = st.one_of(
    st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 12, 28, 30, 32, 39, 5349]),
    st.integers(0, 2**32 - 1),
)
MUTATION = st.tuples(
    st.sampled_from(["set", "bit", "opcode", "delete", "insert", "cut", "copy"]),
    st.integers(0, 2**20),
    WORDS,
)


def mutate(words, kind, place, value):
    at = place % len(words)
    if kind == "set":
        words[at] = value
    elif kind == "bit":
        words[at] ^= 1 << value % 32
    elif kind == "opcode":
        words[at] = words[at] & 0xFFFF0000 | value & 0xFFFF
    elif kind == "delete" and len(words) > 1:
        del words[at]
    elif kind == "insert":
        words.insert(at, value)
    elif kind == "cut":
        del words[max(at, 1) :]
    elif kind == "copy":
        words[at] = words[value % len(words)]


@settings(max_examples=300, deadline=500)
@given(st.sampled_from([DESCRIPTOR, ADDRESS]), st.lists(MUTATION, min_size=1, max_size=4))
def test_a_mutated_module_is_read_or_refused_and_nothing_else(spirv, mutations):
    words = list(struct.unpack(f"<{len(spirv) // 4}I", spirv))
    for mutation in mutations:
        mutate(words, *mutation)
    address = spirv is ADDRESS
    try:
        check_module(module(struct.pack(f"<{len(words)}I", *words), address), ADDRESSES)
    except SpirvError as error:
        assert str(error).startswith("module saxpy/f32/X1: ") and len(str(error)) < 1000


@settings(max_examples=200, deadline=500)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused_and_nothing_else(data, header):
    with contextlib.suppress(SpirvError):
        reflect(HEADER + data if header else data)


@pytest.mark.parametrize(
    ("decoration", "declaration"),
    [
        (op(71, 20, 2), b""),
        (op(72, 20, 0, 99, 0), b""),
        (MODE, b""),
        (b"", op(30, 20, *[10] * 60000)),
        (b"", op(30, 20, 10) + op(32, 21, 12, 20) + op(59, 21, 22, 12)),
        (b"", op(0)),
    ],
)
def test_a_large_module_takes_time_in_proportion(decoration, declaration):
    times = 1_000_000 // len(decoration + declaration)
    start = time.process_time()
    with contextlib.suppress(SpirvError):
        reflect(build(decoration * times, declaration * times))
    assert time.process_time() - start < 5
