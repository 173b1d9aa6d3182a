"""Tests whose process dies: reported, not tried again, and the others are run by somebody else."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("xdist", reason="pytest-xdist is not there: tests run in one process")
CONFTEST = """
from tests.scheduling import by_group
def pytest_xdist_make_scheduler(config, log):
    return by_group(config, log)
"""
FINE = "def test_{}(): pass\n"
DIES = "import os\ndef test_dies(): os.abort()\n"
LIMIT_S = 120
"""What waits for ever is ended, and is a failure."""


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_process_that_died_left_is_run_by_another(tmp_path, processes):
    fine = "".join(map(FINE.format, "abcd"))
    files = {"first": fine + DIES + FINE.format("later"), "last": fine + DIES, "only": DIES}
    files |= {f"more{i}": FINE.format("alone") for i in range(3)}
    for name, text in files.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = "pytest", "-n", str(processes), "--dist", "loadgroup", "-p", "no:cacheprovider"
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "3 failed, 12 passed" in done.stdout.splitlines()[-1], done.stdout
    for name in ("first", "last", "only"):
        assert f"crashed while running 'test_{name}.py::test_dies'" in done.stdout
