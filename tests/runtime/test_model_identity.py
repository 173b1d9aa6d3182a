"""A state goes on with any conversion of its model, and with no other model."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from kernelforge.convert import convert_checkpoint
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.model_identity import ModelHash
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.model_hash import ORIGIN_KEY, OWN_KEY, _text, model_hash
from tests.models.checkpoints import random_rwkv7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, another of its sizes, and conversions of the first."""
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("own", "other")):
        random_rwkv7(place / f"{name}.st", layers=1, seed=seed, vocab=256)
    convert_checkpoint(place / "own.st", place / "half.st", "f16")
    convert_checkpoint(place / "half.st", place / "wide.st", "f32")
    convert_checkpoint(place / "own.st", place / "brain.st", "bf16")
    convert_checkpoint(place / "own.st", place / "copy.st")
    return place


def hash_of(path):
    with open_checkpoint(path) as checkpoint:
        return model_hash(checkpoint)


def metadata(path):
    with safe_open(path, "numpy") as opened:
        return opened.metadata()


def saved(path, target):
    _, state = kf.load_reference(path).forward([1, 2, 3])
    state.save(target)
    return state


FAMILY = ("own", "half", "wide", "brain", "copy")


@pytest.mark.parametrize(
    "items", [("blocks.0.att.w0", "bf16", [1, 1, 768]), ("a", []), ('é"\\', [3]), ("a b\n", [1])]
)
def test_what_is_said_of_a_tensor_is_json(items):
    assert _text(*items) == json.dumps([*items]).encode()


def test_conversions_have_one_origin_and_one_architecture(folder):
    found = {name: hash_of(folder / f"{name}.st") for name in (*FAMILY, "other")}
    assert {found[name].root for name in FAMILY} == {str(found["own"])}
    assert found["copy"] == found["own"]
    assert len({found[name] for name in FAMILY}) == 4
    assert len({one.architecture for one in found.values()}) == 1
    assert metadata(folder / "copy.st") == {"format": "pt"}
    assert metadata(folder / "half.st")[OWN_KEY] == found["half"]


@pytest.mark.parametrize("name", ["half", "wide"])
def test_a_state_of_either_is_taken_by_the_other_with_a_note(folder, tmp_path, caplog, name):
    for source, user in (("own", name), (name, "own"), (name, "brain")):
        kept = saved(folder / f"{source}.st", tmp_path / "s")
        caplog.clear()
        model = kf.load_reference(folder / f"{user}.st")
        state = model.load_state(tmp_path / "s")
        assert state.model == model.hash
        assert state.position == 3
        np.testing.assert_array_equal(state.arrays["wkv"], kept.arrays["wkv"])
        same = kept.model == model.hash
        assert ("another conversion of this model" in caplog.text) == (not same)
        model.forward([4], state)
        model.forward([4], kept)  # in memory, too


@pytest.mark.parametrize("name", ["own", "half"])
def test_another_model_of_the_same_architecture_is_refused(folder, tmp_path, name):
    saved(folder / f"{name}.st", tmp_path / "s")
    model = kf.load_reference(folder / "other.st")
    with pytest.raises(
        ModelError, match=r"another model's: of hash .* the same architecture; load"
    ) as caught:
        model.load_state(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_what_was_trained_on_from_a_conversion_is_none_though_it_kept_the_metadata(
    folder, tmp_path
):
    arrays = load_file(folder / "half.st")
    arrays["head.weight"] = (arrays["head.weight"] * 1.5).astype(np.float16)
    save_file(arrays, tmp_path / "tuned.st", metadata(folder / "half.st"))
    assert hash_of(tmp_path / "tuned.st").origin is None
    saved(folder / "own.st", tmp_path / "s")
    with pytest.raises(ModelError, match=r"another model's"):
        kf.load_reference(tmp_path / "tuned.st").load_state(tmp_path / "s")
    convert_checkpoint(tmp_path / "tuned.st", tmp_path / "again.st", "f32")
    assert hash_of(tmp_path / "again.st").origin == hash_of(tmp_path / "tuned.st")


def test_a_conversion_in_parts_is_one_too_and_inspect_says_so(folder, tmp_path, capsys):
    target = tmp_path / "q.st"
    assert main(["convert", str(folder / "wide.st"), str(target), "--quant", "q8"]) == 0
    own = hash_of(folder / "own.st")
    capsys.readouterr()
    assert main(["inspect", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["converted_from"] == own
    assert told["architecture"] == own.architecture
    saved(folder / "own.st", tmp_path / "s")
    run = ["run", str(target), "--prompt-ids", "4", "--tokens", "1", "--device", "cpu"]
    assert main([*run, "--tokenizer", "bytes", "--load-state", str(tmp_path / "s")]) == 0
    assert "another conversion of this model" in capsys.readouterr().err


@pytest.mark.parametrize("claim", ["", "pytorch", "0" * 200, "ABCDEF0123456789", "12345678\n"])
def test_an_origin_that_is_none_is_no_origin(folder, tmp_path, claim):
    arrays = load_file(folder / "own.st")
    own = str(hash_of(folder / "own.st"))
    save_file(arrays, tmp_path / "m.st", {ORIGIN_KEY: claim, OWN_KEY: own})
    assert hash_of(tmp_path / "m.st").origin is None


@pytest.mark.parametrize(
    "known", [5, "", {"origin": 7}, {"origin": "zz"}, {"architecture": "0" * 1000}, ["x"], True]
)
def test_a_state_whose_models_origin_or_architecture_is_none_is_refused(folder, tmp_path, known):
    kept = saved(folder / "own.st", tmp_path / "s")
    note = ["kernelforge.state/1", "rwkv7", 3, str(kept.model), known]
    save_file(kept.arrays, tmp_path / "bad", {"kernelforge": json.dumps(note)})
    with pytest.raises(ModelError, match="is damaged: it names") as caught:
        kf.load_reference(folder / "own.st").load_state(tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_a_state_saved_before_there_were_origins_goes_on_with_a_conversion(folder, tmp_path):
    kept = saved(folder / "own.st", tmp_path / "s")
    note = ["kernelforge.state/1", "rwkv7", 3, str(kept.model)]
    save_file(kept.arrays, tmp_path / "old", {"kernelforge": json.dumps(note)})
    for name in FAMILY:
        kf.load_reference(folder / f"{name}.st").load_state(tmp_path / "old")
    with pytest.raises(ModelError, match=r"another model's: of hash"):
        kf.load_reference(folder / "other.st").load_state(tmp_path / "old")


def test_one_origin_is_not_enough_where_the_architecture_differs():
    one = ModelHash("a" * 8, "1" * 8, "f" * 8)
    assert one.kinship(ModelHash("b" * 8, "1" * 8, "f" * 8)) == "conversion"
    assert one.kinship(ModelHash("b" * 8, "2" * 8, "f" * 8)) == "stranger"
    assert one.kinship("f" * 8) == "conversion"
    assert one.kinship("a" * 8) == "same"
