"""`convert --quant`: a file in several formats, which loads as the source would with `--quant`."""

import json

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weight_formats import FORMATS_KEY
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.packed import METADATA_KEY
from tests.models.checkpoints import random_rwkv7
from tests.models.versions import VERSIONS

TOKENS = [1, 5, 9, 33, 2]
SOME = ("rwkv4", "rwkv6", "rwkv7", "rwkv8-rc00", "rosa-counting-4bit")
"""Versions that hand their matrices over in every way there is."""
MIXED = "0:nf4,1:q8,head:bf16,emb:f16"


@pytest.fixture
def source(tmp_path):
    return random_rwkv7(tmp_path / "m.safetensors", layers=3, width=128)


def converted(source, target, *more):
    assert main(["convert", str(source), str(target), *more, "--quiet"]) == 0
    return target


def notes(path):
    with safe_open(path, "numpy") as opened:
        return opened.metadata()


def by_numpy(path, **how):
    with kf.load_reference(path, **how) as model:
        return model.forward(TOKENS, full_output=True)[0]


def test_every_tensor_is_in_the_format_of_its_part(source, tmp_path):
    target = converted(source, tmp_path / "c.safetensors", "--quant", MIXED)
    with open_checkpoint(target) as checkpoint:
        kinds = {name: checkpoint.dtype(name) for name in checkpoint}
    for name, kind in kinds.items():
        whole = name.endswith(".weight") and name.split(".")[-2] in (
            "receptance", "key", "value", "output"
        )  # fmt: skip
        wanted = {"0": "nf4", "1": "q8"}.get(name.split(".")[1], "f32") if whole else "f32"
        assert kind == {"emb.weight": "f16", "head.weight": "bf16"}.get(name, wanted), name
    assert notes(target)[METADATA_KEY] == "nf4,q8"
    assert notes(target)[FORMATS_KEY] == MIXED


@pytest.mark.parametrize("version", SOME)
def test_a_converted_file_of_any_version_runs_as_its_source_with_quant(version, tmp_path):
    source = VERSIONS[version](tmp_path / "m.safetensors", layers=2)
    target = converted(source, tmp_path / "c.safetensors", "--quant", "1:q8,head:nf4,emb:bf16")
    direct = by_numpy(source, quant="1:q8,head:nf4,emb:bf16")
    np.testing.assert_array_equal(by_numpy(target), direct)


def test_on_a_device_too_and_memory_is_the_same(source, tmp_path, llvmpipe):
    target = converted(source, tmp_path / "c.safetensors", "--quant", MIXED)
    found = []
    for path, how in ((source, {"quant": MIXED}), (target, {})):
        with kf.load_model(path, llvmpipe, **how) as model:
            found.append((model.forward(TOKENS)[0], model.formats.name, model.needs.total))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_what_is_quantised_in_the_file_is_not_quantised_again(
    source, tmp_path, llvmpipe, monkeypatch
):
    target, again = converted(source, tmp_path / "c.safetensors", "--quant", "q8"), []
    for module in ("weight_writing", "numpy_quantized"):
        place = f"kernelforge_runtime.ops.{module}.quantize"
        real = kf.quantize.quantize

        def noted(values, form, name, real=real):
            again.append(name)
            return real(values, form, name)

        monkeypatch.setattr(place, noted)
    kf.load_model(target, llvmpipe).close()
    kf.load_reference(target).close()
    assert not [name for name in again if name.endswith(".weight")]
    assert "blocks.0.att.w1" in again  # stored as trainers do, transposed: not as it multiplies


def test_what_is_asked_of_a_converted_file_holds_in_place_of_its_own(source, tmp_path):
    target = converted(source, tmp_path / "c.safetensors", "--quant", "nf4")
    assert kf.load_reference(target).formats.name == "nf4"
    assert kf.load_reference(target, weights="f16").formats.name == "f16"
    one = kf.load_reference(target, quant="1:f16").formats.name
    assert one == "0:nf4,1:f16,2:nf4,head:nf4,emb:f16"


def test_a_file_can_be_converted_in_two_goes(source, tmp_path):
    first = converted(source, tmp_path / "1.safetensors", "--quant", "0:nf4")
    second = converted(first, tmp_path / "2.safetensors", "--quant", "1:q8,head:bf16,emb:f16")
    once = converted(source, tmp_path / "3.safetensors", "--quant", MIXED)
    assert second.read_bytes() == once.read_bytes()
    assert converted(second, tmp_path / "4.safetensors").read_bytes() == once.read_bytes()
    floats = converted(second, tmp_path / "5.safetensors", "--dtype", "f32")
    assert {FORMATS_KEY, METADATA_KEY}.isdisjoint(notes(floats))


def test_a_file_of_one_format_goes_on_from_it(source, tmp_path):
    eight = converted(source, tmp_path / "8.safetensors", "--weights", "q8")
    mixed = converted(eight, tmp_path / "9.safetensors", "--quant", "0:nf4")
    assert notes(mixed)[FORMATS_KEY] == "0:nf4,1-2:q8,head:q8,emb:f16"
    np.testing.assert_array_equal(by_numpy(mixed), by_numpy(eight, quant="0:nf4"))


@pytest.mark.parametrize(
    ("quant", "why"),
    [
        ("q9", "weight format 'q9'"),
        ("3:q8", "this model has 3 layers, 0 to 2"),
        ("emb:q8", "embeddings are f32, bf16 or f16"),
        ("0:q8,0-1:nf4", "names layer 0 already"),
        (",", "entries are FORMAT"),
    ],
)
def test_formats_that_make_no_sense_get_one_line_and_no_file(source, tmp_path, capsys, quant, why):
    target = tmp_path / "c.safetensors"
    assert main(["convert", str(source), str(target), "--quant", quant]) == 1
    told = capsys.readouterr().err
    assert why in told
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("noted", ["q9", "7:q8", "0:q8,0:q8", "\n", "q8" * 40_000])
def test_a_file_whose_formats_are_damaged_is_refused_or_has_none(tmp_path, source, noted):
    arrays = safetensors.numpy.load_file(source)
    safetensors.numpy.save_file(arrays, source, {FORMATS_KEY: noted})
    if len(noted) > 65_536:  # such texts are not kept
        assert kf.load_reference(source).formats.name == "f32"
        return
    with pytest.raises(ModelError, match=rf"{FORMATS_KEY} is damaged"):
        kf.load_reference(source)


def test_words_that_fit_neither_of_two_formats_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    arrays = {"a": np.zeros((4, 16), np.uint32), "a.scale": np.zeros((4, 4), np.uint32)}
    safetensors.numpy.save_file(arrays, path, {METADATA_KEY: "nf4,q8"})
    with pytest.raises(ModelError, match="do not fit nf4 or q8: damaged"):
        open_checkpoint(path)
    for noted in ("q8,q8", "", "nf4,", "q8 nf4"):
        safetensors.numpy.save_file(arrays, path, {METADATA_KEY: noted})
        with pytest.raises(ModelError, match="known are nf4, q8"):
            open_checkpoint(path)


def test_inspect_says_the_formats(source, tmp_path, capsys):
    target = converted(source, tmp_path / "c.st", "--quant", MIXED)
    assert main(["inspect", str(target)]) == 0
    assert f"matrices      {MIXED}\n" in capsys.readouterr().out
    assert main(["inspect", str(target), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finite"] is True
