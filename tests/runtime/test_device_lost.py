"""A device that is lost: the step is named, everything closes, and an engine goes on with another.

Vulkan's two calls that can say so are made to, behind the runtime's back; the rest is real.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.errors import DeviceLostError, RequestError
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7

pytestmark = pytest.mark.vulkan
GREEDY = kf.Sampling(temperature=0)
LOST = -4
PROMPTS = ("In the beginning", "And", "it came to pass in those days")


class Losing:
    """The Vulkan library of a device, one of whose calls says that the device is lost."""

    def __init__(self, lib, call, after):
        self._lib, self._call, self._left = lib, call, after

    def __getattr__(self, name):
        found = getattr(self._lib, name)
        if name != self._call:
            return found

        def called(*arguments):
            self._left -= 1
            return found(*arguments) if self._left >= 0 else LOST

        return called


def lose(device, call="vkQueueSubmit", after=0):
    device.lib = Losing(device.lib, call, after)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "bytes.safetensors", vocab=256, seed=3)


def loaded(path, device, **more):
    return kf.load_model(path, device, weights="f32", slots=2, **more)


def serving(model):
    """An engine with more requests than slots; one starts from a state, one draws."""
    engine = kf.Engine(model, chunk=8)
    _, state = model.forward([7, 8, 9])
    requests = [
        engine.submit(PROMPTS[0], 6, GREEDY),
        engine.submit(PROMPTS[1], 7, kf.Sampling(seed=5), state=state),
        engine.submit(PROMPTS[2], 5, GREEDY),
    ]
    requests.append(engine.fork(requests[0], 4))
    return engine, requests


def finish(engine):
    for _ in engine.run():
        pass


@pytest.fixture(scope="module")
def undisturbed(path):
    with kf.open_device(DEVICES[0]) as device, loaded(path, device) as model:
        engine, requests = serving(model)
        finish(engine)
        return [request.tokens for request in requests]


@pytest.mark.parametrize(
    ("call", "steps"), [("vkQueueSubmit", 0), ("vkWaitForFences", 1), ("vkWaitForFences", 5)]
)
def test_an_engine_goes_on_where_it_was_on_a_device_opened_again(path, undisturbed, call, steps):
    lost = kf.open_device(DEVICES[0])
    model = loaded(path, lost)
    engine, requests = serving(model)
    for _ in range(steps):
        engine.step()
    lose(lost, call)
    doing = "submitting" if call == "vkQueueSubmit" else "running"
    with pytest.raises(DeviceLostError) as caught:
        finish(engine)
    message = str(caught.value)
    assert f"{doing} 'rwkv7 last of " in message
    assert lost.info.name in message
    assert "open it again" in message
    assert "\n" not in message
    model.close()
    lost.close()
    assert lost.live_objects == {}
    with kf.open_device(DEVICES[0]) as device, loaded(path, device) as again:
        engine.reopen(again)
        finish(engine)
        assert [request.tokens for request in requests] == undisturbed
        assert all(request.reason == "length" for request in requests)


def test_a_lost_device_says_so_of_whatever_is_asked_next(path):
    device = kf.open_device(DEVICES[0])
    model = loaded(path, device)
    state = model.new_state()
    model.forward([1, 2], state)
    kept = state.clone()
    lose(device)
    with pytest.raises(DeviceLostError, match="submitting 'rwkv7 last of 1 tokens'"):
        model.forward([3], state)
    assert state.position == 2, "the token was not run"
    with pytest.raises(DeviceLostError, match=r"was lost before .*; close it and open it again"):
        model.forward([3], state)
    model.close()
    device.close()
    with pytest.raises(DeviceLostError, match="the state's values are lost"):
        state.save("nowhere.safetensors")
    assert np.isfinite(kept.arrays["wkv"]).all()
    with kf.open_device(DEVICES[0]) as device, loaded(path, device) as model:
        with pytest.raises(DeviceLostError, match="values are lost"):
            model.forward([3], state)
        model.forward([3], kept)  # nobody else is disturbed


def test_an_engine_does_not_go_on_with_another_model_or_with_fewer_slots(path, tmp_path):
    engine = kf.Engine(kf.load_reference(path), slots=4)
    other = kf.load_reference(random_rwkv7(tmp_path / "o.safetensors", vocab=256, seed=4))
    with pytest.raises(RequestError, match="the same model only"):
        engine.reopen(other)
    small = kf.load_model(path, opened(DEVICES[0]), weights="f32", slots=2)
    with small, pytest.raises(RequestError, match=r"of 4 slots: this model has 2"):
        engine.reopen(small)
