"""`kernelforge batch`: many prompts from arguments, a text file, JSON lines or a pipe."""

import io
import json

import pytest

from kernelforge.cli.main import main
from kernelforge_runtime.engine.engine import Engine
from tests.models.checkpoints import DEMO
from tests.toolkit.cli_process import kernelforge, one_line, tiny_model, workplace


def batch(capsys, *arguments):
    """(stdout, stderr) of a batch run by NumPy."""
    assert main(["batch", str(tiny_model()), *map(str, arguments), "--device", "cpu"]) == 0
    return capsys.readouterr()


def told(capsys, *arguments):
    return json.loads(batch(capsys, *arguments, "--json", "--quiet").out)


def alone(capsys, prompt, *arguments):
    verb = ["run", str(tiny_model()), prompt, *arguments, "--device", "cpu", "--json", "--quiet"]
    assert main(verb) == 0
    return json.loads(capsys.readouterr().out)


def test_every_prompt_gets_the_greedy_text_that_run_gives_it(capsys, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("In the beginning\r\n\n  And\nx\n")
    found = told(capsys, file, "--prompt", "first", "--tokens", "6", "--greedy", "--slots", "2")
    prompts = [r["prompt"] for r in found["requests"]]
    assert prompts == ["first", "In the beginning", "  And", "x"]
    for request in found["requests"]:
        expected = alone(capsys, request["prompt"], "--tokens", "6", "--greedy")
        assert (request["text"], request["tokens"]) == (expected["text"], expected["tokens"])
        assert request["reason"] == "length"
    assert found["stats"]["tokens"] == 24
    assert found["stats"]["prompt_tokens"] == len("first" + "In the beginning" + "  And" + "x")


def test_plain_output_is_one_line_for_each_prompt_in_their_order(capsys):
    prompts = [word for text in ("aaaa", "b", "cc") for word in ("--prompt", text)]
    found = batch(capsys, *prompts, "--tokens", "3", "--seed", "1")
    lines = [line.split("\t") for line in found.out.splitlines()]
    assert [line[:3] for line in lines] == [[str(n), "length", "3"] for n in (1, 2, 3)]
    assert all(isinstance(json.loads(line[3]), str) for line in lines)
    assert one_line(found.err, "3 prompts of 7 tokens, 9 tokens generated, in ")


def on_a_terminal(capsys, monkeypatch, columns, code=0):
    """(text, what a terminal of so many columns shows) of a batch of one prompt."""
    verb = ["batch", str(DEMO), "--prompt", "And", "--tokens", "6", "--greedy", "--device", "cpu"]
    with monkeypatch.context() as undisturbed:
        undisturbed.setattr(Engine, "step", STEP)
        assert main([*verb, "--json", "--quiet"]) == 0
    text = json.loads(capsys.readouterr().out)["requests"][0]["text"]
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(verb) == code
    return text, capsys.readouterr()


STEP = Engine.step


@pytest.mark.parametrize("columns", ["5", "80"])
def test_texts_are_shown_on_a_terminal_of_any_width(capsys, monkeypatch, columns):
    text, found = on_a_terminal(capsys, monkeypatch, columns)
    assert len(text) == 6 and text in found.out


def test_what_there_is_is_shown_where_a_terminal_s_batch_is_broken_off(capsys, monkeypatch):
    steps = []

    def broken(engine):
        steps.append(STEP(engine))
        if len(steps) > 3:
            raise KeyboardInterrupt
        return steps[-1]

    monkeypatch.setattr(Engine, "step", broken)
    text, found = on_a_terminal(capsys, monkeypatch, "80", 130)
    assert text[:3] in found.out and text not in found.out
    assert one_line(found.err, "kernelforge batch: interrupted")


def test_json_lines_carry_settings_of_their_own(capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    lines = ["In", {"prompt": "In\nthe", "tokens": 2}, {"ids": [73, 110], "temperature": 0}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = told(capsys, file, "--tokens", "4", "--seed", "7")["requests"]
    assert [len(r["tokens"]) for r in found] == [4, 2, 4]
    assert [r["seed"] for r in found] == [7, 7, 7]
    own = alone(capsys, "In", "--tokens", "4", "--greedy")
    assert found[2]["tokens"] == own["tokens"]


def test_penalties_that_nobody_names_are_those_of_the_lines_own_temperature(capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    lines = [{"prompt": "In"}, {"prompt": "In", "temperature": 1.0}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = told(capsys, file, "--tokens", "30", "--seed", "7", "--greedy")["requests"]
    for request, temperature in zip(found, ("0", "1"), strict=True):
        own = told(capsys, "--prompt", "In", "--tokens", "30", "--seed", "7",
                   "--temperature", temperature)  # fmt: skip
        assert request["tokens"] == own["requests"][0]["tokens"]


def test_a_seed_makes_it_repeatable_whatever_the_number_of_slots(capsys):
    prompts = [word for text in ("aaaa", "b", "cc") for word in ("--prompt", text)]
    one, two = (
        told(capsys, *prompts, "--tokens", "5", "--seed", "3", "--slots", slots)["requests"]
        for slots in (1, 3)
    )
    assert one == two


def test_a_seed_says_of_every_prompt_what_run_says_with_it(capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    asks = [{"prompt": "In"}, {"prompt": "In"}, {"prompt": "x", "seed": 5, "top_p": 1.0}]
    file.write_text("".join(json.dumps(line) + "\n" for line in asks))
    found = told(capsys, file, "--tokens", "12", "--seed", "3")["requests"]
    one = alone(capsys, "In", "--tokens", "12", "--seed", "3")
    other = alone(capsys, "x", "--tokens", "12", "--seed", "5", "--top-p", "1")
    assert [r["tokens"] for r in found] == [one["tokens"]] * 2 + [other["tokens"]]
    assert one["tokens"] != alone(capsys, "In", "--tokens", "12", "--seed", "4")["tokens"]


def test_a_pipe_will_do(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\ncd\n")))
    assert [r["prompt"] for r in told(capsys, "-", "--tokens", "1")["requests"]] == ["ab", "cd"]


def test_an_editors_byte_order_mark_is_no_part_of_the_first_prompt(capsys, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'\xef\xbb\xbf"ab"\r\n"cd"')
    prompts = told(capsys, file, "--tokens", "1")["requests"]
    assert [r["prompt"] for r in prompts] == ["ab", "cd"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", 'expected a string, or an object with "prompt" or "ids"'),
        ('{"prompt": "a", "ids": [1]}', "expected a string"),
        ('{"prompt": "a", "topp": 1}', "'topp' is not known; there are prompt, ids, tokens"),
        ('{"prompt": "a", "top_p": 2}', "top_p is 2, it must be a number from 0 to 1"),
        ('{"ids": [300]}', "token 300 at position 0"),
        ('{"ids": "abc"}', '"ids" is text'),
        ('{"prompt": ""}', "no tokens to run"),
        ('{"prompt": "a", "tokens": "many"}', "max_tokens is 'many'"),
        ('{"prompt": 5}', "the prompt is no list of token ids"),
    ],
)
def test_a_bad_line_is_named_and_nothing_runs(capsys, tmp_path, line, says):
    file = tmp_path / "p.jsonl"
    file.write_text(f'"good"\n{line}\n')
    assert main(["batch", str(tiny_model()), str(file), "--device", "cpu"]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert one_line(found.err, f"kernelforge batch: {file}:2: ")
    assert says in found.err


def test_an_empty_stop_string_is_a_usage_error(capsys):
    assert main(["batch", str(tiny_model()), "--prompt", "a", "--stop", "", "--device", "cpu"]) == 2
    assert one_line(capsys.readouterr().err, "kernelforge batch: --stop needs a text")


def test_no_prompt_at_all_is_a_usage_error(capsys, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for arguments, says in (((), "give prompts"), ((str(empty),), "holds no prompt")):
        assert main(["batch", str(tiny_model()), *arguments, "--device", "cpu"]) == 2
        assert says in capsys.readouterr().err
    assert main(["batch", str(tiny_model()), str(tmp_path / "none.txt"), "--device", "cpu"]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_device_gives_what_numpy_gives():
    place = workplace()
    prompts = [word for text in ("aaaa", "b", "cc") for word in ("--prompt", text)]
    found = [
        kernelforge("batch", place.model, *prompts, "--tokens", 4, "--greedy", "--weights", "f32",
                    "--json", "--quiet", "--device", device, **place.env)
        for device in ("cpu", "llvmpipe")
    ]  # fmt: skip
    assert [f.returncode for f in found] == [0, 0], found[1].stderr
    one, two = (json.loads(f.stdout)["requests"] for f in found)
    assert [r["tokens"] for r in one] == [r["tokens"] for r in two]


def test_slots_that_nobody_named_are_no_more_than_a_step_has_tokens(capsys):
    prompts = [word for text in "abc" for word in ("--prompt", text)]
    for chunk, steps in ("1", 12), ("2", 8):
        found = batch(capsys, *prompts, "--tokens", "4", "--chunk", chunk).err
        assert f"12 tokens generated, in {steps} steps" in found
