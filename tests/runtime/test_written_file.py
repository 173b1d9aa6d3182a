"""Files that are written whole: what is there stays until the new one is."""

import errno
import os
from pathlib import Path

import pytest

from kernelforge_runtime.written_file import place_of, written_whole


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_it_is_there_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    place = tmp_path / "kept.json"
    place.write_bytes(b"old")
    with written_whole(place) as file:
        file.write(b"new and longer")
        assert place.read_bytes() == b"old"
    assert place.read_bytes() == b"new and longer"
    assert names(tmp_path) == ["kept.json"]


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt(), ValueError("mine")]
)
def test_what_breaks_off_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, fault: BaseException
) -> None:
    place = tmp_path / "kept.json"
    place.write_bytes(b"old")
    with pytest.raises(type(fault)), written_whole(place, lasting=True) as file:
        file.write(b"half")
        raise fault
    assert place.read_bytes() == b"old"
    assert names(tmp_path) == ["kept.json"]


def test_a_disk_that_is_full_at_the_last_write_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kernelforge_runtime.written_file.os.fsync", full)
    with pytest.raises(OSError, match="No space"), written_whole(tmp_path / "x", True) as file:
        file.write(b"half")
    assert names(tmp_path) == []


def test_two_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    place = tmp_path / "kept"
    with written_whole(place) as first:
        first.write(b"first")
        with written_whole(place) as second:
            second.write(b"second")
        assert place.read_bytes() == b"second"
    assert place.read_bytes() == b"first"
    assert names(tmp_path) == ["kept"]


def test_without_its_folder_it_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "gone" / "x"):
        pass


def test_a_link_is_followed_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    assert place_of(link) == target.resolve()
    with pytest.raises(FileExistsError, match="not a regular file"):
        place_of("/dev/null")
    with pytest.raises(IsADirectoryError):
        place_of(tmp_path)
