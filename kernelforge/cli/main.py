"""Finds the verb, parses its options, runs it, and turns what goes wrong into one line.

Nothing heavy is imported here: `kernelforge --help` reads the first line of each verb's file, and
a verb's own file is imported only when it is the one to run.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

from kernelforge import __version__
from kernelforge.cli import options
from kernelforge.cli.options import UsageError
from kernelforge.cli.stopping import exit_code

FAILED, USAGE, PIPE_CLOSED = 1, 2, 141
"""Exit codes; the last is 128 + signal, as shells count. An exception may have an `exit_code`
of its own, where a verb's 1 says something else: see `report --compare`."""
EXTRAS = {
    "jinja2": "tune",
    "optuna": "tune",
    "pandas": "tune",
    "matplotlib": "tune",
    "tokenizers": "hf",
    "pyvkfft": "fft",
}
"""Optional packages, and the extra of this package that brings each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: arguments without the program's name; those of this process where None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    _survive_odd_text()
    verb = next((a for a in arguments if not a.startswith("-")), "")
    name = f"kernelforge {verb}".strip()
    verbose = "--verbose" in arguments
    try:
        try:
            code = _dispatch(arguments, verb)
        except SystemExit as ended:  # argparse has said what there was to say
            code = ended.code if isinstance(ended.code, int) else USAGE
        sys.stdout.flush()  # a full disk must not go unseen
        return code
    except KeyboardInterrupt as stopped:
        _show_cursor()
        return _fail(name, "interrupted", exit_code(stopped), verbose=False)
    except BrokenPipeError:
        # Who reads us has gone; Python would complain once more while it shuts down.
        _discard_stdout()
        return PIPE_CLOSED
    except UsageError as error:
        return _fail(name, str(error), USAGE, verbose=False)
    except Exception as error:
        if isinstance(error, OSError):
            _discard_stdout()  # it may be stdout that is full
        return _fail(name, explain(error), getattr(error, "exit_code", FAILED), verbose)


def explain(error: Exception) -> str:
    """One line for an error that ended a verb."""
    from kernelforge_runtime.errors import KernelForgeError

    if isinstance(error, KernelForgeError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRAS:
        package = str(error.name).split(".")[0]
        return f"the package {package} is missing: pip install 'kernelforge[{EXTRAS[package]}]'"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return "out of memory on the host; use a smaller model or a smaller weight format"
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119
    text = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}: {text} ({place}); --verbose shows the trace"


def verbs() -> dict[str, str]:
    """Every verb and its one line, from files of this folder that define `add_arguments`."""
    found = {}
    for file in files("kernelforge.cli").iterdir():
        if not file.name.endswith(".py"):
            continue
        text = file.read_text(encoding="utf-8")
        if "\ndef add_arguments(" in text and "\ndef run(" in text:
            found[file.name.removesuffix(".py")] = text.split("\n", 1)[0].strip('"').rstrip(".")
    return dict(sorted(found.items()))


def parser_of(verb: str) -> tuple[argparse.ArgumentParser, ModuleType]:
    """The parser of one verb, and its module."""
    module = import_module(f"kernelforge.cli.{verb}")
    parser = _Parser(
        prog=f"kernelforge {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    options.add_common(parser)
    return parser, module


def _dispatch(arguments: list[str], verb: str) -> int:
    known = verbs()
    before = arguments[: arguments.index(verb)] if verb else arguments
    if not verb or before:
        _top(known).parse_args(before)
        _top(known).print_help(sys.stderr if not verb else sys.stdout)
        return USAGE
    if verb not in known:
        near = _nearest(verb, known)
        raise UsageError(f"no such verb; {near} (kernelforge --help)")
    parser, module = parser_of(verb)
    args = parser.parse_intermixed_args(arguments[1:])
    options.refuse_empty(parser, args)
    _log_to_stderr(args)
    code = module.run(args)
    return int(code or 0)


def _top(known: dict[str, str]) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<9} {text}" for name, text in known.items())
    parser = _Parser(
        prog="kernelforge",
        usage="kernelforge VERB [TARGET] [--options]",
        description="Tuned Vulkan kernels, and RWKV language models that run on them.",
        epilog=f"verbs:\n{lines}\n\n`kernelforge VERB --help` tells what a verb takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kernelforge {__version__}")
    return parser


def _nearest(verb: str, known: dict[str, str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(verb, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


class _Parser(argparse.ArgumentParser):
    """Tells where its help or version could not be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own drops the error, and with PYTHONUNBUFFERED none is left for `flush`.
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is at the time: a live display puts itself in its place."""

    @property
    def stream(self) -> object:
        """The current stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, value: object) -> None:
        pass


def _log_to_stderr(args: argparse.Namespace) -> None:
    level = logging.INFO if args.verbose else logging.ERROR if args.quiet else logging.WARNING
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for package in ("kernelforge", "kernelforge_runtime"):
        log = logging.getLogger(package)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


def _open_missing_streams() -> None:
    """What was closed before we started (`>&-`) reads and writes nothing.

    Else notes meant for a closed stderr go to stdout, where Python prints what has no file, and
    the next file opened takes the closed one's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _survive_odd_text() -> None:
    """Text that the terminal cannot show is escaped rather than an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _show_cursor() -> None:
    """A live display that was interrupted while it started has hidden it."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed and stream.isatty():
            stream.write("\x1b[?25h")
            stream.flush()
            return


def _discard_stdout() -> None:
    """Lets what is still buffered for stdout go nowhere, where stdout is a real file."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(name: str, line: str, code: int, verbose: bool) -> int:
    with suppress(OSError):  # where stderr is full too, the code is all that can be told
        if verbose:
            traceback.print_exc()
        print(f"{name}: {line}", file=sys.stderr)
    return code
