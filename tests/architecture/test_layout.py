"""What lies where: folders, file sizes, package docstrings, and nothing of anybody's machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.scheduling import LONGEST

ROOT = Path(__file__).parents[2]

TOP_FOLDERS = {
    ".ci",
    ".github",
    "kernelforge",
    "reports",
    "runtime",
    "scripts",
    "templates",
    "tests",
    "tuned",
}
MAX_LINES = 400
LONGER_FILES: dict[str, str] = {}  # path -> why it is better in one piece

MACHINE_PATH = re.compile(rb"(?<![\w.$}/-])/(?:root|work|home/\w+|Users/\w+)/")
REGISTRY_HOST = re.compile(
    rb"pyp[i]\.org|pythonh[o]sted\.org|(?:deb|security|snapshot)\.d[e]bian\.org|archive\.ubuntu\.com"
    rb"|registry\.npmjs|artifact-?registry|\bpkg\.dev"
    rb"|https?://(?:10|127|172|192\.168)\.\d"
)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of all tracked files that are there, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of tracked files")
    # The checkout may belong to another user than the one who tests it.
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def package_folders() -> list[Path]:
    packages = (ROOT / "kernelforge", ROOT / "runtime" / "kernelforge_runtime")
    return sorted({file.parent for package in packages for file in package.rglob("*.py")})


def offences(tracked: list[str], pattern: re.Pattern[bytes]) -> list[str]:
    return [
        f"{name}: {match.group().decode(errors='replace')}"
        for name in tracked
        if (match := pattern.search((ROOT / name).read_bytes()))
    ]


def test_top_level_folders_are_the_agreed_ones(tracked: list[str]) -> None:
    found = {name.partition("/")[0] for name in tracked if "/" in name}
    assert found <= TOP_FOLDERS


def test_no_code_file_is_longer_than_the_limit(tracked: list[str]) -> None:
    too_long = {
        name: lines
        for name in tracked
        if name.endswith((".py", ".j2"))
        and (lines := (ROOT / name).read_bytes().count(b"\n")) > MAX_LINES
        and name not in LONGER_FILES
    }
    assert too_long == {}


def test_list_of_longer_files_has_no_stale_entry() -> None:
    assert [name for name in LONGER_FILES if not (ROOT / name).is_file()] == []


def test_no_tracked_file_names_a_path_of_somebodys_machine(tracked: list[str]) -> None:
    assert offences(tracked, MACHINE_PATH) == []


def test_no_tracked_file_names_a_package_registry(tracked: list[str]) -> None:
    assert offences(tracked, REGISTRY_HOST) == []


@pytest.mark.parametrize("start", [("root",), ("home", "ann"), ("Users", "bo")])
def test_paths_of_a_machine_are_told_from_addresses(start: tuple[str, ...]) -> None:
    path = "/".join(["", *start, "file"]).encode()
    assert MACHINE_PATH.search(b'open("' + path + b'")')
    assert not MACHINE_PATH.search(b"https://host.example" + path)


@pytest.mark.parametrize("folder", package_folders(), ids=lambda path: str(path.relative_to(ROOT)))
def test_package_says_what_it_is_for(folder: Path) -> None:
    init = folder / "__init__.py"
    assert init.is_file(), f"{folder.name} has modules but no __init__.py"
    assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{init} says nothing"


def test_every_family_has_a_template_and_a_test_that_names_it(tracked: list[str]) -> None:
    families = {
        Path(name).stem
        for name in tracked
        if name.startswith("kernelforge/families/") and not Path(name).stem.startswith("_")
    }
    tests = "".join(file.read_text() for file in (ROOT / "tests" / "families").glob("test_*.py"))
    assert {f for f in families if f"templates/{f}.comp.j2" not in tracked} == set()
    assert {f for f in families if not re.search(rf"\b{f}\b", tests)} == set()


def test_the_files_that_start_first_are_there() -> None:
    assert [file for file in LONGEST if not (ROOT / "tests" / file).is_file()] == []
