"""The frame of the command line: verbs, help, usage, errors, exit codes."""

import argparse
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelforge import __version__
from kernelforge.cli import main as frame
from kernelforge.cli.main import explain, main, parser_of, verbs
from kernelforge.cli.options import SHARED
from kernelforge.cli.output import Output, aligned, plain
from kernelforge.cli.progress import ProgressBar
from kernelforge_runtime.errors import ModelError
from tests.toolkit.cli_process import command, environment, kernelforge, one_line

GOLDEN = Path(__file__).parents[1] / "golden"
HELP = ("", *verbs())


@pytest.fixture(autouse=True)
def same_loggers_afterwards():
    """Running a verb in this process sets up logging; other tests must not see that."""
    kept = [logging.getLogger(name) for name in ("kernelforge", "kernelforge_runtime")]
    before = [(log.handlers, log.propagate, log.level) for log in kept]
    yield
    for log, (handlers, propagate, level) in zip(kept, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.mark.parametrize("verb", HELP, ids=lambda verb: verb or "kernelforge")
def test_help_is_the_golden_text(verb, capsys, monkeypatch, update_golden):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*([verb] if verb else []), "--help"]) == 0
    found = capsys.readouterr()
    path = GOLDEN / (f"cli_help_{verb}.txt" if verb else "cli_help.txt")
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found.out, encoding="utf-8")
    assert found.err == ""
    assert found.out == path.read_text(encoding="utf-8"), "refresh: pytest --update-golden"


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_the_common_options_and_one_line_of_help(verb):
    parser, module = parser_of(verb)
    known = parser._option_string_actions
    assert {"--json", "--quiet", "--verbose"} <= known.keys()
    assert len(verbs()[verb]) > 20
    assert module.__doc__.startswith(verbs()[verb])


@pytest.mark.parametrize("verb", verbs())
def test_every_option_of_every_verb_has_a_help_text(verb):
    parser, _ = parser_of(verb)
    assert [a.dest for a in parser._actions if not a.help or a.help == argparse.SUPPRESS] == []


def test_shared_options_all_have_a_help_text():
    assert [name for name, details in SHARED.items() if not details.get("help")] == []


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kernelforge {__version__}\n"


def test_help_starts_without_numpy_or_the_runtime():
    """What makes it quick; a clock would say so only on a quiet machine."""
    program = (
        "import sys; from kernelforge.cli.main import main; main(['--help']);"
        "print([m for m in ('numpy', 'kernelforge_runtime', 'optuna', 'rich') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_help_is_printed_within_a_second():
    before = os.times()
    assert kernelforge("--help").returncode == 0
    after = os.times()  # of the processor: others may have work for it too
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 1.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["devces"], "did you mean devices?"),
        (["zzz"], "there are "),
        (["--nope"], "unrecognized arguments"),
        (["devices", "--nope"], "unrecognized arguments"),
        (["run"], "required: MODEL"),
        (["run", "m", "p", "--tokens", "0"], "from 1 up"),
        (["run", "m"], "give one prompt"),
        (["run", "m", "p", "--prompt-ids", "1"], "give one prompt"),
        (["run", "m", "--prompt-ids", "a"], "expected whole numbers"),
        (["run", "m", "p", "--greedy", "--temperature", "1"], "do not go together"),
        (["run", "m", "p", "--device", "cpu", "--trace"], "no --trace"),
        (["tune"], "give --model FILE, or --family"),
        (["tune", "--family", "gemv", "--model", "m"], "give --model FILE, or --family"),
        (["tune", "--family", "gemv", "--problem", "M=a"], "expected a form like M=4096"),
        (["tune", "--family", "gemv", "--seconds", "-1"], "seconds above 0"),
        (["tune", "--family", "gemv", "--profile", "slow"], "invalid choice"),
        (["tune", "--family", "gemv", "--out", ""], "--out: is empty; leave it out"),
        (["tune", "--record", ""], "--record: is empty"),
        (["tune", "--family", "gemv", "--warm-start", "a", ""], "--warm-start: is empty"),
        (["inspect", ""], "TARGET: is empty"),
        (["run", "m.pth", "a", "--quant", ""], "--quant: is empty; leave it out"),
        (["chat", "m.pth", "--weights", ""], "--weights: is empty; leave it out"),
        (["build", "--generic", "--all"], "only --out goes with it"),
        (["build", "--device-profile", "x"], "expected generic, this or FILE.json"),
        (["inspect", "gemv", "--glsl"], "says nothing about a family"),
        (["convert", "a"], "required: DST"),
    ],
)
def test_usage_errors_exit_with_2_and_say_what_is_wrong(arguments, says, capsys):
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert says in found.err
    assert found.out == ""


def test_no_verb_shows_the_verbs_and_exits_with_2(capsys):
    assert main([]) == 2
    assert "devices" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_without_a_trace(capsys):
    assert main(["inspect", "/nonexistent.safetensors"]) == 1
    found = capsys.readouterr()
    assert one_line(found.err, "kernelforge inspect: /nonexistent.safetensors: no such file")
    assert found.out == ""


def test_verbose_adds_the_trace(capsys):
    assert main(["inspect", "/nonexistent.safetensors", "--verbose"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("kernelforge inspect: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModelError("two\nlines"), "two lines"),
        (OSError(28, "No space left on device", "x.bin"), "x.bin: No space left on device"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (MemoryError(), "out of memory on the host"),
        (ModuleNotFoundError("x", name="optuna.samplers"), "pip install 'kernelforge[tune]'"),
        (ModuleNotFoundError("x", name="tokenizers"), "pip install 'kernelforge[hf]'"),
    ],
)
def test_every_kind_of_error_becomes_one_line(error, line):
    assert line in explain(error)
    assert "\n" not in explain(error)


def test_a_mistake_of_ours_names_its_place(capsys, monkeypatch):
    monkeypatch.setattr(frame, "_dispatch", lambda arguments, verb: {}["gone"])
    assert main(["devices"]) == 1
    line = one_line(capsys.readouterr().err, "kernelforge devices: internal error: KeyError")
    assert "test_cli.py:" in line


def test_an_interrupt_during_the_first_imports_is_one_line_and_130():
    program = (
        "import builtins, sys\n"
        "whole = builtins.__import__\n"
        "def stopped(name, *rest):\n"
        "    if name == 'kernelforge.cli.main':\n"
        "        raise KeyboardInterrupt\n"
        "    return whole(name, *rest)\n"
        "builtins.__import__ = stopped\n"
        "from kernelforge.__main__ import main\n"
        "sys.exit(main())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (130, "kernelforge: interrupted\n")


def test_an_interrupt_is_one_line_and_130(capsys, monkeypatch):
    def interrupted(arguments, verb):
        raise KeyboardInterrupt

    monkeypatch.setattr(frame, "_dispatch", interrupted)
    assert main(["devices"]) == 130
    assert one_line(capsys.readouterr().err, "kernelforge devices: interrupted")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def test_an_interrupt_shows_the_cursor_that_a_live_display_has_hidden(monkeypatch):
    def interrupted(arguments, verb):
        raise KeyboardInterrupt

    terminal = Terminal()
    monkeypatch.setattr(frame, "_dispatch", interrupted)
    monkeypatch.setattr("sys.__stdout__", terminal)
    assert main(["devices"]) == 130
    assert terminal.getvalue() == "\x1b[?25h"


def test_a_bar_that_is_interrupted_while_it_starts_leaves_the_terminal_as_it_was(monkeypatch):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.progress.Progress.add_task", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        ProgressBar(Output(argparse.Namespace(json=False, quiet=False)), "x"),
    ):
        pass
    assert sys.stderr is terminal
    told = terminal.getvalue()
    assert 0 <= told.rfind("\x1b[?25l") < told.rfind("\x1b[?25h")


@pytest.mark.parametrize(
    ("closed", "verb", "code"), [(">&-", "--version", 0), ("2>&-", "no-such-verb", 2)]
)
def test_what_is_said_to_a_stream_that_was_closed_before_goes_nowhere(closed, verb, code):
    program = "import sys; from kernelforge.cli.main import main; sys.exit(main(sys.argv[1:]))"
    found = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {verb} {closed}', sys.executable, program],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout, found.stderr) == (code, "", "")


def test_a_stdin_that_was_closed_before_is_at_its_end(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    arguments = ["run", "none.safetensors", "--prompt-file", "-", "--device", "cpu"]
    assert main(arguments) == 1
    sys.stdin.close()
    assert one_line(capsys.readouterr().err, "kernelforge run: none.safetensors: no such file")


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        command("inspect", "gemv", "--json", "--quiet"),
        env=environment(VK_DRIVER_FILES="/nonexistent.json", VK_ADD_DRIVER_FILES=""),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            command("inspect", "gemv", "--json", "--quiet"),
            env=environment(VK_DRIVER_FILES="/nonexistent.json", VK_ADD_DRIVER_FILES=""),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert found.returncode == 1
    assert one_line(found.stderr, "kernelforge inspect: No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_and_version_that_cannot_be_written_fail(arguments, unbuffered):
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            command(*arguments),
            env=environment(PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert found.returncode == 1
    verb = " run" if "run" in arguments else ""
    assert one_line(found.stderr, f"kernelforge{verb}: No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_where_stderr_is_full_the_exit_code_is_still_told():
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command("nosuch"), env=environment(), stderr=full)
    assert found.returncode == 2


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("optuna", ["tune", "--family", "copy"], "tune"),
        ("jinja2", ["build"], "tune"),
        ("jinja2", ["tune", "--family", "copy"], "tune"),
    ],
)
def test_a_missing_extra_says_how_to_install_it(package, arguments, extra):
    program = (
        f"import sys; sys.modules[{package!r}] = None; from kernelforge.cli.main import main;"
        f"sys.exit(main({arguments!r}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert found.returncode == 1
    line = one_line(found.stderr, f"kernelforge {arguments[0]}: the package {package} is missing")
    assert line.endswith(f"pip install 'kernelforge[{extra}]'")


def test_json_has_no_nan_and_keeps_everything_else():
    value = {"a": float("nan"), "b": [Path("x"), (1, 2.5)], "c": {"f": True, "n": None}}
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {"a": None, "b": ["x", [1, 2.5]], "c": {"f": True, "n": None}}


def test_aligned_columns_are_flush_and_numbers_are_right():
    assert aligned([("name", "us"), ("a", "1.5"), ("bcdef", "10.0")]) == [
        "name     us",
        "a       1.5",
        "bcdef  10.0",
    ]


@pytest.mark.parametrize("columns", ["5", "20", "30", "80"])
def test_a_table_on_a_terminal_of_any_width_keeps_every_column(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    output = Output(argparse.Namespace(json=False, quiet=False))
    output.table("ABCDEF", [[c * 9 for c in "uvwxyz"]])
    shown = capsys.readouterr().out
    assert [shown.count(c) for c in "ABCDEFuvwxyz"] == [1] * 6 + [9] * 6
