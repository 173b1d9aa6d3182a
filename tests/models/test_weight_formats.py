"""Formats for each layer, the head and the embeddings: the grammar, and models kept so."""

import json

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from kernelforge.measure.verify import compare
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.survey import Survey
from kernelforge_runtime.weight_formats import WeightFormats, parse_formats
from kernelforge_runtime.weights import open_checkpoint
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rwkv7_rosa, random_rwkv7a

MIXED = "0:q8,1:nf4,2-:bf16,head:q8,emb:f32"
TOKENS = [5, 17, 3, 80, 3]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(
        tmp_path_factory.mktemp("q") / "m.safetensors", layers=3, width=64, vocab=256
    )


@pytest.mark.parametrize(
    ("text", "layers", "head", "table"),
    [
        ("q8", [Q8] * 4, Q8, F16),
        ("", [F32] * 4, F32, F32),
        ("0-1:q8,2-3:nf4", [Q8, Q8, NF4, NF4], F32, F32),
        (" 3 : nf4 , 0 - 1 : q8 ,bf16 ", [Q8, Q8, BF16, NF4], BF16, BF16),
        ("1-:q8,head:nf4", [F32, Q8, Q8, Q8], NF4, F32),
        ("nf4,emb:bf16", [NF4] * 4, NF4, BF16),
        ("head:f16,emb:f16", [F32] * 4, F16, F16),
    ],
)
def test_the_grammar_says_what_each_part_is_kept_in(text, layers, head, table):
    formats = parse_formats(text).of(4, F32)
    assert [formats.matrix(i) for i in range(4)] == layers
    assert (formats.matrix(None), formats.table) == (head, table)
    again = parse_formats(formats.name).of(4, F32)
    assert [again.matrix(i) for i in (0, 1, 2, 3, None)] == [*layers, head]
    assert again.table == table
    assert again.name == formats.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q3", r"weight format 'q3': there are f32, bf16, f16, q8, nf4"),
        ("0-1:q3", r"entry '0-1:q3': weight format 'q3': there are f32, bf16"),
        ("0-1:q8,1:nf4", r"entry '1:nf4': '0-1:q8' names layer 1 already"),
        ("2-:q8,0-3:nf4", r"entry '0-3:nf4': '2-:q8' names layer 2 already"),
        ("0-4:q8", r"entry '0-4:q8': this model has 4 layers, 0 to 3"),
        ("4-:q8", r"entry '4-:q8': this model has 4 layers, 0 to 3"),
        ("999999999:q8", r"this model has 4 layers"),
        ("3-1:q8", r"its last layer is before its first: 1-3 was meant"),
        ("head:q8,head:q8", r"entry 'head:q8': 'head:q8' is for head already"),
        ("q8,nf4", r"entry 'nf4': 'q8' is for everything else already"),
        ("emb:q8", r"embeddings are f32, bf16 or f16 and not q8"),
        ("0-1:q8,", r"entry '': entries are FORMAT, LAYER:FORMAT"),
        (",", r"entry '': entries are"),
        ("0-1:", r"entry '0-1:': entries are"),
        (":q8", r"entry ':q8': entries are"),
        ("-1:q8", r"entry '-1:q8': entries are"),
        ("1.5:q8", r"entries are"),
        ("٣:q8", r"entries are"),
        ("0:1:q8", r"entries are"),
        ("tail:q8", r"entry 'tail:q8': entries are"),
        ("9" * 5000 + ":q8", r"entry '9+\.\.\.': entries are"),
        ("0:" + "x" * 5000, r"weight format 'x+\.\.\.': there are"),
        ("0:\n", r"entry '0:': entries are"),
    ],
)
def test_a_wrong_entry_is_named_in_one_line(text, message):
    with pytest.raises(ModelError, match=message) as found:
        parse_formats(text).of(4, F16)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 400


def test_a_billion_layers_cost_no_memory():
    with pytest.raises(ModelError, match="names layer 500000000 already"):
        parse_formats("0-999999998:q8,500000000:nf4")


def test_two_sources_of_formats_are_one_list():
    assert parse_formats("f16", "0:q8").of(2, F32).name == "0:q8,1:f16,head:f16,emb:f16"
    assert parse_formats(None, None).of(2, BF16) == WeightFormats(BF16)
    with pytest.raises(ModelError, match="'f16' is for everything else already"):
        parse_formats("f16", "q8,0:nf4")


def test_a_device_keeps_each_matrix_as_asked_and_equals_numpy(path, device):
    with kf.load_model(path, device, quant=MIXED) as model:
        assert model.formats.name == MIXED.replace("2-", "2")
        held = {c.block: c.selection.entry.precision for c in model.calls(1) if "ffn" in c.label}
        assert held == {0: "q8", 1: "nf4", 2: "bf16"}
        kinds = {c.label: c.selection.entry.precision for c in model.calls(1)}
        assert (kinds["head.weight"], kinds["emb.weight"]) == ("q8", "f32")
        got = model.forward(TOKENS, full_output=True)[0]
        greedy = model.greedy(3, model.new_state())
        with open_checkpoint(path) as checkpoint:
            survey = Survey(checkpoint)
        layouts = model._ops.store.layouts_of
        limit = device.info.max_storage_buffer
        assert model.weight_bytes == survey.device_nbytes(model.formats, limit, layouts)
        plain = {f.name: survey.device_nbytes(f, limit, layouts) for f in (NF4, F32)}
        assert plain["nf4"] < model.weight_bytes < plain["f32"]
    with kf.load_reference(path, quant=MIXED) as reference:
        expected = reference.forward(TOKENS, full_output=True)[0]
        assert greedy == int(np.argmax(reference.forward([3])[0]))
    assert compare("logits", got, expected, F32, reduction=256).ok


def test_a_layers_format_changes_that_layer_alone(path):
    def matrices(**how):
        with kf.load_reference(path, **how) as model:
            return [layer[1].value.parts[0][1] for layer in model._weights.layers]

    mixed, exact = matrices(quant="1:f16"), matrices()
    np.testing.assert_array_equal(mixed[0], exact[0])
    np.testing.assert_array_equal(mixed[2], exact[2])
    np.testing.assert_array_equal(mixed[1], exact[1].astype(np.float16).astype(np.float32))
    assert not np.array_equal(mixed[1], exact[1])


@pytest.mark.parametrize("write", [random_rwkv7_rosa, random_rwkv7a])
def test_layers_are_found_whatever_a_version_calls_them(write, tmp_path):
    path = write(tmp_path / "m.safetensors", layers=2)
    with open_checkpoint(path) as checkpoint:
        survey = Survey(checkpoint)
    layers = {part.layer for stack in survey.stacks for part in stack}
    assert layers == {None, 0, 1}
    outside = [part.name for stack in survey.stacks for part in stack if part.layer is None]
    assert outside in (["head.weight"], ["o.weight"])


def test_one_stack_of_several_layers_is_kept_in_the_finest_of_their_formats():
    formats = parse_formats("0:nf4,1:q8,2:bf16").of(3, F32)
    assert [formats.stack(s) for s in ([0, 1], [0], [2, 1, 0])] == [Q8, NF4, BF16]


def test_verbs_take_formats_of_parts_and_name_what_is_wrong_with_them(path, tmp_path, capsys):
    told = ["--prompt-ids", "5,17", "--tokens", "2", "--greedy", "--tokenizer", "bytes"]
    prompts = [str(path), "--device", "cpu", "--quant"]
    assert main(["run", *prompts, "0:q8,head:f16", *told, "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)["stats"]
    assert stats["weights"] == "0:q8,1-2:f32,head:f16,emb:f32"
    (tmp_path / "t.txt").write_bytes(b"\x01\x02\x03")
    score = ["--text", str(tmp_path / "t.txt"), "--tokenizer", "bytes"]
    for verb, rest in (
        ("run", told),
        ("chat", []),
        ("batch", ["--prompt", "a"]),
        ("eval", score),
        ("bench", ["--pp", "0", "--tg", "1", "--reps", "1"]),
    ):
        assert main([verb, *prompts, "2-3:q8", *rest]) != 0
        said = capsys.readouterr().err.strip()
        assert "entry '2-3:q8': this model has 3 layers, 0 to 2" in said.splitlines()[-1], verb
