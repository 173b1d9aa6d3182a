"""A tuned initial state is found in a model or in a file of its own, and turned the right way."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import kernelforge_runtime as kf
from kernelforge.measure.verify import compare
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.registry import model_files, recognise
from kernelforge_runtime.models.tuned_state import read_state_file, read_tuned_state
from kernelforge_runtime.weights import open_checkpoint
from tests.models.checkpoints import SHARED, from_golden, random_rwkv7
from tests.runtime.equations import Layer, eagle, finch, forward, goose
from tests.runtime.model_files import write_pth, write_safetensors

LAYERS, HEADS, SIZE = 2, 1, 64
TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def time_states(rng, layers=LAYERS, heads=HEADS, size=SIZE):
    return {
        f"blocks.{i}.att.time_state": rng.standard_normal((heads, size, size)).astype(np.float32)
        for i in range(layers)
    }


def config(tmp_path):
    with open_checkpoint(random_rwkv7(tmp_path / "plain.safetensors")) as checkpoint:
        return recognise(checkpoint).read_config(checkpoint)


def read(path, config):
    with open_checkpoint(path) as checkpoint:
        return read_tuned_state(checkpoint, config)


def refused(path, config, function=read_state_file):
    with pytest.raises(ModelError) as caught:
        function(path, config)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_model_without_one_has_none_and_starts_from_zero(tmp_path):
    path = random_rwkv7(tmp_path / "m.safetensors")
    assert read(path, config(tmp_path)) is None
    assert not kf.load_reference(path).new_state().arrays["wkv"].any()


def test_a_tuned_state_in_the_model_is_taken_as_it_is(tmp_path, rng):
    states = time_states(rng)
    path = random_rwkv7(tmp_path / "m.safetensors", change=lambda w: w.update(states))
    found = read(path, config(tmp_path))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack(list(states.values())))
    np.testing.assert_array_equal(kf.load_reference(path).new_state().arrays["wkv"], found)


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_file_of_tuned_states_gives_what_the_same_states_in_the_model_give(tmp_path, rng, write):
    states = time_states(rng)
    merged = random_rwkv7(tmp_path / "merged.safetensors", change=lambda w: w.update(states))
    expected, _ = kf.load_reference(merged).forward(TOKENS)
    model = kf.load_reference(random_rwkv7(tmp_path / "m.safetensors"))
    state = model.load_state(write(tmp_path / "tuned", states))
    assert state.position == 0
    assert not state.arrays["shift"].any()
    got, _ = model.forward(TOKENS, state)
    np.testing.assert_array_equal(got, expected)
    assert np.abs(got - model.forward(TOKENS)[0]).max() > 0.01  # it does change what is said


def test_a_tuned_state_in_a_file_replaces_the_models_own(tmp_path, rng):
    own, other = time_states(rng), time_states(rng)
    path = random_rwkv7(tmp_path / "m.safetensors", change=lambda w: w.update(own))
    state = kf.load_reference(path).load_state(write_pth(tmp_path / "s.pth", other))
    np.testing.assert_array_equal(state.arrays["wkv"], np.stack(list(other.values())))


def test_bfloat16_states_are_read(tmp_path, rng):
    states = time_states(rng)
    bits = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in states.items()}
    state = read_state_file(write_pth(tmp_path / "s.pth", bits), config(tmp_path))
    for got, wanted in zip(state.arrays["wkv"], bits.values(), strict=True):
        np.testing.assert_array_equal(got, (wanted.astype(np.uint32) << 16).view(np.float32))


def test_a_saved_state_is_still_a_state_file(tmp_path):
    model = kf.load_reference(random_rwkv7(tmp_path / "m.safetensors"))
    _, state = model.forward(TOKENS)
    state.save(tmp_path / "s.safetensors")
    loaded = read_state_file(tmp_path / "s.safetensors", model.config)
    assert loaded.position == len(TOKENS)
    np.testing.assert_array_equal(loaded.arrays["wkv"], state.arrays["wkv"])


def spoiled(rng, kind):
    states = time_states(rng)
    if kind == "nan":
        states["blocks.1.att.time_state"][0, 3, 4] = np.nan
    elif kind == "missing":
        del states["blocks.1.att.time_state"]
    elif kind == "layers":
        states = time_states(rng, layers=3)
    elif kind == "heads":
        states = time_states(rng, heads=2)
    elif kind == "others":
        states["emb.weight"] = np.zeros((4, 4), np.float32)
    return states


SAYS = {
    "nan": "blocks.1.att.time_state holds NaN",
    "missing": "blocks.1.att.time_state is missing: a tuned state has one for each",
    "layers": "blocks.2.att.time_state is no layer of this model, which has 2",
    "heads": "blocks.0.att.time_state has shape [2, 64, 64], this model's heads need [1, 64, 64]",
    "others": "holds emb.weight: expected a saved state, or a tuned one",
}


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_file_that_does_not_fit_gets_one_line(tmp_path, rng, kind, write):
    path = write(tmp_path / "s", spoiled(rng, kind))
    assert SAYS[kind] in refused(path, config(tmp_path))


def test_a_damaged_or_absent_file_gets_one_line(tmp_path, rng):
    sizes = config(tmp_path)
    assert "no such file" in refused(tmp_path / "absent", sizes)
    assert "a folder" in refused(tmp_path, sizes)
    whole = write_pth(tmp_path / "s.pth", time_states(rng)).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(tmp_path / "cut.pth", sizes)
    ints = {"blocks.0.att.time_state": np.zeros((HEADS, SIZE, SIZE), np.float32)}
    pile = write_pth(tmp_path / "few.pth", ints)
    assert "this one holds 1" in refused(pile, sizes)


@pytest.mark.parametrize("kind", ["nan", "missing"])
def test_a_model_with_a_spoiled_tuned_state_is_refused(tmp_path, rng, kind):
    path = random_rwkv7(tmp_path / "m.safetensors", change=lambda w: w.update(spoiled(rng, kind)))
    with pytest.raises(ModelError, match=r"blocks\.1\.att\.time_state"):
        kf.load_reference(path)


def needs(version):
    """Skips where a version is not built in, or its golden vectors are not at hand."""
    if version not in model_files():
        pytest.skip(f"no model file {version}.py yet")


def golden(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    return path


def test_a_version_without_state_matrices_refuses_one(tmp_path, rng):
    needs("rwkv4")
    from_golden(golden("golden_v4.npz"), tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        sizes = recognise(checkpoint).read_config(checkpoint)
    path = write_pth(tmp_path / "s.pth", time_states(rng))
    assert "but rwkv4 has no such state" in refused(path, sizes)


def official_logits(weights, tokens, time_mix, states):
    """From the published equations, the state where the published code keeps it."""
    layers = [Layer(weights, i, states[i].astype(np.float64)) for i in range(len(states))]
    return forward(weights, tokens, layers, time_mix)


def assert_equal(found, expected):
    result = compare("logits", found, expected, F32, reduction=1)  # both were computed in float64
    assert result.ok, result.reason


@pytest.mark.parametrize(
    ("file", "version", "time_mix"),
    [("golden_v5.2.npz", "rwkv5", eagle), ("golden_v6.npz", "rwkv6", finch)],
)
def test_rwkv5_and_6_take_the_transpose_of_what_their_equations_call_the_state(
    tmp_path, rng, file, version, time_mix
):
    needs(version)
    path = tmp_path / "m.safetensors"
    tokens = from_golden(golden(file), path)["tokens"]
    states = time_states(rng, heads=2)
    saved = list(states.values())
    model = kf.load_reference(path, np.float64)
    state = model.load_state(write_pth(tmp_path / "s.pth", states))
    got, _ = model.forward(tokens, state, full_output=True)
    weights = load_file(path)
    key_value = official_logits(weights, tokens, time_mix, [s.swapaxes(1, 2) for s in saved])
    assert_equal(got, key_value)
    assert np.abs(got - official_logits(weights, tokens, time_mix, saved)).max() > 0.01


def test_rwkv7_takes_what_its_equations_call_the_state(tmp_path, rng):
    path = random_rwkv7(tmp_path / "m.safetensors", width=128)
    states = time_states(rng, heads=2)
    saved = list(states.values())
    model = kf.load_reference(path, np.float64)
    state = model.load_state(write_pth(tmp_path / "s.pth", states))
    got, _ = model.forward(TOKENS, state, full_output=True)
    weights = load_file(path)
    value_key = official_logits(weights, TOKENS, goose, saved)
    assert_equal(got, value_key)
    other = official_logits(weights, TOKENS, goose, [s.swapaxes(1, 2) for s in saved])
    assert np.abs(got - other).max() > 0.01
