"""Finds the best bundle for a device: its own, one of a similar device, or the generic one.

Only manifests are read here; `open_bundle` checks the modules of the one that was chosen.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.bundle.bundle import KERNELS_FILE, MANIFEST_FILE, read_manifest
from kernelforge_runtime.bundle.fingerprint import SLUG, BundleMatch, Fingerprint
from kernelforge_runtime.bundle.rivals import remember, remembered
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.resources import tuned_search_path

VARIABLE = "KERNELFORGE_TUNED"
MAX_FOLDERS = 1000
"""Folders looked at per place: a wrong place may hold anything."""

_log = logging.getLogger(__name__)

Judge = Callable[[Sequence[Path]], Path | None]
"""Tells which of several bundles for a device is fastest on it; None where it cannot."""

# Best first; a bundle of an unlike device is only used when it is asked for by its path.
_ORDER = (
    BundleMatch.EXACT,
    BundleMatch.OTHER_PROCESSOR,
    BundleMatch.OTHER_DRIVER,
    BundleMatch.SIMILAR_DEVICE,
)


@dataclass(frozen=True)
class Located:
    """A bundle for a device.

    Attributes:
        reason: one sentence: how exact it is, and what would make it better.
    """

    bundle_path: Path
    match: BundleMatch
    reason: str


def locate(
    device: DeviceInfo,
    path: str | os.PathLike[str] | None = None,
    search: Iterable[Traversable] | None = None,
    judge: Judge | None = None,
) -> Located:
    """The best bundle for a device.

    Args:
        device: the device to be used.
        path: a bundle, or a folder of bundles, that is to be used whatever else there is; without
            it the environment variable KERNELFORGE_TUNED is asked.
        search: folders of bundles, the most wanted first; default: the user's and the shipped.
        judge: asked where several fit a software device equally well, being tuned on other
            processors, and it was not asked before; without it, the first one is taken then.

    Raises:
        BundleError: `path` is no bundle that can be read, or there is none for this device.
    """
    asked = path if path is not None else os.environ.get(VARIABLE) if search is None else None
    if asked:
        if (Path(asked) / MANIFEST_FILE).exists() or not Path(asked).is_dir():
            return _explicit(device, Path(asked))
        places: Sequence[Path] = [Path(asked)]
    else:
        places = _folders(tuned_search_path() if search is None else search)
    found = list(_candidates(device, places))
    for match in _ORDER:
        equals = {folder: fingerprint for folder, fingerprint, kind in found if kind is match}
        if equals:
            folder, how = _fastest(device, equals, judge)
            reason = _reason(device, folder, equals[folder], match, places, how)
            return Located(folder, match, reason)
    return locate_generic(device, places)


def _fastest(
    device: DeviceInfo, equals: Mapping[Path, Fingerprint], judge: Judge | None
) -> tuple[Path, str]:
    """Which of bundles that match equally well is taken, and a clause where that was a choice."""
    first = next(iter(equals))
    strange = [f for f, tuned in equals.items() if tuned.processor != device.processor]
    if device.device_type != "cpu" or len(strange) < len(equals):
        return next((f for f in equals if f not in strange), first), ""
    if len(equals) == 1:
        return first, ""
    rivals = sorted(equals)
    known = remembered(device, rivals)
    if known is None and judge is not None:
        known = judge(list(equals))
        if known is not None:
            remember(device, rivals, known)
    if known is None:
        return first, f", one of {len(equals)} such: the first model to be loaded will try them all"
    return known, f", of {len(equals)} such the fastest here"


def locate_generic(device: DeviceInfo, search: Iterable[Traversable] | None = None) -> Located:
    """The bundle that any Vulkan 1.2 device can use.

    Raises:
        BundleError: there is none.
    """
    places = _folders(tuned_search_path() if search is None else search)
    for place in places:
        folder = place / GENERIC.slug
        fingerprint = _fingerprint(folder)
        if fingerprint is not None and fingerprint.generic:
            reason = _reason(device, folder, fingerprint, BundleMatch.GENERIC, places)
            return Located(folder, BundleMatch.GENERIC, reason)
    where = ", ".join(str(p) for p in places) or "no folder at all"
    raise BundleError(
        f'no bundle for "{device.slug}" and no generic one in {where}; tune one: {_advice(device)}'
    )


def _unusable(device: DeviceInfo, places: Iterable[Path]) -> str:
    """What is wrong with the device's own folder, where there is one: whatever is used is not it.

    Worth a word in the reason, as who reads that need not see what was logged.
    """
    for own in (place / device.slug for place in places):
        try:
            if _begun(own):
                read_manifest(own)
        except BundleError:
            return f" that can be read, for {own} is damaged"
    return ""


def _begun(folder: Path) -> bool:
    """Whether there is a part of a bundle, even a link to nowhere."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST_FILE, KERNELS_FILE))


def _explicit(device: DeviceInfo, folder: Path) -> Located:
    fingerprint = read_manifest(folder).device
    match = fingerprint.match(device)
    return Located(folder, match, _reason(device, folder, fingerprint, match))


def _folders(places: Iterable[Traversable]) -> list[Path]:
    """The places that are real folders; a bundle inside a zip archive cannot be used."""
    return [place for place in places if isinstance(place, Path) and place.is_dir()]


def _candidates(
    device: DeviceInfo, places: Iterable[Path]
) -> Iterator[tuple[Path, Fingerprint, BundleMatch]]:
    """Bundles in these places; the folder named after the device comes first in each.

    The search ends at the first exact one, so that the usual start reads one manifest.
    """
    for place in places:
        own = place / device.slug
        try:
            names = sorted(child.name for child in place.iterdir())
        except OSError as error:
            _log.warning("%s: cannot be searched for bundles: %s", place, error.strerror)
            continue
        names = [n for n in names[:MAX_FOLDERS] if SLUG.fullmatch(n) and n != GENERIC.slug]
        for folder in sorted((place / n for n in names), key=lambda f: f != own):
            fingerprint = _fingerprint(folder)
            if fingerprint is None:
                continue
            match = fingerprint.match(device)
            yield folder, fingerprint, match
            if match is BundleMatch.EXACT:
                return


def _fingerprint(folder: Path) -> Fingerprint | None:
    """The device of the bundle in a folder; None, and a warning, where it cannot be used."""
    if not (folder / MANIFEST_FILE).exists():
        if _begun(folder):
            _log.warning("bundle passed over: %s holds kernels, but no manifest.json", folder)
        return None
    try:
        return read_manifest(folder).device
    except BundleError as error:
        _log.warning("bundle passed over: %s", error)
        return None


def _reason(
    device: DeviceInfo,
    folder: Path,
    tuned: Fingerprint,
    match: BundleMatch,
    places: Iterable[Path] = (),
    how: str = "",
) -> str:
    advice = _advice(device)
    if match is BundleMatch.EXACT:
        where = "; on which processor was not kept" if device.processor != tuned.processor else ""
        return f'using the bundle in {folder}, tuned for "{device.slug}" and this driver{where}.'
    if match in (BundleMatch.OTHER_DRIVER, BundleMatch.OTHER_PROCESSOR):
        differing = tuned.differences(Fingerprint.of(device))
        listed = ", ".join(f"{what} {there} (here: {here})" for what, there, here in differing)
        return (
            f'using the bundle in {folder}, tuned for "{device.slug}" with another {listed}{how}; '
            f"its kernels were verified there, not here: kernelforge inspect {folder} --check "
            f"--device {device.slug} verifies them. Tune it again: {advice}"
        )
    none = f'no bundle for "{device.slug}"{_unusable(device, places)}'
    if match is BundleMatch.GENERIC:
        return f"{none}; using generic (slower). Tune one: {advice}"
    kind = "a similar device" if match is BundleMatch.SIMILAR_DEVICE else "another device"
    return f'{none}; using the one of "{tuned.slug}", {kind} (slower). Tune one: {advice}'


def _advice(device: DeviceInfo) -> str:
    return f"kernelforge tune --device {device.slug} --model FILE"
