"""Python's entry points, called with what they do not take: one line, and nothing is changed."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import random_rwkv7


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", vocab=256)


@pytest.fixture(scope="module")
def reference(path):
    return kf.load_reference(path)


@pytest.mark.parametrize("tokens", [5, None, (t for t in (1, 2)), [[1, 2], [3]], "ab", [1.5]])
def test_what_is_no_list_of_ids_is_refused_in_one_line(reference, tokens):
    with pytest.raises(kf.KernelForgeError, match="tokens must be whole numbers in one list"):
        reference.forward(tokens)


@pytest.mark.parametrize("state", [{}, "s.safetensors", 5])
def test_what_is_no_state_is_refused_in_one_line(reference, state):
    for run in (
        lambda: reference.forward([1], state),
        lambda: reference.forward_batch([[1]], [state]),
    ):
        with pytest.raises(kf.KernelForgeError, match="a state is a State, found"):
            run()


@pytest.mark.parametrize(
    ("prompt", "asked", "says"),
    [
        ("a", {"max_tokens": -1}, "max_tokens is -1, it must be a whole number"),
        ("a", {"max_tokens": "5"}, "max_tokens is '5'"),
        ("a", {"sampling": {"temperature": 0}}, "it must be a Sampling"),
        (None, {}, "tokens must be whole numbers in one list: None is no list"),
        ([1.7], {}, "tokens must be whole numbers in one list"),
    ],
)
def test_generation_that_cannot_be_is_refused_in_one_line(reference, prompt, asked, says):
    with pytest.raises(kf.KernelForgeError, match=says):
        list(kf.generate(reference, prompt, **asked))


def test_a_stop_string_that_no_text_holds_is_refused(reference):
    engine = kf.Engine(reference)
    with pytest.raises(kf.KernelForgeError, match=r"request refused: byte 0xff .* is not UTF-8"):
        engine.submit("a", stop=["x\udcff"])
    assert not engine.is_busy


@pytest.mark.parametrize("dtype", ["int8", "float16", np.int64])
def test_numpy_computes_in_nothing_that_gives_wrong_numbers(path, dtype):
    with pytest.raises(kf.KernelForgeError, match="NumPy computes in float32 or float64"):
        kf.load_reference(path, dtype)


@pytest.mark.vulkan
def test_a_load_that_fails_leaves_the_devices_limit_as_it_was(path, device):
    before = device.memory.limit
    with pytest.raises(kf.KernelForgeError):
        kf.load_model(path, device, memory="1KiB")
    assert device.memory.limit == before
    with kf.load_model(path, device) as model, pytest.raises(kf.KernelForgeError, match="a State"):
        model.forward([1], {})


@pytest.mark.vulkan
@pytest.mark.parametrize("slots", [0, -1, 257, 1.5, "2", None, True, 10**400])
def test_slots_that_no_model_has_are_refused_in_one_line(path, device, slots):
    before = device.memory.used
    with pytest.raises(kf.KernelForgeError, match="slots: a model has a whole number") as found:
        kf.load_model(path, device, slots=slots)
    assert len(str(found.value)) < 120
    assert device.memory.used == before


def test_a_device_is_opened_first(path):
    with pytest.raises(kf.KernelForgeError, match=r"pass what open_device\('llvmpipe'\) gives"):
        kf.load_model(path, "llvmpipe")


@pytest.mark.vulkan
def test_a_closed_device_takes_no_model(path):
    device = kf.open_device()
    device.close()
    with pytest.raises(kf.KernelForgeError, match="the device was closed: open it again"):
        kf.load_model(path, device)
