"""Devices: listed, chosen by name, opened, and what they refuse."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from contextlib import closing

import numpy as np
import pytest
import vulkan

from kernelforge_runtime.abi.signature import PushConstant
from kernelforge_runtime.errors import (
    DeviceError,
    DeviceLostError,
    KernelForgeError,
    OutOfMemoryError,
    SpirvError,
)
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import flexible, list_devices, open_device
from kernelforge_runtime.vk.device import _choose
from kernelforge_runtime.vk.loader import api, check
from tests.conftest import ROOT
from tests.runtime.kernels import WORDS, N, kernel, plus_one

pytestmark = pytest.mark.vulkan


def child(code, **variables):
    """Runs Python code in a process of its own; returns its last line on stdout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VK_", "KERNELFORGE_"))}
    environment = {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = """
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk import list_devices, open_device
for call in (list_devices, open_device):
    try:
        call()
        print("opened")
    except DeviceError as error:
        print(error)
"""


def test_no_driver_is_one_clear_line():
    lines = child(OPEN, VK_DRIVER_FILES="/nonexistent.json").splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.match(r"no Vulkan device: .*install .* --device cpu", line)


def test_no_loader_library_is_one_clear_line():
    lines = child("import sys; sys.modules['vulkan'] = None" + OPEN).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("no Vulkan loader on this machine: libvulkan.so.1 was not found")
        assert "apt-get install" in line


def test_the_device_of_the_environment_is_the_one_opened(llvmpipe):
    code = "from kernelforge_runtime.vk import open_device; print(open_device().info.slug)"
    assert child(code, KERNELFORGE_DEVICE="llvmpipe") == "llvmpipe"
    unknown = child(OPEN, KERNELFORGE_DEVICE="voodoo")
    assert unknown.splitlines()[-1].startswith("device 'voodoo' was asked for; this machine has 0:")


def test_every_listed_device_opens_by_index_uuid_slug_and_part_of_its_name(llvmpipe):
    for index, info in enumerate(list_devices()):
        part = info.name.split()[0].upper()[:-1]
        for selector in (index, str(index), info.device_uuid, info.slug, part):
            with open_device(selector) as device:
                assert device.info.device_uuid == info.device_uuid, selector


@pytest.mark.parametrize("selector", ["no such device", 99, -1, "99", "²"])
def test_an_unknown_device_is_answered_with_a_list_of_those_there_are(llvmpipe, selector):
    with pytest.raises(DeviceError) as caught:
        open_device(selector)
    text = str(caught.value)
    assert str(selector) in text
    assert "\n" not in text
    for info in list_devices():
        assert info.name in text


def test_a_number_that_is_no_index_is_looked_for_in_the_names(llvmpipe):
    version = re.search(r"LLVM (\d+)", llvmpipe.info.name)
    if version is None or int(version[1]) < len(list_devices()):
        pytest.skip("the name of this llvmpipe has no such number")
    with open_device(version[1]) as device:
        assert device.info.slug == "llvmpipe"


def test_without_any_usable_device_the_message_says_what_was_found():
    with pytest.raises(DeviceError, match=r"no Vulkan 1\.2 device \(found: none\); install"):
        _choose([], None)


def test_unasked_the_best_type_is_taken_and_of_that_what_offers_most(llvmpipe):
    def physical(kind, features):
        info = dataclasses.replace(
            llvmpipe.info, device_type=kind, features=frozenset(features), api_version=(1, 3, 0)
        )
        return types.SimpleNamespace(info=info)

    poor, rich, twin = (physical("cpu", f) for f in (("int8",), ("int8", "int64"), ("a", "b")))
    gpu = physical("integrated", ())
    assert _choose([poor, rich, twin], None) is rich
    assert _choose([poor, rich, gpu], "") is gpu


def test_a_device_says_what_kernels_ask_of_it(device):
    info = device.info
    assert info.subgroup_min <= info.subgroup_size <= info.subgroup_max
    assert info.max_workgroup_invocations >= 128
    assert info.max_push_constants >= 128
    assert len(info.device_uuid) == len(info.pipeline_cache_uuid) == 32
    assert info.memory_bytes > 1 << 20
    assert type(info).from_json(info.to_json()) == info
    assert ("cooperative_matrix" in info.features) == bool(info.cooperative_shapes)


def test_cooperative_shapes_are_written_and_may_be_missing_in_what_was_written_before(llvmpipe):
    shapes = ((16, 16, 16, "f16", "f16", "f32", "f32"), (8, 8, 32, "i8", "i8", "i32", "i32"))
    info = dataclasses.replace(llvmpipe.info, cooperative_shapes=shapes)
    written = json.loads(json.dumps(info.to_json()))
    assert type(info).from_json(written) == info
    del written["cooperative_shapes"]
    assert type(info).from_json(written).cooperative_shapes == ()


RESULTS = {
    value: name
    for name, value in vars(vulkan).items()
    if re.match(r"VK_(ERROR_|TIMEOUT$|NOT_READY$|INCOMPLETE$)", name) and isinstance(value, int)
}


def test_every_result_of_vulkan_becomes_one_line_that_names_it():
    check(0, "working")
    for result in RESULTS:
        with pytest.raises(DeviceError, match=r"^doing something: .*(VK_[A-Z]|VkResult -?\d)") as e:
            check(result, "doing something")
        assert "\n" not in str(e.value)
    for result, kind in ((-1, OutOfMemoryError), (-2, OutOfMemoryError), (-4, DeviceLostError)):
        with pytest.raises(kind, match=RESULTS[result]):
            check(result, "doing something")


def test_the_device_answers_with_its_subgroup_size_when_it_is_required(device):
    size = device.info.subgroup_size
    module = kernel(
        "y[i] = gl_SubgroupSize;",
        (WORDS,),
        (),
        "GL_KHR_shader_subgroup_basic",
        workgroup=size,
        subgroup=size,
    )
    with closing(device.buffer(4 * size)) as out:
        dispatch = Dispatch(module, {"N": size}, {"y": out})
        with Plan(device, [dispatch]) as plan:
            plan.run()
        np.testing.assert_array_equal(out.download(np.uint32, size), size)


def test_a_subgroup_size_that_the_device_lacks_is_refused(device):
    module = kernel("y[i] = 1u;", (WORDS,), (), workgroup=64, subgroup=64)
    with pytest.raises(DeviceError, match=r"needs subgroups of 64; .* has \d+ to \d+"):
        device.pipeline(module)


def test_a_missing_feature_is_named_before_the_driver_sees_the_module(device):
    module = kernel("y[i] = 1u;", (WORDS,), (), features=("cooperative_matrix",))
    before = device.live_objects
    with pytest.raises(KernelForgeError, match="needs cooperative_matrix"):
        device.pipeline(module)
    assert device.live_objects == before


def test_spirv_that_disagrees_with_its_signature_never_reaches_the_driver(device):
    good = plus_one()
    before = device.live_objects
    for change in (
        {"workgroup": 32},
        {"push_constants": (N, PushConstant("K"))},
        {"bindings": good.signature.bindings[:1]},
        {"bindings": good.signature.bindings[::-1]},
        {"addressing": "address"},
    ):
        signature = dataclasses.replace(good.signature, **change)
        with pytest.raises(SpirvError):
            device.pipeline(dataclasses.replace(good, signature=signature))
    for spirv in (good.spirv[:-4], good.spirv[:-3], b"", b"\0" * 64):
        with pytest.raises(SpirvError):
            device.pipeline(dataclasses.replace(good, spirv=spirv))
    assert device.live_objects == before


def test_a_pipeline_is_made_once_per_module(device):
    assert device.pipeline(plus_one()) is device.pipeline(plus_one())


def test_words_of_an_unknown_structure_stand_behind_type_and_chain():
    ffi = api()[0]
    following = ffi.new("uint64_t*")
    chosen = flexible.enabling(
        ffi, frozenset({"matrix_flexible", "matrix_tensors", "int8"}), following
    )
    assert chosen.values == [0, 1, 0, 0, 0, 1, 0]
    head = ffi.cast("uint64_t*", chosen.pointer)
    assert ffi.cast("uint32_t*", chosen.pointer)[0] == 1000593000
    assert head[1] == int(ffi.cast("uintptr_t", following))
