"""The words of a SPIR-V module: its header, its instructions, its numbers.

Source: SPIR-V specification 1.6, sections 2.3 (physical layout) and 3 (numbers).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernelforge_runtime.errors import SpirvError

MAGIC = 0x07230203
MAX_ID_BOUND = 4_194_304  # universal limit of the specification, section 2.17
HEADER_WORDS = 5

CAPABILITIES: dict[int, tuple[str, str]] = {
    # number: (name, the device feature that it needs, or none)
    1: ("Shader", ""),
    9: ("Float16", "float16"),
    11: ("Int64", "int64"),
    28: ("UniformBufferArrayDynamicIndexing", "uniform_windows"),
    39: ("Int8", "int8"),
    61: ("GroupNonUniform", ""),
    63: ("GroupNonUniformArithmetic", "subgroup_arithmetic"),
    64: ("GroupNonUniformBallot", "subgroup_shuffle"),  # that feature stands for both
    65: ("GroupNonUniformShuffle", "subgroup_shuffle"),
    67: ("GroupNonUniformClustered", "subgroup_clustered"),
    4433: ("StorageBuffer16BitAccess", "storage16"),
    4448: ("StorageBuffer8BitAccess", "storage8"),
    5302: ("RuntimeDescriptorArray", "uniform_windows"),
    5345: ("VulkanMemoryModel", "cooperative_matrix"),
    5432: ("CooperativeMatrixPerElementOperationsNV", "matrix_elements"),
    5433: ("CooperativeMatrixTensorAddressingNV", "matrix_tensors"),
    5439: ("TensorAddressingNV", "matrix_tensors"),
    5347: ("PhysicalStorageBufferAddresses", "buffer_device_address"),
    6018: ("DotProductInput4x8BitPacked", "integer_dot"),
    6019: ("DotProduct", "integer_dot"),
    6022: ("CooperativeMatrixKHR", "cooperative_matrix"),
}
"""Every capability that a kernel may use. There is no feature for the others, so no device that
was asked whether it has them: Int16, Vote, Float64 and the like are refused."""

EXTENSIONS = frozenset(
    {
        "SPV_EXT_descriptor_indexing",
        "SPV_KHR_16bit_storage",
        "SPV_KHR_8bit_storage",
        "SPV_KHR_cooperative_matrix",
        "SPV_KHR_integer_dot_product",
        "SPV_KHR_physical_storage_buffer",
        "SPV_KHR_storage_buffer_storage_class",
        "SPV_KHR_vulkan_memory_model",
        "SPV_NV_cooperative_matrix2",
        "SPV_NV_tensor_addressing",
    }
)


def error_at(word: int, text: str) -> SpirvError:
    """The error for what is found at this word of the module."""
    return SpirvError(f"SPIR-V byte {4 * word}: {text}")


def words_of(spirv: bytes) -> list[int]:
    """The words of the module, once its header is sound."""
    if len(spirv) % 4 or len(spirv) < 4 * HEADER_WORDS:
        raise SpirvError(
            f"SPIR-V of {len(spirv)} bytes: expected whole words, at least {HEADER_WORDS}"
        )
    words: list[int] = np.frombuffer(spirv, dtype="<u4").tolist()
    if words[0] != MAGIC:
        raise error_at(0, f"magic number {words[0]:#010x}: expected {MAGIC:#010x}, little endian")
    if words[4] != 0:
        raise error_at(4, f"instruction schema {words[4]}: expected 0")
    return words


def version_of(word: int) -> tuple[int, int]:
    """SPIR-V version (major, minor) of the header's second word."""
    version = (word >> 16 & 0xFF, word >> 8 & 0xFF)
    if word & 0xFF0000FF or not (1, 0) <= version <= (1, 6):
        raise error_at(1, f"version word {word:#010x}: expected 1.0 to 1.6")
    return version


def instructions(words: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (word offset, opcode, words it takes); a count that leaves the file raises."""
    at, end = HEADER_WORDS, len(words)
    while at < end:
        count, opcode = words[at] >> 16, words[at] & 0xFFFF
        if count == 0 or at + count > end:
            left = end - at
            raise error_at(
                at, f"instruction {opcode} of {count} words: {left} are left in the file"
            )
        yield at, opcode, count
        at += count


def text_of(at: int, operands: list[int]) -> tuple[str, int]:
    """A zero-terminated literal and the number of words that it takes."""
    raw = np.array(operands, dtype="<u4").tobytes()
    end = raw.find(b"\0")
    if end < 0:
        raise error_at(at, "a text does not end within its instruction")
    try:
        return raw[:end].decode("utf-8"), end // 4 + 1
    except UnicodeDecodeError:
        raise error_at(at, "a text is not UTF-8") from None
