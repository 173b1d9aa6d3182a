"""`kernelforge eval` counts as the author of the ROSA demonstrations does."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kernelforge.cli.evaluation.scoring import Tally, evaluate, marks
from kernelforge.cli.evaluation.tasks import TASKS, Sample
from kernelforge.cli.evaluation.text import score_text
from kernelforge.cli.main import main
from kernelforge_runtime.models import load_reference
from kernelforge_runtime.text import load_tokenizer
from tests.models.later_checkpoints import random_rosa_counting, random_rosa_lm, random_rwkv7_rosa
from tests.toolkit.cli_process import one_line
from tests.toolkit.test_cli import same_loggers_afterwards  # noqa: F401

REVERSE, ARITHMETIC, COUNT = (TASKS[name] for name in ("reverse", "arithmetic", "count"))


def made(task, count=None, low=None, high=None, seed=42):
    low, high = low or task.digits[0], high or task.digits[1]
    return task.make(count, low, high, random.Random(seed))


def told(capsys, *arguments):
    assert main(["eval", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Problems


def test_reversal_asks_ten_numbers_of_each_length_and_each_answer_is_the_number_backwards():
    samples = made(REVERSE)
    assert len(samples) == 600
    for i, sample in enumerate(samples):
        assert len(sample.answer) == i // 10 + 1
        assert sample.prompt == f"{sample.answer[::-1]},"
        assert sample.end == "#"


def test_arithmetic_asks_every_pair_of_lengths_once_and_each_answer_is_right():
    samples = made(ARITHMETIC)
    lengths = []
    for sample in samples:
        sign = "+" if "+" in sample.prompt else "-"
        a, b = sample.prompt.rstrip("=").split(sign)
        assert int(sample.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        lengths.append((len(a), len(b)))
    assert sorted(lengths) == [(i, j) for i in range(1, 21) for j in range(1, 21)]


def test_counting_starts_where_the_published_runs_do_and_holds_128_symbols():
    samples = made(COUNT)
    assert [s.answer.split("A")[0] for s in samples] == ["3", "12", "42", "150", "525"]
    assert {len(s.prompt + s.answer) for s in samples} == {128}
    assert samples[2].answer.startswith("42A43A44A")


@pytest.mark.parametrize("name", list(TASKS))
def test_as_many_problems_as_asked_are_made_and_a_seed_repeats_them(name):
    task = TASKS[name]
    first, again, other = made(task, 37), made(task, 37), made(task, 37, seed=7)
    assert len(first) == 37
    assert first == again != other
    letters = set("".join(s.prompt + s.answer + s.end for s in first))
    assert letters <= set(task.symbols)


def test_asked_lengths_are_kept():
    samples = made(REVERSE, 50, 3, 7)
    assert {len(s.answer) for s in samples} == {3, 4, 5, 6, 7}


# Scores


def test_an_end_counts_in_reversal_and_not_in_arithmetic():
    tally = Tally()
    tally.add(Sample("12,", "21", "#", "1-10"), "2##")
    assert tally.score(REVERSE) == (2, 3)
    assert tally.score(ARITHMETIC) == (1, 2)
    assert (tally.ends_right, tally.ends) == (1, 1)
    assert marks("21#", "2##") == ".^."


@pytest.fixture
def calculator(tmp_path):
    return load_reference(random_rwkv7_rosa(tmp_path / "model.safetensors"), np.float64)


def test_each_symbol_is_predicted_from_the_true_ones_before_it(calculator):
    sample = Sample("12+5=", "17", "=", "1-5")
    found = evaluate(calculator, ARITHMETIC, [sample], 1)
    state, expected = None, ""
    for token in "12+5=17":
        logits, state = calculator.forward([ARITHMETIC.symbols.index(token)], state)
        expected += ARITHMETIC.symbols[logits.argmax()]
    assert found.predicted == [expected[4:]]
    assert found.tokens == 7


def test_a_batch_of_any_size_predicts_as_one_at_a_time_does(calculator):
    samples = made(ARITHMETIC, 9, 1, 6)
    alone = evaluate(calculator, ARITHMETIC, samples, 1)
    for batch in (2, 4, 32):
        assert evaluate(calculator, ARITHMETIC, samples, batch).predicted == alone.predicted


def test_groups_add_up_to_the_total(calculator):
    found = evaluate(calculator, ARITHMETIC, made(ARITHMETIC, 20), 1)
    assert len(found.groups) == 4
    for name, value in vars(found.total).items():
        assert sum(vars(tally)[name] for tally in found.groups.values()) == value


# The verb


def test_the_published_counting_model_gets_the_published_numbers(shared, capsys):
    path = shared / "251016_rosa_1bit_run.pth"
    found = told(capsys, "count", path, "--device", "cpu")
    groups = [tally["answer_right"] for tally in found["groups"].values()]
    assert groups == [119, 122, 115, 110, 101]
    assert (found["right"], found["symbols"]) == (567, 635)


def test_the_published_arithmetic_model_misses_every_end_and_is_not_blamed_for_it(shared, capsys):
    path = shared / "251024_rosaQKV_L2_digit20.pth"
    found = told(capsys, "arithmetic", path, "--device", "cpu", "--count", 40)
    assert found["accuracy"] > 0.94
    assert (found["total"]["ends_right"], found["total"]["ends"]) == (0, 40)
    assert found["symbols"] == found["total"]["answers"]


@pytest.mark.parametrize(
    ("name", "least"), [("260123_reverse_L2", 0.99), ("260123_reverse_L2_only_rwkv7", 1.0)]
)
def test_the_published_reversal_models_reverse_sixty_digits(shared, capsys, name, least):
    found = told(capsys, "reverse", shared / f"{name}.pth", "--device", "cpu", "--count", 60)
    assert found["accuracy"] >= least
    assert found["groups"].keys() == {"1-10", "11-20", "21-30", "31-40", "41-50", "51-60"}


def test_text_shows_problems_with_what_is_wrong_in_them_and_how_it_was_scored(tmp_path, capsys):
    path = random_rosa_counting(tmp_path / "model.safetensors")
    assert main(["eval", "count", str(path), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for word in ("answer  3A4A5A", "check   ", "from 525", "of 635 right", "all 127 symbols"):
        assert word in text


@pytest.mark.vulkan
def test_a_device_scores_many_at_once_as_numpy_does(shared, capsys, llvmpipe):
    path = shared / "260123_reverse_L2.pth"
    asked = ("reverse", path, "--count", 12)
    by_numpy = told(capsys, *asked, "--device", "cpu")
    by_device = told(capsys, *asked, "--device", llvmpipe.info.name, "--batch", 5)
    assert by_device["device"] == llvmpipe.info.name
    assert abs(by_device["right"] - by_numpy["right"]) <= 2
    assert by_device["symbols"] == by_numpy["symbols"]


# Text


def test_bits_of_a_text_are_those_of_its_logits_over_chunks(tmp_path):
    path = random_rosa_lm(tmp_path / "model.safetensors", vocab=256)
    model, data = load_reference(path, np.float64), bytes(range(32, 122)) * 3
    found = score_text(model, load_tokenizer("bytes", 256), data)
    logits, _ = load_reference(path, np.float64).forward(list(data[:-1]), full_output=True)
    logits = logits.astype(np.float64)
    chosen = logits[np.arange(269), list(data[1:])]
    bits = (np.log2(np.exp(logits).sum(-1)) - chosen / np.log(2)).sum()
    assert (found.tokens, found.bytes) == (269, 269)
    assert abs(found.bits_per_byte - bits / 269) < 1e-4
    assert abs(found.perplexity - 2 ** (bits / 269)) < 1e-3 * found.perplexity


def test_a_model_that_prefers_nothing_needs_eight_bits_per_byte(tmp_path, capsys):
    path = random_rosa_lm(tmp_path / "model.safetensors", vocab=256)
    weights = load_file(path)
    weights["head.weight"][:] = 0
    save_file(weights, str(path), {"rosa_bits": "1"})
    (tmp_path / "text.txt").write_bytes("Größe\n".encode())
    found = told(capsys, path, "--text", tmp_path / "text.txt", "--device", "cpu")
    assert abs(found["bits_per_byte"] - 8) < 1e-6
    assert abs(found["perplexity"] - 256) < 1e-3


@pytest.mark.parametrize(("size", "finite"), [(1e5, True), (1e38, False)])
def test_a_model_that_is_out_of_hand_is_told_in_one_line(tmp_path, capsys, size, finite):
    path = random_rosa_lm(tmp_path / "model.safetensors", vocab=256)
    weights = load_file(path)
    weights["head.weight"] *= size
    save_file(weights, str(path), {"rosa_bits": "1"})
    (tmp_path / "text.txt").write_bytes(b"And it came to pass")
    arguments = ["eval", str(path), "--text", str(tmp_path / "text.txt"), "--device", "cpu"]
    assert main([*arguments, "--json"]) == (0 if finite else 1)
    found = capsys.readouterr()
    if finite:
        score = json.loads(found.out)
        assert score["bits_per_byte"] > 1024
        assert score["perplexity"] is None  # more than a number can say
    else:
        assert found.out == ""
        assert one_line(found.err, "kernelforge eval: what is predicted for token 1 of the text")


def test_formats_are_compared_with_the_first_one(tmp_path, capsys):
    path = random_rosa_lm(tmp_path / "model.safetensors", vocab=256)
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(32, 122)))
    found = told(capsys, path, "--text", text, "--device", "cpu", "--weights", "q8,f32")
    first, second = found["formats"]
    assert (first["weights"], second["weights"]) == ("q8", "f32")
    assert first["worse_percent"] == 0
    change = 100 * (second["perplexity"] / first["perplexity"] - 1)
    assert abs(second["worse_percent"] - change) < 1e-9
    assert first["weight_bytes"] < second["weight_bytes"]
    alone = told(capsys, path, "--text", text, "--device", "cpu", "--weights", "f32")
    assert second["perplexity"] == alone["perplexity"]


# What is asked wrongly


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--text", "t", "reverse"],
        ["reverse", "--digits", "0-5"],
        ["reverse", "--digits", "9-5"],
        ["reverse", "--count", "0"],
        ["--text", "t", "--digits", "1-5"],
        ["reverse", "--device", "cpu", "--bundle", "b"],
        ["reverse", "--weights", "f16,q8"],
    ],
)
def test_wrong_options_are_a_usage_error(tmp_path, arguments, capsys):
    assert main(["eval", *arguments, str(tmp_path / "model.pth")]) == 2
    assert "eval" in capsys.readouterr().err


def test_a_model_of_another_vocabulary_is_refused_in_one_line(tmp_path, capsys):
    path = random_rosa_counting(tmp_path / "model.safetensors")
    assert main(["eval", "reverse", str(path), "--device", "cpu"]) == 1
    line = capsys.readouterr().err
    assert "0123456789,#" in line
    assert line.count("\n") == 1


def test_an_unknown_format_among_several_is_named_in_one_line(tmp_path, capsys):
    path = random_rosa_counting(tmp_path / "model.safetensors")
    asked = [str(path), "--text", str(path), "--device", "cpu", "--weights", "f32,q9"]
    assert main(["eval", *asked]) == 1
    line = capsys.readouterr().err
    assert "'q9'" in line
    assert line.count("\n") == 1


def test_a_missing_or_too_short_text_is_named(tmp_path, capsys):
    path = random_rosa_lm(tmp_path / "model.safetensors", vocab=256)
    (tmp_path / "short.txt").write_bytes(b"a")
    for name, word in (("short.txt", "at least two"), ("none.txt", "No such file")):
        text = tmp_path / name
        assert main(["eval", str(path), "--text", str(text), "--device", "cpu"]) == 1
        assert word in capsys.readouterr().err
