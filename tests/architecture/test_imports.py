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


def modules_after(program: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after a program."""
    told = "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    result = run_python("-c", program + told)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def loaded_by(program: str) -> set[str]:
    """Top-level names of the same."""
    return {name.partition(".")[0] for name in modules_after(program)}


def test_import_contracts_are_kept() -> None:
    if find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed (kernelforge[dev])")
    program = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"
    result = run_python("-c", program)
    assert result.returncode == 0, result.stdout + result.stderr


def test_runtime_loads_neither_the_toolkit_nor_its_tools() -> None:
    loaded = loaded_by("from kernelforge_runtime import *")  # a mere import loads nothing yet
    assert loaded.isdisjoint({"kernelforge", *TOOLS})


@pytest.mark.parametrize("module", ["kernelforge", "kernelforge.cli.main", "kernelforge.resources"])
def test_command_line_starts_without_the_slow_imports(module: str) -> None:
    assert loaded_by(f"import {module}").isdisjoint(TOOLS)


def test_a_process_that_measures_starts_without_models_and_search() -> None:
    loaded = modules_after("import kernelforge.measure.worker")
    assert "kernelforge_runtime.vk" in loaded
    waste = {"kernelforge_runtime.engine", "kernelforge_runtime.models", "kernelforge_runtime.text"}
    assert loaded.isdisjoint({*TOOLS, *waste, "kernelforge.tune"} - {"jinja2"})


def test_every_public_name_of_the_runtime_is_found_by_itself_and_is_what_it_says() -> None:
    program = (
        "import kernelforge_runtime as kf; "
        "assert all(getattr(kf, name).__name__ == name for name in kf.__all__), kf.__all__; "
        "assert set(kf.__all__) <= set(dir(kf)); "
        "assert kf.dtypes.F16.name == 'f16'; "
        "assert not hasattr(kf, 'no_such_name')"
    )
    assert "kernelforge_runtime.engine.engine" in modules_after(program)


def test_checkout_is_not_importable_as_runtime() -> None:
    """`runtime/` is a source root; a file there would make `import runtime` look right."""
    assert not (ROOT / "runtime" / "__init__.py").exists()
