"""Tokens chosen on the device are the host's choices; what it cannot choose, the host does."""

from dataclasses import replace

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.compile import compile_variant
from kernelforge.families.sample import SAMPLE
from kernelforge.measure.verify import verify
from kernelforge.pack import pack
from kernelforge.pack.winners import Winner
from kernelforge.render import render
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.bundle import KernelSet, open_bundle
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.engine import request as requests_module
from kernelforge_runtime.errors import RequestError
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7
from tests.toolkit.cli_process import need_compiler

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SAMPLINGS = [
    kf.Sampling(temperature=0),
    kf.Sampling(temperature=1.2, top_p=0.9, seed=1),
    kf.Sampling(temperature=0.8, top_p=1.0, top_k=20, presence=0.5, frequency=0.4, seed=2),
    kf.Sampling(temperature=0, presence=0.5, seed=3),
    kf.Sampling(temperature=2.0, top_p=0.6, top_k=5, presence=0, frequency=0, seed=2**63 + 5),
]
PROMPTS = ["In the beginning", "And", "x" * 30, "Moses", "a"]


def sampling_bundle(folder, device):
    """A bundle of the one family."""
    need_compiler()
    (problem,) = SAMPLE.default_problems
    params = SAMPLE.default(F32, GENERIC, problem)
    module, rendered = compile_variant(SAMPLE, F32, params), render(SAMPLE, F32, params)
    checked = verify(device, SAMPLE, F32, module, SAMPLE.corner_problems[1])
    winner = Winner(
        family=SAMPLE.name,
        precision=F32.name,
        problem=problem,
        module=module,
        median_ns=0,
        spread_ns=0,
        trials=0,
        default_ns=0,
        verification=checked,
        template_sha256=rendered.template_sha256,
        glsl_sha256=rendered.sha256,
    )
    return open_bundle(pack(folder, GENERIC, [winner]), device.info)


@pytest.fixture(scope="module", params=DEVICES)
def model(request, tmp_path_factory):
    device = opened(request.param)
    folder = tmp_path_factory.mktemp("m")
    path = random_rwkv7(folder / "bytes.safetensors", vocab=256, seed=3)
    others = KernelSet.open(device.info)
    kernels = KernelSet([*others.bundles, sampling_bundle(folder, device)])
    with kf.load_model(path, device, kernels, weights="f32", slots=4) as loaded:
        yield loaded


def served(model, on_device, samplings=SAMPLINGS, tokens=14, **more):
    engine = kf.Engine(model, chunk=16, on_device=on_device)
    asked = [engine.submit(p, tokens, s, **more) for p, s in zip(PROMPTS, samplings, strict=True)]
    for _ in engine.run():
        pass
    return asked


def test_device_and_host_choose_the_same_tokens(model):
    found, expected = served(model, True), served(model, False)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert [r.text for r in found] == [r.text for r in expected]


def test_only_tokens_are_read_back_unless_logits_are_asked_for(model, monkeypatch):
    read = []
    logits_of = type(model)._logits
    monkeypatch.setattr(type(model), "_logits", lambda *given: read.append(1) or logits_of(*given))
    served(model, True)
    assert not read
    asked = served(model, True, tokens=3, logits=True)
    assert read
    assert all(len(r.tokens) == 3 for r in asked)


def test_who_asks_for_logits_gets_them_untouched_beside_others(model):
    engine = kf.Engine(model, on_device=True)
    with_logits = engine.submit("In the", 6, SAMPLINGS[2], logits=True)
    without = engine.submit("In the", 6, SAMPLINGS[2])
    events = [e for e in engine.run() if e.request is with_logits]
    assert with_logits.tokens == without.tokens
    _, state = model.forward(list(b"In the"))
    for event, token in zip(events[1:], with_logits.tokens, strict=False):
        expected, state = model.forward([token], state)
        np.testing.assert_allclose(event.logits, expected, atol=1e-3)


def test_more_penalties_than_there_is_room_for_are_the_hosts(model, monkeypatch):
    expected = served(model, False)[2].tokens
    monkeypatch.setattr(requests_module, "MOST_PENALTIES", 3)
    assert served(model, True)[2].tokens == expected


def test_a_damaged_state_ends_its_request_alone(model):
    engine = kf.Engine(model, on_device=True)
    bad = engine.submit("ab", 5, state=model.new_state())
    bad.state.arrays["wkv"][...] = np.nan
    good = engine.submit("ab", 5, SAMPLINGS[1])
    for _ in engine.run():
        pass
    assert (bad.reason, bad.tokens) == ("error", [])
    assert "not finite" in bad.error
    assert (good.reason, len(good.tokens)) == ("length", 5)


def test_without_the_kernel_the_host_chooses_and_insisting_is_refused(model):
    bundles = [b for b in model.kernels.bundles if not b.problems("sample", "f32")]
    kept, model.kernels = model.kernels, KernelSet(bundles)
    try:
        assert not kf.Engine(model).on_device
        with pytest.raises(RequestError, match="have no kernel `sample`"):
            kf.Engine(model, on_device=True)
    finally:
        model.kernels = kept
    info = model.device.info
    assert kf.Engine(model).on_device == (info.device_type != "cpu")
    model.device.info = replace(info, device_type="discrete")
    try:
        assert kf.Engine(model).on_device
    finally:
        model.device.info = info
