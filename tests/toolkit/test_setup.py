"""scripts/setup.sh: what it finds, says and reads, without installing anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]

# What the script itself needs; none of it is anything that it installs.
BASIC_TOOLS = (
    *("awk", "bash", "cat", "dpkg", "dpkg-query", "flock", "grep", "head", "install"),
    *("mkdir", "python3", "rm", "sed", "sha256sum", "tail", "tr"),
)

DEB822 = """\
# The machine's own archive
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""

INLINE_KEY = """\
types: deb
uris:
 https://one.example/debian
 https://two.example/debian
suites: bookworm
components:
 main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBFit
 -----END PGP PUBLIC KEY BLOCK-----
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [ arch=amd64,arm64 signed-by=/etc/keys/a.gpg ] http://mirror.example/debian bookworm main # own
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
deb http://other.example/debian bookworm contrib
deb\thttp://plain.example/debian/  bookworm\tmain
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def backports(*files: Path) -> list[str]:
    """The stanzas that scripts/apt_sources.sh makes of these files, for bookworm."""
    script = '. scripts/apt_sources.sh && backports_stanzas bookworm "$@"'
    result = run(BASH, "-c", script, "bash", *files)
    assert result.returncode == 0, result.stderr
    return [stanza for stanza in result.stdout.split("\n\n") if stanza]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH with the basic tools alone: no apt-get, no glslangValidator, no spirv-val."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in BASIC_TOOLS:
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """A copy of what the script reads, where nothing has been set up."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    return checkout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_bash(script: Path) -> None:
    result = run(BASH, "-n", script)
    assert (result.returncode, result.stderr) == (0, "")


def test_check_finds_everything_on_a_machine_that_was_set_up() -> None:
    if not (ROOT / ".setup" / "stamp").exists():
        pytest.skip("this checkout was not set up by `make setup`")
    result = run(BASH, "scripts/setup.sh", "--check")
    if "out of date" in result.stdout:
        pytest.skip("pyproject.toml or the set-up script changed since `make setup`")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "everything is in place" in result.stdout
    assert "\nmissing" not in result.stdout


def test_check_names_what_is_missing_and_installs_nothing(
    bare_checkout: Path, bare_path: str
) -> None:
    result = run(BASH, "scripts/setup.sh", "--check", cwd=bare_checkout, PATH=bare_path)
    missing = result.stdout.splitlines()
    assert result.returncode == 1
    for package in ("glslang-tools", "spirv-tools", "vulkan-tools"):
        assert f"missing: {package}" in missing
    assert "missing: .venv with kernelforge and its dependencies" in missing
    assert not (bare_checkout / ".venv").exists()
    assert not (bare_checkout / ".setup").exists()


def test_check_needs_no_tools_at_all(bare_checkout: Path) -> None:
    result = run(BASH, "scripts/setup.sh", "--check", cwd=bare_checkout, PATH="/nonexistent")
    assert result.returncode == 1
    assert "missing: python3" in result.stdout.splitlines()
    assert "command not found" not in result.stderr


def test_system_without_apt_is_told_what_to_install(bare_checkout: Path, bare_path: str) -> None:
    result = run(BASH, "scripts/setup.sh", cwd=bare_checkout, PATH=bare_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "not Debian or Ubuntu" in line
    assert "glslang-tools" in line
    assert not (bare_checkout / ".venv").exists()


def test_unknown_option_is_a_usage_error() -> None:
    result = run(BASH, "scripts/setup.sh", "--chekc")
    assert result.returncode == 2
    assert result.stderr.startswith("usage:")


def test_deb822_source_gives_backports_of_the_same_archive_and_key(tmp_path: Path) -> None:
    (stanza,) = backports(write(tmp_path / "debian.sources", DEB822))
    assert stanza.splitlines() == [
        "Types: deb",
        "Suites: bookworm-backports",
        "Components: main",
        "URIs: http://mirror.example/debian",
        "Signed-By: /usr/share/keyrings/archive.gpg",
    ]


def test_deb822_continuation_lines_and_inline_keys_are_kept(tmp_path: Path) -> None:
    (stanza,) = backports(write(tmp_path / "debian.sources", INLINE_KEY))
    assert "uris:\n https://one.example/debian\n https://two.example/debian\n" in stanza
    assert "signed-by:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBFit\n" in stanza
    assert stanza.count("main") == 1


def test_one_line_source_gives_backports_of_the_same_archive_and_options(tmp_path: Path) -> None:
    with_options, plain = backports(write(tmp_path / "sources.list", ONE_LINE))
    assert with_options.splitlines() == [
        "Types: deb",
        "Suites: bookworm-backports",
        "Components: main",
        "URIs: http://mirror.example/debian",
        "Architectures: amd64 arm64",
        "Signed-by: /etc/keys/a.gpg",
    ]
    assert plain.splitlines()[-1] == "URIs: http://plain.example/debian/"


def test_unreadable_source_files_are_passed_over(tmp_path: Path) -> None:
    assert backports(tmp_path / "absent.list", write(tmp_path / "a.sources", DEB822)) != []
    assert backports(write(tmp_path / "empty.sources", "")) == []


def test_nth_stanza_counts_from_one_and_fails_past_the_end() -> None:
    script = ". scripts/apt_sources.sh && nth_stanza \"$1\" <<<$'A: 1\\nB: 2\\n\\nC: 3\\n'"
    assert run(BASH, "-c", script, "bash", "1").stdout == "A: 1\nB: 2\n"
    assert run(BASH, "-c", script, "bash", "2").stdout == "C: 3\n"
    assert run(BASH, "-c", script, "bash", "3").returncode == 1


@pytest.mark.parametrize(
    ("installed", "already", "expected"),
    [
        (False, "", ""),
        (True, "", "{here}/.setup/swiftshader/vk_swiftshader_icd.json"),
        (True, "/a.json", "{here}/.setup/swiftshader/vk_swiftshader_icd.json:/a.json"),
    ],
)
def test_env_adds_swiftshader_to_the_machines_own_devices(
    tmp_path: Path, installed: bool, already: str, expected: str
) -> None:
    if installed:
        folder = tmp_path / ".setup" / "swiftshader"
        folder.mkdir(parents=True)
        (folder / "vk_swiftshader_icd.json").write_text("{}")
    script = f'. "{ROOT}/scripts/env.sh" && printf %s "$VK_ADD_DRIVER_FILES"'
    result = run("sh", "-c", script, cwd=tmp_path, VK_ADD_DRIVER_FILES=already)
    assert result.stdout == expected.format(here=tmp_path)


@pytest.mark.parametrize(
    ("packages", "choice", "said"),
    [
        ("echo g++; echo pocl-opencl-icd", "yes", "missing: g++ pocl-opencl-icd"),
        (":", "yes", "ERROR: no such package"),
        ("echo g++", "no", ""),
    ],
)
def test_what_vkfft_lacks_is_one_line_and_no_failure(
    packages: str, choice: str, said: str, bare_checkout: Path, bare_path: str
) -> None:
    lines = (bare_checkout / "scripts" / "setup.sh").read_text().splitlines()
    assert lines[-1] == 'main "$@"'
    write(bare_checkout / "scripts" / "parts.sh", "\n".join(lines[:-1]))
    python = bare_checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # It finds no package, and pip fails as it does without a network.
    write(python, "#!/bin/sh\necho Looking; echo ERROR: no such package; exit 1\n").chmod(0o755)
    (bare_checkout / ".setup").mkdir()
    for tool in ("timeout", "sh"):
        (Path(bare_path) / tool).symlink_to(shutil.which(tool) or tool)
    script = f". scripts/parts.sh; fft_packages() {{ {packages}; }}; setup_fft yes; echo went on"
    result = run(BASH, "-c", script, cwd=bare_checkout, PATH=bare_path, KERNELFORGE_FFT=choice)
    assert result.returncode == 0
    assert result.stdout.endswith("went on\n")
    wanted = f"setup: warning: no VkFFT ({said}): bench --peer vkfft is left out" if said else ""
    assert result.stderr.startswith(wanted)
    assert result.stderr.count("\n") == bool(said)
