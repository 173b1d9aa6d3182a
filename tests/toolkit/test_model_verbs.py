"""`inspect` says what a model file is, of any version; `convert` notes what no tensor says."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kernelforge.cli.main import main
from kernelforge.cli.state_size import bytes_per_token, state_bytes
from kernelforge.convert import convert_checkpoint
from kernelforge.convert.random_model import random_model
from kernelforge_runtime.dtypes import U32
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.reference import load_reference
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import open_checkpoint
from tests.models.checkpoints import SHARED, from_golden, random_rwkv7
from tests.toolkit.cli_process import one_line


def inspect(capsys, path, *more):
    """The text of `inspect` as a dict, and its JSON document."""
    assert main(["inspect", str(path), *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["inspect", str(path), "--json", *more]) == 0
    return {line[:13].rstrip(): line[14:] for line in lines}, json.loads(capsys.readouterr().out)


def test_inspect_shows_a_models_sizes(tmp_path, capsys):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=3, width=128)
    text, told = inspect(capsys, path, "--check")
    assert text["version"] == "rwkv7"
    assert text["heads H"] == "2 of 64"
    assert text["ROSA symbols"] == "none"
    assert text["tuned state"] == "none"
    assert text["checked"] == "every weight is finite"
    assert (told["layers"], told["width"], told["vocab"], told["ffn"]) == (3, 128, 96, 512)
    assert told["lora"] == {"w": 32, "a": 32, "v": 16, "g": 48}
    assert told["states"]["wkv"] == {"entries": 3, "shape": [2, 64, 64], "dtype": "f32"}
    assert told["state_bytes"] == load_reference(path).new_state().nbytes
    assert told["state_bytes_per_token"] == 0
    assert told["weight_bytes"]["f32"] > told["weight_bytes"]["f16"]
    assert told["tuned_state"] is False


def test_inspect_says_that_a_tuned_state_is_in_the_file(tmp_path, capsys):
    def change(weights):
        for i in range(2):
            weights[f"blocks.{i}.att.time_state"] = np.ones((1, 64, 64), np.float32)

    path = random_rwkv7(tmp_path / "m.safetensors", change=change)
    text, told = inspect(capsys, path)
    assert text["tuned state"].startswith("yes")
    assert told["tuned_state"] is True


def test_inspect_shows_no_heads_where_a_version_has_none(tmp_path, capsys):
    text, told = inspect(capsys, random_model("v4.L2.C64.V96", tmp_path))
    assert text["heads H"] == "none"
    assert text["LoRA ranks"] == "none"
    assert told["state_bytes"] == 4 * 2 * (2 + 3) * 64  # two shifts, and three values per channel


def rosa(tmp_path, bits):
    golden = SHARED / f"golden_rosa{bits}bitLM.npz"
    if not golden.exists():
        pytest.skip(f"{golden.name} is not at hand")
    from_golden(golden, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("bits", ["1", "4"])
def test_convert_notes_the_bits_of_a_rosa_model_which_inspect_then_shows(tmp_path, capsys, bits):
    source = rosa(tmp_path, bits)
    assert main(["inspect", str(source)]) == 1
    assert "use kernelforge convert --rosa-bits" in one_line(
        capsys.readouterr().err, "kernelforge inspect: "
    )
    target = tmp_path / "noted.safetensors"
    assert main(["convert", str(source), str(target), "--rosa-bits", bits]) == 0
    assert f"rosa_bits={bits}, " in capsys.readouterr().out
    text, told = inspect(capsys, target)
    assert text["ROSA symbols"] == f"{bits} bit"
    assert told["rosa_bits"] == int(bits)
    assert told["metadata"] == {"format": "pt", "rosa_bits": bits}
    assert "bytes for each token per sequence" in text["state"]
    _, state = load_reference(target).forward(list(range(32)) * 16)
    needed = told["state_bytes"] + told["state_bytes_per_token"] * 32 * 16
    assert needed <= state.nbytes <= 2 * needed  # what grows has room to spare


def test_what_grows_is_counted_by_the_token():
    specs = {"shift": StateSpec(4, (8,)), "rosa": StateSpec(2, (3, 16, 1), U32, (0.0,), 32)}
    config = ModelConfig("new", 2, 8, 0, 0, 16, 32, states=specs)
    assert state_bytes(config) == 4 * 4 * 8
    assert bytes_per_token(config) == 2 * 3 * 16 * 4 / 32


def test_convert_keeps_the_metadata_there_is_and_replaces_what_is_asked_for(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    notes = {"format": "np", "by": "é", "group_norm_eps": "1e-3"}
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, source, notes)
    assert main(["convert", str(source), str(target), "--group-norm-eps", "1e-5"]) == 0
    with safetensors.safe_open(target, "numpy") as opened:
        assert opened.metadata() == {**notes, "group_norm_eps": "1e-5"}
    first = target.read_bytes()
    convert_checkpoint(target, target, metadata={"group_norm_eps": "1e-5"})
    assert target.read_bytes() == first


def test_the_order_of_metadata_does_not_change_the_bytes(tmp_path):
    random_rwkv7(tmp_path / "m.safetensors")
    written = []
    for notes in ({"a": "1", "b": "2", "c": "3"}, {"c": "3", "b": "2", "a": "1"}):
        made = convert_checkpoint(tmp_path / "m.safetensors", tmp_path / "o.st", metadata=notes)
        written.append(made.path.read_bytes())
    assert written[0] == written[1]


def test_a_noted_epsilon_is_computed_with(tmp_path):
    source, target = random_rwkv7(tmp_path / "m.safetensors"), tmp_path / "e.safetensors"
    assert main(["convert", str(source), str(target), "--group-norm-eps", "0.5", "--quiet"]) == 0
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.metadata["group_norm_eps"] == "0.5"
    usual, other = load_reference(source), load_reference(target)
    assert (usual.config.group_norm_eps, other.config.group_norm_eps) == (64e-5, 0.5)
    assert np.abs(usual.forward([1, 2, 3])[0] - other.forward([1, 2, 3])[0]).max() > 0.01


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--rosa-bits", "2", "invalid choice: '2'"),
        ("--group-norm-eps", "0", "'0' is not a small positive number"),
        ("--group-norm-eps", "nan", "'nan' is not a small positive number"),
        ("--group-norm-eps", "64e5", "'64e5' is not a small positive number"),
        ("--group-norm-eps", "small", "'small' is not a small positive number"),
    ],
)
def test_a_note_that_no_model_could_mean_is_a_usage_error(tmp_path, capsys, option, value, says):
    source = random_rwkv7(tmp_path / "m.safetensors")
    assert main(["convert", str(source), str(tmp_path / "n.safetensors"), option, value]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "n.safetensors").exists()
