"""Which bundle a device gets, and what it is told about it."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.bundle import BundleMatch, locate, locate_generic
from kernelforge_runtime.errors import BundleError
from tests.runtime.bundle_files import DEVICE, SIBLING, STRANGER, write_bundle

NEWER_DRIVER = replace(DEVICE, driver_version=200, driver_info="2.0")


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KERNELFORGE_TUNED", raising=False)
    write_bundle(tmp_path / "tuned" / "generic", GENERIC)
    write_bundle(tmp_path / "tuned" / "example-x1", DEVICE)
    return tmp_path / "tuned"


def test_the_ladder_goes_from_exact_to_generic(tuned: Path) -> None:
    exact = locate(DEVICE, search=[tuned])
    assert (exact.bundle_path, exact.match) == (tuned / "example-x1", BundleMatch.EXACT)
    assert "this driver" in exact.reason
    other = locate(NEWER_DRIVER, search=[tuned])
    assert (other.bundle_path, other.match) == (tuned / "example-x1", BundleMatch.OTHER_DRIVER)
    assert "example 1.0 (here: example 2.0)" in other.reason
    similar = locate(SIBLING, search=[tuned])
    assert (similar.bundle_path, similar.match) == (
        tuned / "example-x1",
        BundleMatch.SIMILAR_DEVICE,
    )
    generic = locate(STRANGER, search=[tuned])
    assert (generic.bundle_path, generic.match) == (tuned / "generic", BundleMatch.GENERIC)
    assert generic.reason == (
        'no bundle for "other-z9"; using generic (slower). '
        "Tune one: kernelforge tune --device other-z9 --model FILE"
    )
    for located in (other, similar, generic):
        assert "kernelforge tune --device" in located.reason
        assert "\n" not in located.reason


def test_any_sign_of_another_driver_counts(tuned: Path) -> None:
    for other in (
        replace(DEVICE, driver_version=101),
        replace(DEVICE, driver_info="1.0.1"),  # the version number alone does not always tell
        replace(DEVICE, driver_name="free"),
        replace(DEVICE, features=DEVICE.features | {"float16"}),
    ):
        assert locate(other, search=[tuned]).match is BundleMatch.OTHER_DRIVER


def test_the_processor_behind_a_software_device_counts(tmp_path: Path) -> None:
    here = replace(DEVICE, device_type="cpu", processor="Fast 9000")
    folder = write_bundle(tmp_path / "example-x1", here)
    assert locate(here, search=[tmp_path]).match is BundleMatch.EXACT
    located = locate(replace(here, processor="Slow 10"), search=[tmp_path])
    assert located.match is BundleMatch.OTHER_PROCESSOR
    assert "another processor Fast 9000 (here: Slow 10); its kernels" in located.reason
    assert f"kernelforge inspect {folder} --check --device example-x1" in located.reason
    both = locate(replace(here, processor="Slow 10", driver_info="2.0"), search=[tmp_path])
    assert both.match is BundleMatch.OTHER_DRIVER
    assert "driver example 1.0 (here: example 2.0), processor Fast 9000 (here:" in both.reason


def test_a_bundle_that_kept_no_processor_is_exact_and_says_that_it_is_not_known(
    tuned: Path,
) -> None:
    located = locate(replace(DEVICE, processor="Fast 9000"), search=[tuned])
    assert located.match is BundleMatch.EXACT
    assert "on which processor was not kept" in located.reason


def test_every_difference_is_named(tuned: Path) -> None:
    for other, says in (
        (replace(DEVICE, driver_version=101), "example 1.0 (100) (here: example 1.0 (101))"),
        (replace(DEVICE, features=DEVICE.features | {"float16"}), "(here: with float16)"),
        (replace(DEVICE, subgroup_size=64), "subgroup size 32 (32 to 32) (here: 64 (32 to 32))"),
        (replace(DEVICE, api_version=(1, 3, 1)), "Vulkan 1.2.0 (here: 1.3.1)"),
        (replace(DEVICE, device_id=8), "device id 0x7 (here: 0x8)"),
    ):
        located = locate(other, search=[tuned])
        assert located.match is BundleMatch.OTHER_DRIVER
        assert says in located.reason
        assert "\n" not in located.reason


def test_another_capability_class_is_not_similar(tuned: Path) -> None:
    for other in (
        replace(SIBLING, features=SIBLING.features | {"float16"}),
        replace(SIBLING, subgroup_size=64, subgroup_max=64),
        replace(SIBLING, vendor_id=1),
    ):
        assert locate(other, search=[tuned]).match is BundleMatch.GENERIC


def test_the_first_place_wins_only_among_equals(tuned: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    write_bundle(own / "example-x1", NEWER_DRIVER)
    assert locate(DEVICE, search=[own, tuned]).bundle_path == tuned / "example-x1"
    assert locate(NEWER_DRIVER, search=[own, tuned]).bundle_path == own / "example-x1"
    write_bundle(own / "example-x1", DEVICE)
    assert locate(DEVICE, search=[own, tuned]).bundle_path == own / "example-x1"


def test_a_bundle_in_a_folder_of_another_name_is_found(tuned: Path) -> None:
    (tuned / "example-x1").rename(tuned / "my-card")
    located = locate(DEVICE, search=[tuned])
    assert (located.bundle_path, located.match) == (tuned / "my-card", BundleMatch.EXACT)


def test_an_explicit_path_wins_whatever_it_was_tuned_on(tuned: Path, tmp_path: Path) -> None:
    given = write_bundle(tmp_path / "given", STRANGER)
    located = locate(DEVICE, given, search=[tuned])
    assert (located.bundle_path, located.match) == (given, BundleMatch.OTHER_DEVICE)
    assert 'the one of "other-z9", another device' in located.reason
    assert locate(DEVICE, tuned / "generic").match is BundleMatch.GENERIC
    assert locate(DEVICE, tuned).bundle_path == tuned / "example-x1"  # a folder of bundles


def test_an_explicit_path_that_is_no_bundle_is_an_error(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle in .*nowhere"):
        locate(DEVICE, tmp_path / "nowhere", search=[tuned])
    (tuned / "example-x1" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="does not match"):
        locate(DEVICE, tuned / "example-x1", search=[tuned])


def test_the_environment_variable_names_a_bundle_or_a_folder_of_them(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELFORGE_TUNED", str(tuned))
    assert locate(DEVICE).match is BundleMatch.EXACT
    given = write_bundle(tmp_path / "given", STRANGER)
    monkeypatch.setenv("KERNELFORGE_TUNED", str(given))
    assert locate(DEVICE).bundle_path == given
    assert locate(DEVICE, tuned).bundle_path == tuned / "example-x1"
    monkeypatch.setenv("KERNELFORGE_TUNED", str(tmp_path / "nowhere"))
    with pytest.raises(BundleError, match="nowhere"):
        locate(DEVICE)


def test_a_damaged_bundle_is_passed_over_with_a_warning(
    tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tuned / "example-x1" / "kernels.safetensors").write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        found = locate(DEVICE, search=[tuned])
    assert found.match is BundleMatch.GENERIC
    damaged = f"that can be read, for {tuned / 'example-x1'} is damaged; using generic (slower). "
    assert damaged in found.reason
    assert "bundle passed over" in caplog.text
    assert "example-x1" in caplog.text


@pytest.mark.parametrize("linked", [False, True])
def test_a_bundle_without_its_manifest_is_no_silent_return_to_the_generic_one(
    tuned: Path, caplog: pytest.LogCaptureFixture, linked: bool
) -> None:
    manifest = tuned / "example-x1" / "manifest.json"
    manifest.unlink()
    if linked:
        manifest.symlink_to(tuned / "nowhere")
    with caplog.at_level(logging.WARNING):
        reason = locate(DEVICE, search=[tuned]).reason
    assert f"{tuned / 'example-x1'} is damaged; using generic" in reason
    assert "holds kernels, but no manifest.json" in caplog.text


def test_hidden_folders_and_stray_files_are_not_bundles(tuned: Path) -> None:
    (tuned / "example-x1").rename(tuned / ".example-x1.abc.tmp")
    (tuned / "README.md").write_text("hello")
    (tuned / "empty").mkdir()
    assert locate(DEVICE, search=[tuned]).match is BundleMatch.GENERIC


def test_no_bundle_at_all_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        locate(DEVICE, search=[tmp_path, tmp_path / "nowhere"])
    assert str(caught.value) == (
        f'no bundle for "example-x1" and no generic one in {tmp_path}; '
        "tune one: kernelforge tune --device example-x1 --model FILE"
    )
    with pytest.raises(BundleError, match="no folder at all"):
        locate(DEVICE, search=[])


def test_generic_must_be_the_generic_device(tmp_path: Path) -> None:
    write_bundle(tmp_path / "generic", DEVICE)
    with pytest.raises(BundleError, match="no generic one"):
        locate_generic(DEVICE, [tmp_path])


def test_places_that_are_no_folders_are_left_out(tuned: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("tuned/generic/manifest.json", "{}")
    with zipfile.ZipFile(archive) as file:
        inside = zipfile.Path(file, "tuned/")
        assert locate(DEVICE, search=[inside, tuned]).match is BundleMatch.EXACT


def test_a_device_whose_name_is_a_path_gets_no_path(tuned: Path) -> None:
    for name in ("..", "../example-x1", "...", "/"):
        assert locate(replace(STRANGER, name=name), search=[tuned]).match is BundleMatch.GENERIC
