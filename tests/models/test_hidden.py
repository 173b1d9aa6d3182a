"""Hidden states, magnitudes by layer, and vectors in place of tokens: in NumPy and on a device."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.errors import ModelError
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7
from tests.models.official import worst
from tests.models.versions import VERSIONS

LIMIT = 1e-4
READS_IDS = {"rwkv7a", "rwkv8-rc00", "rosa-counting-1bit", "rosa-counting-4bit"}
"""Versions that read more of a token than its embedding."""


ON_DEVICE = ("rwkv6", "rwkv7", "rwkv7-rosa", "rosa-counting-1bit")
"""With and without a first norm, with a residual stream that is the vectors' own memory."""


@pytest.fixture(
    scope="module",
    params=[
        *(("numpy", version) for version in VERSIONS),
        *(pytest.param((DEVICES[0], v), marks=pytest.mark.vulkan) for v in ON_DEVICE),
    ],
    ids=lambda value: "-".join(value),
)
def given(request, tmp_path_factory):
    """(model, float64 oracle, version)."""
    engine, version = request.param
    path = tmp_path_factory.mktemp(version) / f"{version}.safetensors"
    VERSIONS[version](path)
    oracle = kf.load_reference(path, np.float64)
    if engine == "numpy":
        yield kf.load_reference(path), oracle, version
        return
    with kf.load_model(path, opened(engine), weights="f32") as model:
        yield model, oracle, version


def prompt(model, count, seed=3):
    return np.random.default_rng(seed).integers(0, model.config.vocab, count).tolist()


def test_hidden_states_of_every_layer_are_the_float64_oracles_and_change_no_logits(given):
    model, oracle, _ = given
    tokens = prompt(model, 8)
    expected, found = kf.Hidden(embedding=True), kf.Hidden(embedding=True)
    oracle.forward(tokens, hidden=expected)
    logits, state = model.forward(tokens, hidden=found)
    plain, same = model.forward(tokens)
    assert found.layers == expected.layers == list(range(model.config.layers))
    for layer in found.layers:
        assert found[layer].shape == (8, model.config.width)
        assert found[layer].dtype == np.float32
        assert worst(found[layer], expected[layer]) < LIMIT, layer
    assert not np.array_equal(found[0], found[-1])
    np.testing.assert_array_equal(found.embedding, expected.embedding)
    assert worst(logits, plain) < LIMIT
    assert state.position == same.position == 8


def test_vectors_that_are_the_embeddings_rows_give_the_tokens_logits(given):
    model, oracle, version = given
    tokens, kept = prompt(model, 8), kf.Hidden([], embedding=True)
    oracle.forward(tokens, hidden=kept)
    expected, after = model.forward(tokens)
    if version in READS_IDS:
        with pytest.raises(ModelError, match="reads more of a token than its embedding"):
            model.forward(vectors=kept.embedding)
        return
    logits, state = model.forward(vectors=kept.embedding)
    assert worst(logits, expected) < LIMIT
    more, later = model.forward(tokens, state), model.forward(tokens, after)
    assert worst(more[0], later[0]) < LIMIT


@pytest.fixture(scope="module")
def plain_path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", layers=3)


@pytest.fixture(scope="module", params=["numpy", pytest.param("device", marks=pytest.mark.vulkan)])
def plain(request, plain_path):
    """One model that is not asked of every version."""
    if request.param == "numpy":
        yield kf.load_reference(plain_path)
        return
    with kf.load_model(plain_path, opened(DEVICES[0]), weights="f32") as loaded:
        yield loaded


def test_a_run_in_chunks_keeps_every_token_and_a_later_run_replaces_it(plain):
    tokens = prompt(plain, 300)  # more than a step takes
    found = kf.Hidden([-1, 0])
    plain.forward(tokens, hidden=found)
    assert found.layers == [0, 2]
    assert found[-1].shape == (300, plain.config.width)
    np.testing.assert_array_equal(found[-1], found[2])
    long = found[2].copy()
    plain.forward(tokens[:5], hidden=found)
    assert found[0].shape == (5, plain.config.width)
    assert worst(found[2], long[:5]) < LIMIT


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3], "layer 3: this rwkv7 has layers 0 to 2"),
        ([-4], "layer -4: this rwkv7 has layers 0 to 2"),
        ([1.5], "layer 1.5: layers are whole numbers"),
        (["1"], "layer '1': layers are whole numbers"),
        ([True], "layer True: layers are whole numbers"),
        (5, "hidden state of 5: name layers in a list"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_anything_runs(plain, layers, message):
    state = plain.new_state()
    with pytest.raises(ModelError) as caught:
        plain.forward([1, 2], state, hidden=kf.Hidden(layers))
    assert message in str(caught.value)
    assert state.position == 0


class Failing:
    """Fails where it is shown the end of a layer, once."""

    def __init__(self, model=None):
        self.model, self.failed = model, False

    def begin(self, layers, version):
        pass

    def wants(self, place):
        return place.ends_block

    def see(self, place, values):
        if self.model is not None:
            self.model.forward([1])
        if not self.failed:
            self.failed = True
            raise RuntimeError("seen enough")


def test_an_observer_that_fails_leaves_the_state_whole(plain):
    tokens = prompt(plain, 9)
    state, whole = plain.new_state(), plain.new_state()
    with pytest.raises(RuntimeError, match="seen enough"):
        plain.forward(tokens[:6], state, hidden=Failing())
    assert state.position == 6
    plain.forward(tokens[:6], whole)
    assert worst(plain.forward(tokens[6:], state)[0], plain.forward(tokens[6:], whole)[0]) < LIMIT


@pytest.mark.vulkan
def test_an_observer_cannot_run_the_model_in_the_middle_of_a_step(plain_path):
    with kf.load_model(plain_path, opened(DEVICES[0]), weights="f32") as model:
        state = model.new_state()
        with pytest.raises(ModelError, match="an observer cannot run the model that it looks at"):
            model.forward([1, 2], state, hidden=Failing(model))
        assert state.position == 2
        assert np.isfinite(model.forward([3], state)[0]).all()


def test_what_was_not_kept_is_not_made_up(plain):
    found = kf.Hidden([1])
    with pytest.raises(ModelError, match="layer 1: it was not kept"):
        found[1]
    plain.forward([1, 2], hidden=found)
    for layer in (0, 2, -1, -9, 7):
        with pytest.raises(ModelError, match="it was not kept"):
            found[layer]
    with pytest.raises(ModelError, match="embedding=True"):
        _ = found.embedding


BAD_VECTORS = {
    "none": (np.zeros((0, 64)), "no vectors to run"),
    "one axis": (np.zeros(64), "vectors are float64 [64]: this model takes numbers [T, 64]"),
    "too narrow": (np.zeros((2, 63)), "[2, 63]: this model takes"),
    "complex": (np.zeros((2, 64), complex), "vectors are complex128"),
    "text": (np.full((2, 64), "1"), "this model takes numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], "vectors are no array of numbers"),
    "NaN": (np.where(np.arange(128) == 70, np.nan, 1.0).reshape(2, 64), "vector 1 of 2 holds"),
    "infinite in float32": (np.full((1, 64), 1e39), "vector 0 of 1 holds"),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_vectors_that_cannot_be_run_are_refused_in_one_line(plain, name):
    vectors, message = BAD_VECTORS[name]
    state = plain.new_state()
    with pytest.raises(ModelError) as caught:
        plain.forward(vectors=vectors, state=state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state.position == 0


def test_tokens_and_vectors_at_once_are_refused(plain):
    with pytest.raises(ModelError, match="tokens and vectors were given"):
        plain.forward([1], vectors=np.zeros((1, 64)))


@pytest.mark.vulkan
def test_a_vector_beyond_float16_is_refused_where_activations_are_float16(plain_path):
    with kf.load_model(plain_path, opened(DEVICES[0]), activations="f16") as model:
        with pytest.raises(ModelError, match="not finite in f16"):
            model.forward(vectors=np.full((1, 64), 7e4))
        found = kf.Hidden([], embedding=True)
        expected, _ = model.forward([3, 4, 5], hidden=found)
        logits, _ = model.forward(vectors=found.embedding)
        np.testing.assert_array_equal(logits, expected)


def test_hidden_states_of_a_rescaled_stream_are_those_of_float32(tmp_path):
    path = VERSIONS["rwkv6"](tmp_path / "m.safetensors", layers=8)
    full, halved = kf.Hidden(), kf.Hidden()
    kf.load_reference(path).forward([1, 2, 3], hidden=full)
    kf.load_reference(path, activations="f16").forward([1, 2, 3], hidden=halved)
    for layer in range(8):  # halved behind the sixth
        scale = np.abs(full[layer]).max()
        assert worst(halved[layer], full[layer]) < 0.02 * scale, layer


def test_magnitudes_are_those_of_the_hidden_states(plain):
    tokens, kept, sizes = prompt(plain, 12), kf.Hidden(), kf.Magnitudes()
    plain.forward(tokens, hidden=kept)
    plain.forward(tokens, hidden=sizes)
    ends = {m.place.block: m for m in sizes.found if m.place.ends_block and m.place.block >= 0}
    assert list(ends) == [0, 1, 2]
    for layer, found in ends.items():
        assert found.largest == pytest.approx(np.abs(kept[layer]).max(), rel=1e-4)
        assert 0 < found.added <= 2 * max(m.largest for m in sizes.found)
    assert sizes.first_damage is None


def test_the_first_layer_that_overflows_is_named(tmp_path):
    def spoil(weights):
        weights["blocks.1.ffn.key.weight"] *= 100
        weights["blocks.1.ffn.value.weight"][3] = 3e38

    path = random_rwkv7(tmp_path / "m.safetensors", layers=3, change=spoil)
    sizes = kf.Magnitudes()
    with np.errstate(all="ignore"):
        kf.load_reference(path).forward([1, 2, 3], hidden=sizes)
    first = sizes.first_damage
    assert (first.place.block, first.place.part, first.token) == (1, "channel mix", 0)
    assert first.damaged == 3  # one channel of three tokens
