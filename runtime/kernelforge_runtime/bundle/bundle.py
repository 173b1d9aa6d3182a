"""Opens a bundle, checks every byte of it, and hands out its modules.

A bundle comes from the network as likely as from the tuner next door: nothing in it reaches the
driver before manifest, hashes and SPIR-V have been found to agree.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.abi.spirv import check_module
from kernelforge_runtime.bundle.container import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    read_container,
    read_header,
)
from kernelforge_runtime.bundle.entry import Entry
from kernelforge_runtime.bundle.fingerprint import BundleMatch, why_not
from kernelforge_runtime.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from kernelforge_runtime.errors import BundleError, SpirvError

MANIFEST_FILE = "manifest.json"
KERNELS_FILE = "kernels.safetensors"

_RAN_BEFORE = (BundleMatch.EXACT, BundleMatch.OTHER_PROCESSOR)
"""Where device and driver are those that ran and verified every module."""
_ATTEMPTS = 10  # to find a folder that is not being replaced


_Index = dict[tuple[str, str, Layouts], dict[Problem, list[Entry]]]
_Served = tuple[str, str, Layouts, Problem | None]


@dataclass(eq=False)
class Bundle:
    """Tuned kernels of one device, checked.

    Attributes:
        path: the folder it was read from; for messages only.
        sha256: of the manifest's bytes; as modules are named by hash, of the whole bundle.
        entries: what the device can run, ascending by (family, precision, problem, layouts);
            without those that are beaten.
        skipped: what it cannot run, each with the reason.
        match: how the bundle's device relates to the one it was opened for; None without one.
    """

    path: Path
    manifest: Manifest
    sha256: str
    device: DeviceInfo | None
    _modules: Mapping[str, memoryview] = field(repr=False)
    match: BundleMatch | None = None
    entries: tuple[Entry, ...] = ()
    skipped: tuple[tuple[Entry, str], ...] = ()
    _checked: dict[tuple[str, str], ShaderModule] = field(default_factory=dict, repr=False)
    _index: _Index = field(default_factory=dict, repr=False)
    _beaten: _Index = field(default_factory=dict, repr=False)
    _serving: dict[_Served, Mapping[Problem, Entry]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._keep(entry for entry in self.manifest.entries if not entry.beaten)
        self._beaten = _indexed(entry for entry in self.manifest.entries if entry.beaten)

    def _keep(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self._index, self._serving = _indexed(self.entries), {}

    @property
    def slug(self) -> str:
        """Slug of the device it was tuned on."""
        return self.manifest.device.slug

    def problems(
        self,
        family: str,
        precision: str,
        layouts: Layouts = (),
        serving: Problem | None = None,
    ) -> Mapping[Problem, Entry]:
        """Entries of a family and precision by their problem; empty where there are none.

        Of two for one problem it is the faster one: one serves all sizes, the other some.

        Args:
            family: e.g. `gemv`.
            precision: e.g. `f16`.
            layouts: how their operands lie in memory; all row-major where nothing is given.
            serving: only kernels that are right for this problem, too.
        """
        key = family, precision, layouts, serving
        known = self._serving.get(key)
        if known is None:
            known = self._serving[key] = _fastest(self._index, key)
        return known

    def beaten(
        self, family: str, precision: str, layouts: Layouts, serving: Problem
    ) -> Mapping[Problem, Entry]:
        """As `problems`: what was measured, and never taken, so that its modules are not here."""
        return _fastest(self._beaten, (family, precision, layouts, serving))

    def layouts(self, family: str, precision: str) -> list[Layouts]:
        """What operands of this family may lie like, row-major first if that is among it."""
        return sorted(key[2] for key in self._index if key[:2] == (family, precision))

    def module(self, entry: Entry) -> ShaderModule:
        """The compiled kernel of an entry, checked against its signature and the device.

        Raises:
            BundleError: the entry is not of this bundle.
            SpirvError: the SPIR-V is malformed, or is not what the manifest says.
        """
        key = (entry.variant, entry.module_sha256)
        known = self._checked.get(key)
        if known is not None and known.signature == entry.signature:
            return known
        spirv = self._modules.get(entry.module_sha256)
        if spirv is None:
            raise BundleError(f"{self.path}: no module for {entry.variant}: not of this bundle")
        module = ShaderModule(entry.variant, bytes(spirv), entry.signature)
        check_module(module, self.device)
        self._checked[key] = module
        return module

    def check(self) -> None:
        """Checks the SPIR-V of every entry that the device can run; `module` does it one by one.

        Raises:
            SpirvError: see `module`.
        """
        for entry in self.entries:
            self.module(entry)

    def skip_unusable(self, device: DeviceInfo, spirv: bool = True) -> None:
        """Moves entries that the device cannot run to `skipped`.

        On the device that a bundle was tuned on, its modules have run before: their SPIR-V is left
        to `module`, so that a start pays for the kernels it uses (0.1 to 0.5 ms each) and not for
        all. Elsewhere only the SPIR-V tells, e.g. how much shared memory it takes; where `spirv` is
        False, `is_usable` looks at it.

        Raises:
            SpirvError: a module is malformed or is not what the manifest says.
        """
        self.match = self.manifest.device.match(device)
        kept, skipped = [], []
        for entry in self.manifest.entries:
            if entry.beaten:
                continue
            reason = why_not(entry.signature, device)
            if reason is None and spirv and self.match not in _RAN_BEFORE:
                reason = self._refusal(entry)
            if reason is None:
                kept.append(entry)
            else:
                skipped.append((entry, reason))
        self.skipped = tuple(skipped)
        self._keep(kept)

    def is_usable(self, entry: Entry) -> bool:
        """Whether the device can run an entry; what it cannot run moves to `skipped`.

        Raises:
            SpirvError: the module is malformed or is not what the manifest says.
        """
        if self.device is None or self.match in _RAN_BEFORE:
            return True
        reason = self._refusal(entry)
        if reason is not None:
            self.skipped = (*self.skipped, (entry, reason))
            self._keep(e for e in self.entries if e is not entry)
        return reason is None

    def _refusal(self, entry: Entry) -> str | None:
        try:
            self.module(entry)
        except SpirvError as error:
            spirv = bytes(self._modules[entry.module_sha256])
            check_module(ShaderModule(entry.variant, spirv, entry.signature))
            return str(error)  # sound as such, so it is this device that cannot run it
        return None

    def stale(self, template_hashes: Mapping[str, str]) -> list[str]:
        """Why the bundle no longer fits the templates, a line per family; empty when it does.

        Args:
            template_hashes: sha256 of today's template, by family.
        """
        reasons = {}
        for entry in self.manifest.entries:
            today = template_hashes.get(entry.family)
            if today is None:
                reasons[entry.family] = f"{entry.family}: there is no such family any more"
            elif today != entry.template_sha256:
                reasons[entry.family] = f"{entry.family}: its template has changed; tune it again"
        return [reasons[family] for family in sorted(reasons)]


def _indexed(entries: Iterable[Entry]) -> _Index:
    index: _Index = {}
    for entry in entries:
        key = (entry.family, entry.precision, entry.signature.layouts)
        index.setdefault(key, {}).setdefault(entry.problem, []).append(entry)
    return index


def _fastest(index: _Index, asked: _Served) -> dict[Problem, Entry]:
    """Of the entries for each problem the fastest that serves what is asked."""
    family, precision, layouts, serving = asked
    found = {}
    for problem, entries in index.get((family, precision, layouts), {}).items():
        able = [e for e in entries if serving is None or e.signature.serves(serving)]
        if able:
            found[problem] = min(able, key=lambda e: e.median_ns)
    return found


def open_bundle(
    path: str | os.PathLike[str], device: DeviceInfo | None = None, spirv: bool = True
) -> Bundle:
    """Opens the bundle in a folder and checks it.

    Declarations inside the SPIR-V are checked when `module` hands one out, and here where the
    bundle is not this device's own.

    Args:
        path: folder with `manifest.json` and `kernels.safetensors`.
        device: entries that this device cannot run are skipped; None keeps all.
        spirv: whether what only the SPIR-V tells is found out now; else when a kernel is selected.

    Raises:
        BundleError: there is no bundle, or it is damaged, hostile or of another version.
        SpirvError: see `Bundle.skip_unusable`.
    """
    folder = Path(path)
    with _files(folder) as (manifest_file, kernels_file):
        with _naming(folder, MANIFEST_FILE):
            text = _read(manifest_file, MAX_MANIFEST_BYTES)
        with _naming(folder, KERNELS_FILE):
            kernels = _read(kernels_file, MAX_FILE_BYTES)
    digest = hashlib.sha256(text).hexdigest()
    with _naming(folder, KERNELS_FILE):
        stated, modules = read_container(kernels)
    with _naming(folder, MANIFEST_FILE):
        _compare(stated, digest)
        manifest = Manifest.parse(text)
    with _naming(folder, KERNELS_FILE):
        wanted = {entry.module_sha256 for entry in manifest.entries if not entry.beaten}
        for name in sorted(wanted ^ modules.keys()):
            found = "is not there" if name in wanted else "belongs to no entry"
            raise BundleError(f"module {name[:12]} {found}")
    bundle = Bundle(folder, manifest, digest, device, modules)
    if device is not None:
        bundle.skip_unusable(device, spirv)
    return bundle


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a bundle alone; of the modules only the header is read.

    Raises:
        BundleError: as for `open_bundle`, but damage of a module goes unseen.
    """
    folder = Path(path)
    with _files(folder) as (manifest_file, kernels_file):
        with _naming(folder, MANIFEST_FILE):
            text = _read(manifest_file, MAX_MANIFEST_BYTES)
        with _naming(folder, KERNELS_FILE):
            header = _read(kernels_file, MAX_FILE_BYTES, MAX_HEADER_BYTES + 8)
            _, stated, _ = read_header(header)
    with _naming(folder, MANIFEST_FILE):
        _compare(stated, hashlib.sha256(text).hexdigest())
        return Manifest.parse(text)


def _compare(stated: str, digest: str) -> None:
    if stated != digest:
        raise BundleError(f"does not match the sha256 in {KERNELS_FILE}: one of them is damaged")


@contextmanager
def _naming(folder: Path, name: str) -> Iterator[None]:
    """Puts the file's path in front of what was wrong, and the way out behind it."""
    try:
        yield
    except BundleError as error:
        raise BundleError(
            f"{folder / name}: {error}. Delete the folder and fetch or tune the bundle again"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder / name}: cannot be read: {error.strerror or error}") from None


@contextmanager
def _files(folder: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of the two files, both opened relative to one folder.

    So they belong together even when the folder is exchanged for a new one meanwhile.
    """
    opened: list[int] = []
    try:
        for attempt in range(_ATTEMPTS):
            try:
                _open_pair(folder, opened)
                break
            except FileNotFoundError as error:
                # The writer removes the old folder once it has put the new one in its place.
                replaced = opened and not _is_still(folder, opened[0])
                if not replaced or attempt == _ATTEMPTS - 1:
                    raise BundleError(f"no bundle in {folder}: {error} is missing") from None
                while opened:
                    os.close(opened.pop())
        yield opened[1], opened[2]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _open_pair(folder: Path, opened: list[int]) -> None:
    """Opens the folder and the two files in it and appends their descriptors.

    Links are not followed, and nothing but a regular file is opened for reading: a pipe would
    wait for ever.

    Raises:
        BundleError: something cannot be opened or is no regular file.
        FileNotFoundError: the folder has no such file; its text is the name.
    """
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BundleError(f"no bundle in {folder}: {why}; kernelforge tune makes one") from None
    for name in (MANIFEST_FILE, KERNELS_FILE):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            opened.append(os.open(name, flags, dir_fd=opened[0]))
            regular = stat.S_ISREG(os.fstat(opened[-1]).st_mode)
        except FileNotFoundError:
            raise FileNotFoundError(name) from None
        except OSError as error:
            regular = False
            if not (folder / name).is_symlink():
                why = error.strerror or str(error)
                raise BundleError(f"{folder / name}: cannot be read: {why}") from None
        if not regular:
            raise BundleError(f"{folder / name}: must be a regular file, not a link or device")


def _read(descriptor: int, most: int, first: int | None = None) -> bytes:
    """All bytes of a file, or the first few; refuses a file of more than `most` bytes."""
    size = os.fstat(descriptor).st_size
    if size > most:
        raise BundleError(f"has {size} bytes; at most {most} are allowed")
    wanted = size if first is None else min(size, first)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read(wanted)
    if len(data) != wanted:
        raise BundleError("changed while it was read")
    return data
