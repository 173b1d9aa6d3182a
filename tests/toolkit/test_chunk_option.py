"""Tokens of a step as asked: by `--chunk` or in Python, on a device and by NumPy, or refused."""

import json
from argparse import ArgumentParser

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.loading import loaded
from kernelforge.cli.main import main, parser_of
from kernelforge_runtime.ops.observation import EMBEDDING_PART
from tests.models.checkpoints import random_rwkv7
from tests.toolkit.cli_process import DEVICE, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


class Pieces:
    """An observer that keeps how many tokens each step had."""

    def __init__(self):
        self.found = []

    def begin(self, layers, version):
        self.found.clear()

    def wants(self, place):
        return place.part == EMBEDDING_PART

    def see(self, place, x):
        self.found.append(len(x))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", vocab=256)


def pieces(model, **how):
    seen = Pieces()
    logits, _ = model.forward(PROMPT, hidden=seen, **how)
    return seen.found, logits


def test_numpy_computes_as_many_tokens_at_once_as_was_asked(path):
    whole, expected = pieces(kf.load_reference(path))
    assert whole == [11]
    model = kf.load_reference(path, chunk=4)
    found, logits = pieces(model)
    assert found == [4, 4, 3]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)
    assert pieces(model, chunk=5)[0] == [5, 5, 1]
    assert kf.Engine(model, slots=2).chunk == 4
    assert kf.Engine(model, slots=6).chunk == 6


@pytest.mark.vulkan
def test_a_device_runs_as_many_tokens_in_a_step_as_was_asked(path, device):
    with kf.load_model(path, device, chunk=4, hooks=True) as model:
        assert model.needs.chunk == 4
        assert pieces(model)[0] == [4, 4, 3]
        assert pieces(model, chunk=5)[0] == [5, 5, 1]


@pytest.mark.vulkan
@pytest.mark.parametrize("chunk", [0, -1, 257, 1000, 2.5, True, "16", 10**400])
def test_steps_that_cannot_be_are_refused_and_not_made_smaller(path, device, chunk):
    says = r"chunk is .*, it must be a whole number from 1 to 256: the tokens of one step"
    with pytest.raises(kf.KernelForgeError, match=says) as found:
        kf.load_model(path, device, chunk=chunk)
    assert len(str(found.value)) < 200
    with pytest.raises(kf.KernelForgeError, match=says):
        kf.load_reference(path, chunk=chunk)
    with kf.load_reference(path) as model, pytest.raises(kf.KernelForgeError, match=says):
        model.forward(PROMPT, chunk=chunk)
    with kf.load_model(path, device) as model:
        for run in (model.forward, lambda ids, chunk: model.forward_batch([ids], chunk=chunk)):
            with pytest.raises(kf.KernelForgeError, match=says):
                run(PROMPT, chunk=chunk)


def test_the_option_reaches_numpy():
    parser, _ = parser_of("run")
    assert isinstance(parser, ArgumentParser)
    args = parser.parse_args([str(tiny_model()), "a", "--device", "cpu", "--chunk", "7"])
    with loaded(args) as (model, _):
        assert model.chunk == 7


@pytest.mark.parametrize("verb", ["run", "batch", "chat"])
def test_an_option_beyond_a_step_is_a_usage_error(verb, capsys):
    assert main([verb, "none.safetensors", "--chunk", "1000"]) == 2
    assert "--chunk: chunk is 1000, it must be a whole" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.vulkan
def test_statistics_are_of_the_steps_that_ran(capsys):
    asked = ["run", str(tiny_model()), "Hello, hello, hello", "--tokens", "1", "--device", DEVICE]
    told = {}
    for chunk in ("4", "64"):
        assert main([*asked, "--chunk", chunk, "--stats", "--json"]) == 0
        found = capsys.readouterr()
        assert f"prompts in pieces of {chunk} tokens" in found.err
        told[chunk] = json.loads(found.out)["stats"]
        assert told[chunk]["memory"]["chunk"] == int(chunk)
    assert told["4"]["memory"]["work"] < told["64"]["memory"]["work"]
