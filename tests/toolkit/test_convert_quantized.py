"""`convert --weights`: which matrices are quantised, and that nothing is lost on the way back."""

import json

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from kernelforge.cli.main import main
from kernelforge.convert import convert_checkpoint
from kernelforge.errors import ConvertError
from kernelforge_runtime.dtypes import DTYPES
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import recognise
from kernelforge_runtime.models.survey import Survey
from kernelforge_runtime.quantize import dequantize, quantize
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.checkpoint import check_finite
from kernelforge_runtime.weights.packed import METADATA_KEY
from tests.models.checkpoints import random_rwkv7
from tests.models.versions import VERSIONS

BOTH = pytest.mark.parametrize("weights", ["q8", "nf4"])


@pytest.fixture
def source(tmp_path):
    return random_rwkv7(tmp_path / "m.safetensors", layers=2, width=128)


def converted(source, target, *more):
    assert main(["convert", str(source), str(target), *more, "--quiet"]) == 0
    return target


@BOTH
def test_matrices_become_words_and_scales_and_the_rest_stays(source, tmp_path, weights):
    target = converted(source, tmp_path / "q.safetensors", "--weights", weights)
    form, plain = DTYPES[weights], safetensors.numpy.load_file(source)
    stored = safetensors.numpy.load_file(target)
    for name, values in plain.items():
        if name.endswith(".weight") and values.ndim == 2 and name != "emb.weight":
            wanted = quantize(values, form)
            np.testing.assert_array_equal(stored.pop(name), wanted.weight)
            np.testing.assert_array_equal(stored.pop(f"{name}.scale"), wanted.scale)
        else:
            np.testing.assert_array_equal(stored.pop(name), values)
    assert not stored
    with safe_open(target, "numpy") as opened:
        assert opened.metadata()[METADATA_KEY] == weights


@BOTH
def test_a_quantised_file_reads_as_the_matrices_it_stands_for(source, tmp_path, weights):
    target = converted(source, tmp_path / "q.safetensors", "--weights", weights)
    with open_checkpoint(source) as plain, open_checkpoint(target) as checkpoint:
        assert set(checkpoint.names) == set(plain.names)
        name = "blocks.1.ffn.value.weight"
        assert checkpoint.dtype(name) == weights
        assert checkpoint.shape(name) == plain.shape(name) == (128, 512)
        assert checkpoint.nbytes(name) == (DTYPES[weights].bits + 0.5) / 8 * 128 * 512
        found = checkpoint.quantized(name)
        np.testing.assert_array_equal(checkpoint.tensor(name), dequantize(found, DTYPES[weights]))
        assert checkpoint.quantized("emb.weight") is None
        check_finite(checkpoint)
        config = recognise(checkpoint).read_config(checkpoint)
        assert (config.dtype, config.parameters) == (
            weights,
            recognise(plain).read_config(plain).parameters,
        )


@BOTH
def test_there_and_back_gives_the_same_bytes(source, tmp_path, weights):
    first = converted(source, tmp_path / "1.safetensors", "--weights", weights)
    copy = converted(first, tmp_path / "2.safetensors")
    again = converted(first, tmp_path / "3.safetensors", "--weights", weights)
    floats = converted(first, tmp_path / "4.safetensors", "--dtype", "f32")
    assert METADATA_KEY not in safe_open(floats, "numpy").metadata()
    back = converted(floats, tmp_path / "5.safetensors", "--weights", weights)
    for other in (copy, again, back):
        assert other.read_bytes() == first.read_bytes()


def test_what_is_not_quantised_is_rounded_as_asked(source, tmp_path, capsys):
    target = converted(source, tmp_path / "q.safetensors", "--weights", "nf4", "--dtype", "f16")
    with open_checkpoint(target) as checkpoint:
        kinds = {name: checkpoint.dtype(name) for name in checkpoint}
    assert kinds["emb.weight"] == kinds["blocks.0.att.w1"] == "f16"
    assert kinds["head.weight"] == "nf4"
    capsys.readouterr()
    assert main(["inspect", str(target), "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dtype"] == "nf4"
    sizes = told["weight_bytes"]
    assert sizes["nf4"] < sizes["q8"] < sizes["f16"] == sizes["bf16"] < sizes["f32"]


@pytest.mark.parametrize("version", VERSIONS)
def test_of_every_version_only_whole_matrices_as_they_multiply_are_quantised(version, tmp_path):
    source = VERSIONS[version](tmp_path / "m.safetensors", layers=2)
    with open_checkpoint(source) as checkpoint:
        survey = Survey(checkpoint)
        names = survey.quantisable(DTYPES["q8"])
        tables = {name for name in checkpoint if name.startswith(("emb", "e."))}
        assert not tables & set(names)
        for name in names:
            assert name.endswith(".weight")
            assert len(checkpoint.shape(name)) == 2
            assert checkpoint.shape(name)[1] % 64 == 0
        stacked = {part.name for stack in survey.stacks for part in stack}
        assert set(names) <= stacked


def test_a_model_of_odd_widths_and_a_mix_of_formats_are_refused(source, tmp_path):
    target = tmp_path / "q.safetensors"
    with pytest.raises(ConvertError, match="no matrix for q8"):
        convert_checkpoint(source, target, weights="q8", matrices=())
    first = converted(source, target, "--weights", "q8")
    with pytest.raises(ConvertError, match="nf4 and q8 at once"):
        convert_checkpoint(first, target, weights="nf4", matrices=["head.weight"])


def words(rows, count):
    return np.zeros((rows, count), np.uint32)


@pytest.mark.parametrize(
    ("weight", "scale", "name", "why"),
    [
        (words(4, 16), words(4, 1), "q9", "quantised as 'q9', known are nf4, q8"),
        (words(4, 16), words(4, 1), "f16", "quantised as 'f16', known are nf4, q8"),
        (words(4, 16), words(3, 1), "q8", "do not fit q8"),
        (words(4, 16), words(4, 2), "q8", "do not fit q8"),
        (words(4, 16), words(4, 1), "nf4", "do not fit nf4"),
        (words(4, 15), words(4, 0), "q8", "do not fit q8"),
        (words(4, 0), words(4, 0), "q8", "do not fit q8"),
        (words(4, 16)[0], words(4, 1), "q8", "do not fit q8"),
        (words(4, 16).astype(np.float32), words(4, 1), "q8", "do not fit q8"),
        (words(4, 16), words(4, 1).astype(np.int64), "q8", "do not fit q8"),
    ],
)
def test_files_whose_scales_do_not_fit_are_refused(tmp_path, weight, scale, name, why):
    path = tmp_path / "m.safetensors"
    arrays = {"a.weight": weight, "a.weight.scale": scale}
    safetensors.numpy.save_file(arrays, path, {METADATA_KEY: name})
    with pytest.raises(ModelError, match=why):
        open_checkpoint(path)


def test_an_infinite_scale_is_found(source, tmp_path, capsys):
    target = converted(source, tmp_path / "q.safetensors", "--weights", "q8")
    arrays = safetensors.numpy.load_file(target)
    arrays["head.weight.scale"][1, 0] = 0x7C00
    safetensors.numpy.save_file(arrays, target, {METADATA_KEY: "q8"})
    with open_checkpoint(target) as checkpoint:
        with pytest.raises(ModelError, match=r"head.weight.* infinite scale"):
            check_finite(checkpoint)
        file = recognise(checkpoint)
        config = file.read_config(checkpoint)
        assert config.dtype == "q8"
    assert main(["run", str(target), "a", "--device", "cpu", "--tokenizer", "bytes"]) == 1
    assert "head.weight holds NaN or infinite weights" in capsys.readouterr().err


def test_threads_are_of_the_cpu_only(source):
    for verb in (["run", str(source), "a"], ["bench", str(source)]):
        assert main([*verb, "--threads", "2"]) == 2
