"""What must not change a model's logits, whatever its version and whoever computes them.

Neither how many tokens a step takes, nor which other sequences it takes along, nor whether a state
was saved in between, nor the order of the tensors in the file.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.weights import open_checkpoint
from tests.conftest import DEVICES, opened
from tests.models.official import worst
from tests.models.versions import VERSIONS
from tests.runtime.model_files import write_pth

LIMIT = {"numpy": 1e-4}
"""Of logits about 2 in size; 1e-3 on a device, whose sums have another order."""


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def path(version, tmp_path_factory):
    target = tmp_path_factory.mktemp(version) / f"{version}.safetensors"
    VERSIONS[version](target)
    return target


class Engine:
    """Loads models to be run by NumPy or on one of the devices."""

    def __init__(self, name):
        self.name = name
        self.limit = LIMIT.get(name, 1e-3)

    def load(self, path, slots=1):
        if self.name == "numpy":
            return kf.load_reference(path)
        return kf.load_model(path, opened(self.name), weights="f32", slots=slots)


@pytest.fixture(
    params=["numpy", *(pytest.param(name, marks=pytest.mark.vulkan) for name in DEVICES)]
)
def engine(request):
    return Engine(request.param)


def prompt(model, count, seed=3):
    return np.random.default_rng(seed).integers(0, model.config.vocab, count).tolist()


def assert_same_state(found, expected, limit):
    """A sum of many values may be off by more than one logit."""
    assert found.position == expected.position
    for name, values in expected.arrays.items():
        other = found.arrays[name]
        if values.dtype == np.uint32:  # packed symbols; what is behind them is unwritten room
            words = min(values.shape[-1], other.shape[-1])
            np.testing.assert_array_equal(other[..., :words], values[..., :words])
        else:
            scale = max(1.0, float(np.abs(values[values > -1e29]).max()))
            assert worst(other, values) < limit * scale, name


def test_a_model_is_known_by_its_tensors_whatever_their_order(version, path, tmp_path, rng):
    with open_checkpoint(path) as checkpoint:
        weights = {name: checkpoint.tensor(name) for name in checkpoint}
        metadata = checkpoint.metadata
    assert kf.load_reference(path).config.version == version
    if metadata:
        pytest.skip("a .pth cannot carry the metadata that this version needs")
    for i, names in enumerate((list(weights)[::-1], rng.permutation(list(weights)))):
        shuffled = tmp_path / f"{i}.pth"
        write_pth(shuffled, {str(name): weights[str(name)] for name in names})
        assert kf.load_reference(shuffled).config.version == version


def test_chunks_of_any_size_give_the_same_logits_and_state(engine, path):
    with engine.load(path) as model:
        tokens = prompt(model, 75)
        expected, whole = model.forward(tokens, full_output=True)
        for size in (1, 7, 32):
            state, pieces = model.new_state(), []
            for start in range(0, len(tokens), size):
                piece = tokens[start : start + size]
                logits, state = model.forward(piece, state, full_output=True)
                pieces.append(logits)
            assert worst(np.concatenate(pieces), expected) < engine.limit, f"chunks of {size}"
            assert_same_state(state, whole, engine.limit)


def test_a_batch_gives_each_sequence_what_it_gets_alone(engine, path):
    with engine.load(path, slots=3) as model:
        first = [prompt(model, n, seed=n) for n in (9, 1, 33, 4)]
        second = [prompt(model, n, seed=50 + n) for n in (1, 1, 1, 12)]
        logits, states = model.forward_batch(first)
        more, states = model.forward_batch(second, states)
        for i, (tokens, later) in enumerate(zip(first, second, strict=True)):
            expected, state = model.forward(tokens)
            assert worst(logits[i], expected) < engine.limit, f"sequence {i}"
            expected, state = model.forward(later, state)
            assert worst(more[i], expected) < engine.limit, f"sequence {i} continued"
            assert_same_state(states[i], state, engine.limit)


def test_a_saved_or_cloned_state_continues_as_if_nothing_happened(engine, path, tmp_path):
    with engine.load(path) as model:
        tokens = prompt(model, 45)
        expected, _ = model.forward(tokens)
        _, state = model.forward(tokens[:30])
        clone = state.clone()
        state.save(tmp_path / "state.safetensors")
        model.forward(tokens[20:])  # another sequence takes the device in between
        for kept in (clone, model.load_state(tmp_path / "state.safetensors"), state):
            logits, _ = model.forward(tokens[30:], kept)
            assert worst(logits, expected) < engine.limit


def test_a_model_of_one_layer_runs(engine, version, tmp_path):
    path = VERSIONS[version](tmp_path / f"{version}.safetensors", layers=1)
    with engine.load(path) as model:
        assert (model.config.version, model.config.layers) == (version, 1)
        tokens = prompt(model, 20)
        logits, _ = model.forward(tokens, full_output=True)
    expected, _ = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
    assert worst(logits, expected) < engine.limit


def test_every_device_gives_numpys_logits(engine, path):
    with engine.load(path) as model:
        tokens = prompt(model, 40)
        logits, state = model.forward(tokens, full_output=True)
        expected, exact = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
        assert worst(logits, expected) < engine.limit
        assert_same_state(state, exact, engine.limit)
