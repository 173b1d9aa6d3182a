"""Windows of uniform buffers: a large buffer is read whole, and what cannot be shown is refused."""

from dataclasses import replace

import numpy as np
import pytest

from kernelforge.compile import compile_glsl
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.abi.spirv import check_module
from kernelforge_runtime.abi.windows import WINDOW_BYTES, WINDOW_STEP, count_windows, windows
from kernelforge_runtime.dtypes import U32
from kernelforge_runtime.errors import DeviceError, PlanError, SpirvError
from kernelforge_runtime.plan import Dispatch, Plan

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SIGNATURE = Signature(
    bindings=(Binding("x", U32, ("N", 4)), Binding("y", U32, ("N", 4), "write")),
    push_constants=(PushConstant("N"),),
    grid=Grid((CeilDiv("N", 4),)),
    workgroup=4,
    addressing="address",
    features=("uniform_windows",),
    windowed=("x",),
)
GLSL = """#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_nonuniform_qualifier : require
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer X { uvec4 data[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) writeonly buffer Y { uvec4 data[]; };
layout(push_constant) uniform Push { X x; Y y; uint N; };
layout(set = 0, binding = 0, std140) uniform Window { uvec4 data[4096]; } window[];
layout(local_size_x = 4) in;
void main() {
    uint first = gl_WorkGroupID.x * 4u, more = gl_LocalInvocationID.x;
    y.data[first + more] = window[first >> 11].data[(first & 2047u) + more];
}
"""


@pytest.fixture(scope="module")
def module():
    return ShaderModule("windowed copy", compile_glsl(GLSL, "windowed copy"), SIGNATURE)


@pytest.fixture
def shown(device):
    """A device that has windows."""
    if "uniform_windows" not in device.info.features:
        pytest.skip(f"{device.info.name} has no uniform_windows")
    return device


@pytest.mark.parametrize("nbytes", [16, WINDOW_STEP, WINDOW_STEP + 16, 3 * WINDOW_BYTES - 16])
def test_windows_overlap_by_half_and_end_with_the_buffer(nbytes):
    starts, sizes = windows(nbytes)
    assert starts.tolist() == list(range(0, nbytes, WINDOW_STEP))
    assert len(starts) == count_windows(nbytes)
    assert (starts + sizes).tolist() == [min(s + WINDOW_BYTES, nbytes) for s in starts.tolist()]


@pytest.mark.parametrize("rows", [4, 2048, 2052, 5 * 4096 + 8])
def test_every_element_of_a_slice_is_found(shown, rng, module, rows):
    x, y = shown.buffer(16 * rows + 8192), shown.buffer(16 * rows)
    given = rng.integers(0, 2**32, (rows, 4), np.uint32)
    x.upload(given, 4096)
    piece = x.slice(4096, given.nbytes)
    with Plan(shown, [Dispatch(module, {"N": rows}, {"x": piece, "y": y})]) as plan:
        plan.run()
    np.testing.assert_array_equal(y.download(np.uint32, (rows, 4)), given)
    x.close()
    y.close()


def test_a_buffer_that_is_not_aligned_for_windows_is_refused(shown, module):
    alignment = shown.physical.uniform_alignment
    if alignment <= 16:
        pytest.skip(f"{shown.info.name} shows windows from every offset that a slice may have")
    x, y = shown.buffer(4096), shown.buffer(256)
    with pytest.raises(DeviceError, match=f"aligned to {alignment}"):
        Plan(shown, [Dispatch(module, {"N": 4}, {"x": x.slice(16, 64), "y": y})])


def test_a_kernel_and_a_signature_that_disagree_on_windows_are_refused(module):
    plain = replace(SIGNATURE, windowed=())
    with pytest.raises(SpirvError, match=r"uniform buffers at sets \[0\]: the signature says"):
        check_module(replace(module, signature=plain))
    with pytest.raises(SpirvError, match="uses uniform_windows: the signature does not list"):
        check_module(replace(module, signature=replace(SIGNATURE, features=())))
    for wrong, message in (
        (GLSL.replace("data[4096]", "data[4097]"), "of 65552 bytes: expected 65536 at most"),
        (GLSL.replace("window[]", "window[3]"), "expected an array without a length"),
        (GLSL.replace("binding = 0", "binding = 1"), "another binding than 0"),
        (GLSL.replace("set = 0", "set = 1"), r"uniform buffers at sets \[1\]"),
    ):
        with pytest.raises(SpirvError, match=message):
            check_module(replace(module, spirv=compile_glsl(wrong, message)))


def test_a_signature_with_windows_reads_back():
    assert Signature.from_json(SIGNATURE.to_json()) == SIGNATURE
    with pytest.raises(PlanError, match="wrong form"):
        Signature.from_json({**SIGNATURE.to_json(), "windowed": 7})
