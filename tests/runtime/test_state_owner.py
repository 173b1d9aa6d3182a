"""Which model a state is of: its file says so, and no other model takes it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import kernelforge_runtime as kf
from kernelforge_runtime.errors import KernelForgeError, ModelError
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rwkv7_rosa


def equal(a, b):
    return a.arrays.keys() == b.arrays.keys() and all(
        np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays
    )


def saved(path, target):
    """A state of a model, saved after a few tokens."""
    _, state = kf.load_reference(path).forward([1, 2, 3])
    state.save(target)
    return state


def test_a_state_file_is_of_its_model_and_of_no_other_of_the_same_sizes(tmp_path):
    own, other = (
        random_rwkv7(tmp_path / f"{seed}.safetensors", seed=seed, layers=1) for seed in (0, 1)
    )
    kept = saved(own, tmp_path / "s")
    loaded = kf.load_reference(own).load_state(tmp_path / "s")
    assert equal(loaded, kept)
    assert loaded.model == kept.model == loaded.clone().model == kf.load_reference(own).hash
    with pytest.raises(ModelError, match=r"is another model's: of hash [0-9a-f]{32}") as caught:
        kf.load_reference(other).load_state(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_a_state_of_another_model_is_refused_before_it_was_saved_too(tmp_path):
    own, other = (
        kf.load_reference(random_rwkv7(tmp_path / f"{seed}.safetensors", seed=seed, layers=1))
        for seed in (0, 1)
    )
    _, state = own.forward([1])
    with pytest.raises(ModelError, match="is another model's: of hash"):
        other.forward([2], state)
    engine = kf.Engine(other)
    with pytest.raises(KernelForgeError, match="another model's"):
        engine.submit([2], state=state)
    state.model = None  # on one's own responsibility
    other.forward([2], state)


def test_a_state_file_of_before_there_were_hashes_is_taken_with_a_warning(tmp_path, caplog):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1)
    kept = saved(path, tmp_path / "s")
    for note in (["kernelforge.state/1", "rwkv7", 3], ["kernelforge.state/1", "rwkv7", 3, None]):
        save_file(kept.arrays, tmp_path / "old", {"kernelforge": json.dumps(note)})
        caplog.clear()
        loaded = kf.load_reference(path).load_state(tmp_path / "old")
        assert equal(loaded, kept)
        assert "does not say which model it is of" in caplog.text


@pytest.mark.parametrize("note", [5, "", "zz", ["a"], {"a": 1}, "0" * 1000])
def test_a_state_file_whose_hash_is_none_is_refused(tmp_path, note):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1)
    kept = saved(path, tmp_path / "s")
    whole = json.dumps(["kernelforge.state/1", "rwkv7", 3, note])
    save_file(kept.arrays, tmp_path / "bad", {"kernelforge": whole})
    with pytest.raises(ModelError, match="as its model's hash"):
        kf.load_reference(path).load_state(tmp_path / "bad")


NOTES = {
    "not JSON": "rwkv7",
    "a list in a list in a list": "[" * 100_000,
    "a number of thousands of digits": f'["kernelforge.state/1", "rwkv7", {"9" * 5000}]',
    "no list": "5",
    "half a token": '["kernelforge.state/1", "rwkv7", 1.5]',
    "true for a number": '["kernelforge.state/1", "rwkv7", true]',
    "a negative number": '["kernelforge.state/1", "rwkv7", -1]',
    "a later format": '["kernelforge.state/2", "rwkv7", 3]',
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_state_file_whose_note_is_damaged_or_of_another_format_is_refused(tmp_path, kind):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1)
    save_file(saved(path, tmp_path / "s").arrays, tmp_path / "bad", {"kernelforge": NOTES[kind]})
    says = "is of the format 'kernelforge.state/2'" if "later" in kind else "is damaged: it"
    with pytest.raises(ModelError, match=says) as caught:
        kf.load_reference(path).load_state(tmp_path / "bad")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.vulkan
@pytest.mark.parametrize("write", [random_rwkv7, random_rwkv7_rosa])
def test_a_state_goes_from_one_model_to_another_and_back(write, llvmpipe, tmp_path):
    """Of a history, more than the host knew of when it went to the device."""
    path, tokens = write(tmp_path / "m.safetensors", layers=1, vocab=96), [*range(40)]
    reference = kf.load_reference(path)
    expected, last = reference.forward([*tokens, 1, 2, 3, 4])
    with (
        kf.load_model(path, llvmpipe, weights="f32") as one,
        kf.load_model(path, llvmpipe, weights="f32") as two,
    ):
        _, state = one.forward(tokens)
        for token, model in ((1, two), (2, one), (3, reference), (4, one)):
            found, _ = model.forward([token], state)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        kept = state.arrays["shift"]
        np.testing.assert_allclose(kept, last.arrays["shift"], atol=1e-4)
        with pytest.raises(ValueError, match="read-only"):  # it is a copy, and would change nothing
            kept[...] = 0
        one.release(state)
        state.arrays["shift"][...] = 0
        assert not np.allclose(one.forward([5], state)[0], one.forward([5], last)[0])
