"""Adapters that do not fit, and options that make no sense, get one line."""

import numpy as np
import pytest

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights.adapters import open_model
from tests.models.checkpoints import random_rwkv7
from tests.runtime.adapter_files import KEY, lora, merged
from tests.runtime.model_files import write_pth


@pytest.fixture
def base(tmp_path):
    return random_rwkv7(tmp_path / "base.safetensors")


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def refused(path, *adapters):
    with pytest.raises(ModelError) as caught:
        merged(path, KEY, *adapters)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spoiled(normal, kind):
    held = lora(normal, KEY, 64, 64)
    if kind == "no other factor":
        del held[f"{KEY}.lora_B"]
    elif kind == "twice":
        held[f"model.{KEY}.lora_B"] = held[f"{KEY}.lora_B"]
    elif kind == "size":
        held = lora(normal, KEY, 128, 128)
    elif kind == "rank":
        held[f"{KEY}.lora_B"] = normal(64, 5)
    elif kind == "layer":
        held |= lora(normal, "blocks.9.att.key", 64, 64)
    elif kind == "vector":
        held |= lora(normal, "blocks.0.ln1", 64, 64)
    elif kind == "nan":
        held[f"{KEY}.lora_A"][1, 2] = np.nan
    elif kind == "unknown":
        held[f"{KEY}.lora_magnitude_vector"] = normal(64)
    elif kind == "model":
        held = {f"{KEY}.weight": normal(64, 64)}
    elif kind == "state":
        held = {"blocks.0.att.time_state": normal(1, 64, 64)}
    elif kind == "initial alone":
        held = {f"{KEY}.init_lora_A": normal(4, 64), f"{KEY}.init_lora_B": normal(64, 4)}
    elif kind == "disha":
        held = {f"{KEY}.disha": normal(8, 63)}
    elif kind == "whole":
        held["blocks.0.ln1.weight"] = normal(65)
    return held


SAYS = {
    "twice": "blocks.0.att.key.lora_B and model.blocks.0.att.key.lora_B are for one tensor",
    "no other factor": "has blocks.0.att.key.lora_A without blocks.0.att.key.lora_B",
    "size": "blocks.0.att.key.lora_A has shape [4, 128], but blocks.0.att.key.weight [64, 64] "
    "takes [rank, 64]: it is of a model of another size",
    "rank": "blocks.0.att.key.lora_B has shape [64, 5], but blocks.0.att.key.weight [64, 64] "
    "takes [64, 4]",
    "layer": "changes blocks.9.att.key.weight, which",
    "vector": "takes no product of two matrices",
    "nan": "blocks.0.att.key.lora_A holds NaN or infinity",
    "unknown": "blocks.0.att.key.lora_magnitude_vector is no tensor of",
    "model": "of no known kind",
    "state": "it is a tuned state: load it as one",
    "initial alone": "holds only what the factors of PiSSA began as",
    "disha": "takes [r, 64], or [64 / r, r, r]",
    "whole": "takes a tensor of its own shape, [64]",
}


@pytest.mark.parametrize("kind", SAYS)
def test_an_adapter_that_does_not_fit_gets_one_line(base, tmp_path, normal, kind):
    file = write_pth(tmp_path / "l.pth", spoiled(normal, kind))
    found = refused(base, f"{file}:4")
    assert SAYS[kind] in found
    assert str(file) in found


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("", "alpha is missing"),
        (":", "alpha is missing"),
        (":nan", "alpha is nan, it must be a finite number"),
        (":-inf", "alpha is -inf"),
        (":much", "alpha 'much' is not a number"),
        (":4:(", "'(' is no regular expression"),
        (":4:nothing", "no tensor matched 'nothing'"),
        (":1e300", "with its adapters blocks.0.att.key.weight is not finite"),
    ],
)
def test_a_wrong_alpha_or_expression_gets_one_line(base, tmp_path, normal, rest, says):
    file = write_pth(tmp_path / "l.pth", lora(normal, KEY, 64, 64))
    assert says in refused(base, f"{file}{rest}")


def test_a_file_that_is_none_gets_one_line(base, tmp_path):
    assert "no such file" in refused(base, str(tmp_path / "absent.pth:4"))
    (tmp_path / "text").write_bytes(b"not a model")
    assert f"adapter {tmp_path / 'text'}: starts with" in refused(base, tmp_path / "text")
    assert "names no file" in refused(base, ":4")
    assert "expected an Adapter" in refused(base, 7)


def test_another_model_s_adapter_is_refused_before_a_weight_is_read(tmp_path, normal):
    base = random_rwkv7(tmp_path / "m.safetensors", width=128)
    file = write_pth(tmp_path / "l.pth", lora(normal, KEY, 64, 64))
    with pytest.raises(ModelError, match="another size"):
        open_model(base, [f"{file}:4"])


def test_pissa_in_two_files_is_picked_from_by_the_trained_one_alone(base, tmp_path, normal):
    trained = write_pth(tmp_path / "t.pth", lora(normal, KEY, 64, 64))
    initial = write_pth(tmp_path / "i.pth", spoiled(normal, "initial alone"))
    assert "an expression of its own" in refused(base, f"{initial}::ffn", trained)
    assert "no tensor matched 'ffn'" in refused(base, initial, f"{trained}::ffn")


def test_an_alpha_that_has_no_meaning_is_said_to_have_none(base, tmp_path, normal, caplog):
    file = write_pth(tmp_path / "d.pth", {f"{KEY}.disha": normal(8, 64)})
    expected = merged(base, KEY, file)
    assert not caplog.text
    np.testing.assert_array_equal(merged(base, KEY, f"{file}:8"), expected)
    assert "PiSSA and DiSHA have no alpha, it is not used" in caplog.text
