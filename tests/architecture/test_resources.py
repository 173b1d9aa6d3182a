"""Where data is looked for, in a checkout and in an installed copy, and where it is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kernelforge.resources as toolkit
import kernelforge_runtime.resources as runtime

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "KERNELFORGE_TEMPLATES",
    "KERNELFORGE_TUNED",
    "KERNELFORGE_CACHE",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """Both packages as a wheel lays them out, with decoys: folders of an unrelated distribution."""
    site = tmp_path / "lib" / "site-packages"
    for source, data in (
        (Path(toolkit.__file__), "_templates"),
        (Path(runtime.__file__), "_tuned"),
    ):
        package = site / source.parent.name
        (package / data).mkdir(parents=True)
        (package / "__init__.py").touch()
        shutil.copy(source, package)
    for parent in (site, site.parent):
        (parent / "templates").mkdir()
        (parent / "tuned").mkdir()
    return site


def ask(site: Path, question: str, **env: str) -> str:
    """What the installed copy answers, in an interpreter that knows nothing of the checkout."""
    program = (
        "import kernelforge.resources as toolkit; "
        "import kernelforge_runtime.resources as runtime; "
        f"print({question})"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=site.parent,
        env={**kept, "PYTHONPATH": str(site), **env},
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_checkout_is_read_in_place() -> None:
    assert toolkit.templates_dir() == ROOT / "templates"
    assert runtime.tuned_dir() == ROOT / "tuned"
    assert runtime.tuned_output_dir() == ROOT / "tuned"
    assert runtime.tuned_search_path() == (ROOT / "tuned",)


def test_environment_overrides_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERNELFORGE_TEMPLATES", str(tmp_path / "a"))
    monkeypatch.setenv("KERNELFORGE_TUNED", str(tmp_path / "b"))
    monkeypatch.setenv("KERNELFORGE_CACHE", str(tmp_path / "c"))
    assert toolkit.templates_dir() == tmp_path / "a"
    assert runtime.tuned_dir() == runtime.tuned_output_dir() == tmp_path / "b"
    assert toolkit.cache_dir() == tmp_path / "c"


def test_packaged_copy_wins_over_a_decoy_beside_the_package(site_packages: Path) -> None:
    assert ask(site_packages, "toolkit.templates_dir()") == str(
        site_packages / "kernelforge" / "_templates"
    )
    assert ask(site_packages, "runtime.tuned_dir()") == str(
        site_packages / "kernelforge_runtime" / "_tuned"
    )


def test_environment_wins_over_the_packaged_copy(site_packages: Path, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    assert ask(site_packages, "runtime.tuned_dir()", KERNELFORGE_TUNED=elsewhere) == elsewhere


def test_installed_copy_writes_to_the_users_data_folder(
    site_packages: Path, tmp_path: Path
) -> None:
    own = tmp_path / "data" / "kernelforge" / "tuned"
    data = str(tmp_path / "data")
    assert ask(site_packages, "toolkit.tuned_output_dir()", XDG_DATA_HOME=data) == str(own)
    found = ask(
        site_packages, "*runtime.tuned_search_path(), sep='\\n'", XDG_DATA_HOME=data
    ).splitlines()
    assert found == [str(own), str(site_packages / "kernelforge_runtime" / "_tuned")]


def test_cache_follows_xdg_and_ignores_a_relative_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert toolkit.cache_dir() == tmp_path / ".cache" / "kernelforge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert toolkit.cache_dir() == tmp_path / ".cache" / "kernelforge"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert toolkit.cache_dir() == tmp_path / "x" / "kernelforge"
