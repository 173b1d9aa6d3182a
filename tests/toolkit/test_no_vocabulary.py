"""Models whose vocabulary is nobody's: prompts of ids run all the same, and ids are shown."""

import json

import pytest

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from tests.models.checkpoints import random_rwkv7
from tests.toolkit.cli_process import one_line

ASKED = ["--tokens", "5", "--greedy", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "odd.safetensors", vocab=96)


@pytest.fixture(scope="module")
def tokens(model):
    """What follows 1, 2, 3."""
    pieces = kf.generate(kf.load_reference(model), [1, 2, 3], 5, kf.Sampling(temperature=0))
    return [piece.token for piece in pieces]


@pytest.fixture
def lines(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"ids": [1, 2, 3]}\n{"ids": [4]}\n')
    return file


def test_run_shows_ids_as_it_takes_them(capsys, model, tokens):
    assert main(["run", str(model), "--prompt-ids", "1,2,3", *ASKED]) == 0
    found = capsys.readouterr()
    assert found.out == ",".join(map(str, tokens)) + "\n"
    assert one_line(found.err, "token ids are shown, there is no text: no built-in tokenizer")
    assert main(["run", str(model), "--prompt-ids", "1,2,3", *ASKED, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tokens"], told["text"]) == (tokens, "")


def test_batch_shows_lists_of_ids(capsys, model, tokens, lines):
    assert main(["batch", str(model), str(lines), *ASKED, "--quiet"]) == 0
    first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert first == ["1", "length", "5", json.dumps(tokens)]
    assert second[:3] == ["2", "length", "5"]


def test_batch_shows_ids_on_a_terminal(capsys, monkeypatch, model, tokens, lines):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["batch", str(model), str(lines), *ASKED]) == 0
    assert ",".join(map(str, tokens)) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["run", "text"], "no built-in tokenizer has 96 ids"),
        (["run", "--prompt-ids", "1", "--tokenizer", "world"], "tokenizer world has 65530 ids"),
        (["batch", "--prompt", "text"], "no built-in tokenizer has 96 ids"),
        (["chat"], "no built-in tokenizer has 96 ids"),
    ],
)
def test_text_needs_a_vocabulary_and_so_does_who_names_one(capsys, model, asked, says):
    verb, *rest = asked
    assert main([verb, str(model), *rest, *ASKED]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert says in one_line(found.err, f"kernelforge {verb}: ")
