"""Nothing is left of who was writing a file: at once where the system can, else with the next."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kernelforge.convert import partial_file
from kernelforge.convert.partial_file import PartialFile, remove_leftovers
from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge.errors import ConvertError
from kernelforge_runtime.weights import open_checkpoint

PLANS = [TensorPlan("a", "f32", (1000,))]


def values(name):
    yield np.arange(1000, dtype=np.float32)


@pytest.fixture(params=["unnamed", "named"])
def either(request, monkeypatch):
    """As on a system that can do without a name, and as on one that cannot."""
    if request.param == "named":
        monkeypatch.setattr(partial_file, "_open_unnamed", lambda folder: None)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no O_TMPFILE")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("either")
def test_a_file_appears_when_it_is_whole_and_replaces_another(tmp_path):
    target = tmp_path / "m.st"
    for content in (b"one", b"two"):
        with PartialFile(target) as partial:
            partial.file.write(content)
            partial.file.flush()
            assert partial.path.read_bytes() == content
            assert not target.exists() or target.read_bytes() == b"one"
            partial.finish()
        assert target.read_bytes() == content
        assert names(tmp_path) == ["m.st"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.usefixtures("either")
def test_who_gives_up_leaves_what_was_there(tmp_path):
    target = tmp_path / "m.st"
    target.write_bytes(b"old")

    def full(name):
        yield np.zeros(500, np.float32)
        raise OSError(28, "No space left on device")

    for error, wanted in ((full, ConvertError), (lambda name: 1 / 0, ZeroDivisionError)):
        with pytest.raises(wanted) as found:
            write_safetensors(target, PLANS, error)
        assert "\n" not in str(found.value)
        assert names(tmp_path) == ["m.st"]
        assert target.read_bytes() == b"old"


def test_where_a_file_without_a_name_cannot_get_one_it_is_copied(tmp_path, monkeypatch):
    def forbidden(*args, **more):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", forbidden)
    write_safetensors(tmp_path / "m.st", PLANS, values)
    assert names(tmp_path) == ["m.st"]
    with open_checkpoint(tmp_path / "m.st") as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor("a"), np.arange(1000))


def test_the_next_writer_removes_what_a_killed_one_left_and_not_what_a_live_one_writes(
    tmp_path, monkeypatch
):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from kernelforge.convert import partial_file\n"
        "partial_file._open_unnamed = lambda folder: None\n"
        "with partial_file.PartialFile(Path(sys.argv[1])) as partial:\n"
        "    partial.file.write(b'x' * 100000)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.st")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"written\n"
        (left,) = names(tmp_path)
        write_safetensors(tmp_path / "other.st", PLANS, values)
        assert names(tmp_path) == [left, "other.st"]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert names(tmp_path) == [left, "other.st"]
    write_safetensors(tmp_path / "m.st", PLANS, values)
    assert names(tmp_path) == ["m.st", "other.st"]


def test_only_what_a_writer_can_have_left_is_removed(tmp_path):
    host = partial_file._HOST
    other = "000000" if host != "000000" else "111111"
    mine, foreign, ancient, plain = (
        tmp_path / f".kernelforge-{place}0123456789ab.part"
        for place in (f"{host}-", f"{other}-", "abcdef-" if other != "abcdef" else "", "")
    )
    for path in (mine, foreign, ancient, plain):
        path.write_bytes(b"x")
    long_ago = time.time() - 2 * 86400
    os.utime(ancient, (long_ago, long_ago))
    user = tmp_path / "user.txt"
    user.write_bytes(b"x")
    kept = [
        tmp_path / f".kernelforge-{host}-0123456789AB.part",
        tmp_path / f".kernelforge-{host}-0123456789ab.part.txt",
        tmp_path / f".kernelforge-{host}-0123456789ac.part",
        tmp_path / f".kernelforge-{host}-0123456789ad.part",
    ]
    kept[0].write_bytes(b"x")
    kept[1].write_bytes(b"x")
    kept[2].mkdir()
    kept[3].symlink_to(user)
    assert set(remove_leftovers(tmp_path)) == {mine, ancient}
    assert set(tmp_path.iterdir()) == {foreign, plain, user, *kept}
    assert remove_leftovers(tmp_path / "absent") == []
