"""scripts/debian13.sh: why it cannot be made, and, where it has been, what it has and leaves."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"
SCRIPT = Path("scripts/debian13.sh")
CANNOT = 77


def debian13(*command: object, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, str(SCRIPT), *map(str, command)],
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script reads, where nothing was made."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    return copy


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of tools, the only ones there are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "grep", "mkdir", "rm", "sed", "sha256sum", "tail"):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return folder


@pytest.fixture
def made() -> None:
    if debian13("--check").returncode != 0:
        pytest.skip("no .setup/debian13: `make test13` makes it")


def add(tools: Path, name: str, script: str = "exit 0") -> None:
    (tools / name).write_text(f"#!{BASH}\n{script}\n")
    (tools / name).chmod(0o755)


def reason(found: subprocess.CompletedProcess[str]) -> str:
    assert found.returncode == CANNOT, found.stderr
    last = found.stderr.splitlines()[-1]
    assert last.startswith("debian13: skipped: ")
    return last


def test_check_says_that_it_is_missing_and_makes_nothing(checkout: Path) -> None:
    found = debian13("--check", cwd=checkout)
    assert found.returncode == 1
    assert found.stdout.startswith("missing: .setup/debian13")
    assert not (checkout / ".setup").exists()


def test_where_a_tool_is_missing_it_is_skipped_with_its_name(checkout: Path, tools: Path) -> None:
    assert "no apt-get" in reason(debian13("true", cwd=checkout, PATH=str(tools)))


def test_where_nothing_may_be_mounted_it_is_skipped(checkout: Path, tools: Path) -> None:
    for name in ("apt-get", "dpkg-deb", "chroot", "xargs"):
        add(tools, name)
    add(tools, "unshare", "echo 'unshare: Operation not permitted' >&2; exit 1")
    assert "namespaces are not allowed" in reason(debian13(cwd=checkout, PATH=str(tools)))
    assert not (checkout / ".setup" / "debian13.new").exists()


def test_where_no_archive_can_be_reached_it_is_skipped_and_leaves_no_half_of_it(
    checkout: Path, tools: Path
) -> None:
    os_release = Path("/etc/os-release")
    if not os_release.is_file() or "\nID=debian" not in os_release.read_text():
        pytest.skip("not Debian: its archive is not looked for")
    for name in ("dpkg-deb", "unshare", "chroot", "xargs"):
        add(tools, name)
    (tools / "awk").symlink_to(shutil.which("awk") or "/usr/bin/awk")
    add(tools, "apt-get", "echo 'E: Could not resolve the archive'; exit 100")
    found = reason(debian13("true", cwd=checkout, PATH=str(tools)))
    assert "offers Debian 13" in found
    assert sorted(p.name for p in (checkout / ".setup").iterdir()) == [
        "debian13.lock",
        "debian13.log",
    ]


def test_unknown_option_is_a_usage_error() -> None:
    found = debian13("--chekc")
    assert found.returncode == 2
    assert found.stderr.startswith("usage:")


def test_a_command_inside_sees_this_checkout_and_hands_back_its_status(made: None) -> None:
    found = debian13("sh", "-c", "pwd; cat /etc/debian_version; exit 3")
    assert found.returncode == 3
    place, version = found.stdout.splitlines()
    assert Path(place) == ROOT
    assert version.startswith("13")


def test_nothing_stays_mounted_after_a_failure(made: None) -> None:
    assert debian13("sh", "-c", "kill -9 $$").returncode != 0
    assert ".setup/debian13" not in Path("/proc/self/mounts").read_text()


@pytest.mark.vulkan
@pytest.mark.glslang
def test_its_device_and_compiler_know_cooperative_matrices(made: None) -> None:
    found = debian13("python3", "-m", "kernelforge", "devices", "--json")
    (device,) = json.loads(found.stdout)["devices"]
    assert device["slug"] == "llvmpipe"
    version = device["driver_info"].removeprefix("Mesa ").split("-")[0]
    assert tuple(map(int, version.split("."))) >= (26, 1)
    listed = debian13("vulkaninfo").stdout
    assert "VK_KHR_cooperative_matrix" in listed
    probe = "from kernelforge.compile import accepts; print(accepts('GL_KHR_cooperative_matrix'))"
    assert debian13("python3", "-c", probe).stdout.strip() == "True"
