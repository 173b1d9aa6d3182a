"""Who may import whom, and what an import may cost."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("jinja2", "matplotlib", "optuna", "pandas", "pyvkfft", "scipy", "sqlalchemy")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )


def loaded_by(module: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after importing one."""
    program = (
        f"import json, sys; import {module}; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def test_import_contracts_are_kept() -> None:
    if find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed (kernelforge[dev])")
    program = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    result = run_python("-c", program)
    assert result.returncode == 0, result.stdout + result.stderr


def test_runtime_loads_neither_the_toolkit_nor_its_tools() -> None:
    assert loaded_by("kernelforge_runtime").isdisjoint({"kernelforge", *TOOLS})


@pytest.mark.parametrize("module", ["kernelforge", "kernelforge.cli.main", "kernelforge.resources"])
def test_command_line_starts_without_the_slow_imports(module: str) -> None:
    assert loaded_by(module).isdisjoint(TOOLS)


def test_checkout_is_not_importable_as_runtime() -> None:
    """`runtime/` is a source root; a file there would make `import runtime` look right."""
    assert not (ROOT / "runtime" / "__init__.py").exists()
