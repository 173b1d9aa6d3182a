"""`kernelforge chat` when its input is a pipe: turns, commands, and what fails."""

import io
import json

import pytest

from kernelforge.cli.main import main
from tests.models.checkpoints import DEMO
from tests.toolkit.cli_process import one_line


@pytest.fixture
def chat(capsys, monkeypatch):
    def run(lines, *arguments, code=0):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        verb = ["chat", str(DEMO), "--device", "cpu", "--tokens", "9", "--greedy"]
        assert main([*verb, *map(str, arguments)]) == code
        return capsys.readouterr()

    return run


def turns(found):
    return json.loads(found.out)["turns"]


def test_every_line_is_a_turn_and_the_end_of_the_input_ends_it(chat):
    found = turns(chat(["hi", "", "go on"], "--json", "--quiet", "--format", "world"))
    assert [turn["said"] for turn in found] == ["hi", "go on"]
    assert {turn["reason"] for turn in found} == {"length"}
    shown = chat(["hi", "", "go on"], "--quiet", "--format", "world").out
    assert shown.startswith(found[0]["answer"])
    assert found[1]["answer"] in shown


def test_history_matters_until_it_is_reset(chat):
    found = turns(chat(["And Moses", "And", "/reset", "And Moses", "And"], "--json"))
    assert found[0] == found[2]
    assert found[1] == found[3]
    (alone,) = turns(chat(["And"], "--json"))
    assert alone["answer"] != found[1]["answer"]


def test_a_saved_state_is_loaded_by_a_command_or_an_option(chat, tmp_path):
    file = tmp_path / "talk.safetensors"
    found = turns(chat(["hi", f"/save {file}", "go on"], "--json"))
    for lines, options in (([f"/load {file}", "go on"], ()), (["go on"], ("--load-state", file))):
        assert turns(chat(lines, "--json", *options))[-1] == found[-1]


def test_an_answer_anew_with_greedy_choice_is_the_same_answer(chat):
    one, two = turns(chat(["hi", "/regen"], "--json"))
    assert one == two


def test_a_byte_order_mark_is_no_part_of_the_first_line(chat):
    found = turns(chat(["\ufeffhi", "/regen"], "--json"))
    assert found == turns(chat(["hi", "/regen"], "--json"))
    assert turns(chat(["\ufeff/quit", "hi"], "--json")) == []


def test_quit_leaves_at_once(chat):
    assert len(turns(chat(["hi", "/quit", "more"], "--json"))) == 1


def test_help_lists_every_command(chat):
    found = chat(["/help"])
    commands = [line.split()[0] for line in found.out.splitlines()]
    assert commands == ["/reset", "/regen", "/save", "/load", "/help", "/quit"]
    assert one_line(found.err, "rwkv7, turns as plain; /help")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/regen", "say something first"),
        ("/save", "/save needs a file: /save FILE"),
        ("/load /nonexistent.safetensors", "state /nonexistent.safetensors: no such file"),
        ("/nope", "/nope is not known: /help lists what is"),
    ],
)
def test_what_fails_is_said_and_the_conversation_goes_on(chat, line, says):
    found = chat([line, "hi"], "--quiet", code=1)
    assert one_line(found.err, "kernelforge chat: ")
    assert says in found.err
    assert found.out == chat(["hi"], "--quiet").out


def test_a_line_that_is_not_utf_8_fails_alone(chat, capsys, monkeypatch):
    expected = chat(["hi"], "--quiet").out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"h\xff\nhi\n"), "utf-8"))
    verb = ["chat", str(DEMO), "--device", "cpu", "--tokens", "9", "--greedy", "--quiet"]
    assert main(verb) == 1
    found = capsys.readouterr()
    assert one_line(found.err, "kernelforge chat: request refused: byte 0xff at character 1 ")
    assert found.out == expected


def test_a_seed_s_first_answer_is_what_run_says_of_its_prompt(capsys, monkeypatch):
    how = [str(DEMO), "--device", "cpu", "--tokens", "9", "--seed", "7", "--json", "--quiet"]
    monkeypatch.setattr("sys.stdin", io.StringIO("And\nAnd\n/regen\n"))
    assert main(["chat", *how]) == 0
    answers = [turn["answer"] for turn in turns(capsys.readouterr())]
    assert main(["run", *how, "And"]) == 0
    assert answers[0] == json.loads(capsys.readouterr().out)["text"]
    assert len(set(answers)) == 3
