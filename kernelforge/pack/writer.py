"""Writes a bundle: only verified kernels, the same bytes every time, all or nothing.

A bundle is written beside its target and exchanged with it in one step, so that whoever reads it,
and whatever kills the writer, there is a whole bundle: the old one or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kernelforge import __version__
from kernelforge.compile import find_compiler
from kernelforge.compile.glslang import FLAGS
from kernelforge.errors import CompileError, PackError
from kernelforge.pack.again import made_again
from kernelforge.pack.beaten import settled
from kernelforge.pack.winners import Winner
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.bundle import (
    Entry,
    Fingerprint,
    Manifest,
    Toolchain,
    Verified,
    open_bundle,
)
from kernelforge_runtime.bundle.bundle import KERNELS_FILE, MANIFEST_FILE
from kernelforge_runtime.bundle.container import write_container
from kernelforge_runtime.bundle.fingerprint import SLUG
from kernelforge_runtime.errors import BundleError, SpirvError

_log = logging.getLogger(__name__)

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def pack(
    out_dir: str | os.PathLike[str],
    device: DeviceInfo,
    winners: Sequence[Winner],
    *,
    toolchain: Toolchain | None = None,
    ceilings: Mapping[str, float] | None = None,
    merge: bool = False,
    template_hashes: Mapping[str, str] | None = None,
    is_same: Callable[[Entry], bool] = lambda entry: False,
) -> Path:
    """Writes the bundle of a device and gives its folder, `out_dir/<slug>`.

    Args:
        out_dir: folder of bundles; made if need be.
        device: where the winners were measured, or GENERIC.
        winners: one per problem and layout; `choose` makes such a list.
        toolchain: what compiled them; default: what is installed here.
        ceilings: measured limits of the device by name, e.g. `read_bandwidth_gbps`.
        merge: keep the entries of an existing bundle for other problems, as long as they were
            measured on this device, driver and toolchain, and are still the kernels they were.
        template_hashes: today's templates by family, for `merge`; those of the winners are known.
        is_same: whether a template that has changed makes the same kernel of an entry.

    Raises:
        PackError: a winner was not verified, something cannot be packed, or nothing can be
            written. An existing bundle is then left as it was.
    """
    toolchain = toolchain or installed_toolchain()
    slug = device.slug
    if not SLUG.fullmatch(slug):
        raise PackError(f"device {device.name!r}: its slug {slug!r} cannot name a folder")
    root = Path(out_dir)
    modules: dict[str, bytes] = {}
    entries: dict[object, Entry] = {}
    for winner in winners:
        entry = _entry(winner)
        if entry.key in entries:
            raise PackError(
                f"{entry.family} {entry.precision} {entry.problem}: two winners; choose one"
            )
        entries[entry.key] = entry
        modules[entry.module_sha256] = winner.module.spirv
    if not entries:
        raise PackError(f"nothing to pack for {slug}: no verified winner; tune a problem first")
    fingerprint = Fingerprint.of(device)
    limits = tuple(sorted((ceilings or {}).items()))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root, slug):
            require_place(root / slug)
            if merge and (root / slug).exists():
                hashes = {
                    **(template_hashes or {}),
                    **{w.family: w.template_sha256 for w in winners},
                }
                old = _merge(root / slug, fingerprint, toolchain, hashes, is_same, entries, modules)
                limits, fingerprint = limits or old[0], old[1]
            told = Manifest(fingerprint, toolchain, tuple(entries.values()), limits)
            manifest = replace(told, entries=settled(told, modules, made_again))
            text = manifest.to_bytes()
            kept = {e.module_sha256: modules[e.module_sha256] for e in manifest.entries
                    if not e.beaten}  # fmt: skip
            kernels = write_container(hashlib.sha256(text).hexdigest(), kept)
            _replace(root, slug, {MANIFEST_FILE: text, KERNELS_FILE: kernels})
    except OSError as error:
        what = error.strerror or str(error)
        raise PackError(
            f"bundle {root / slug} cannot be written: {what}; free space or choose another --out"
        ) from error
    except (BundleError, SpirvError) as error:
        raise PackError(f"bundle {root / slug} was not written: {error}") from error
    return root / slug


def require_place(bundle: Path) -> None:
    """Stops where a bundle cannot be put, whatever will be in it.

    Raises:
        PackError: there is a link, a file, or a folder that holds something else.
    """
    if bundle.is_symlink():
        raise PackError(f"bundle {bundle} is a link; remove it or give its real place")
    if not bundle.exists():
        return
    if not bundle.is_dir():
        raise PackError(f"bundle {bundle} is a file; remove it or choose another --out")
    if others := sorted({child.name for child in bundle.iterdir()} - {MANIFEST_FILE, KERNELS_FILE}):
        raise PackError(
            f"bundle {bundle}: the folder also holds {others[0]!r}; move that elsewhere"
        )


def installed_toolchain() -> Toolchain:
    """The toolkit and the compiler of this machine; "unknown" where there is no compiler."""
    try:
        version = find_compiler().version
    except CompileError:
        version = "unknown"
    return Toolchain(kernelforge=__version__, glslang=version, flags=FLAGS)


def _entry(winner: Winner) -> Entry:
    checked = winner.verification
    if not checked.ok:
        raise PackError(
            f"{winner.module.name} on {winner.problem}: its result was not verified; "
            "only verified kernels are packed"
        )
    times = (winner.median_ns, winner.spread_ns, winner.default_ns)
    if not all(math.isfinite(t) and t >= 0 for t in (*times, checked.max_error, checked.tolerance)):
        raise PackError(
            f"{winner.module.name} on {winner.problem}: a time or error is not a number"
        )
    median_ns, spread_ns, default_ns = (round(t) for t in times)
    return Entry(
        family=winner.family,
        precision=winner.precision,
        problem=winner.problem,
        variant=winner.module.name,
        signature=winner.module.signature,
        module_sha256=winner.module.sha256,
        template_sha256=winner.template_sha256,
        glsl_sha256=winner.glsl_sha256,
        median_ns=median_ns,
        spread_ns=spread_ns,
        trials=winner.trials,
        default_ns=default_ns,
        verified=Verified(checked.seed, float(checked.max_error), float(checked.tolerance)),
    )


def _merge(
    folder: Path,
    fingerprint: Fingerprint,
    toolchain: Toolchain,
    template_hashes: Mapping[str, str],
    is_same: Callable[[Entry], bool],
    entries: dict[object, Entry],
    modules: dict[str, bytes],
) -> tuple[tuple[tuple[str, float], ...], Fingerprint]:
    """Adds what is still good of an existing bundle.

    Returns:
        Its ceilings, and the fingerprint that is true of old and new entries alike.
    """
    bundle = open_bundle(folder)
    old = bundle.manifest
    if _as_known(fingerprint, old.device) != old.device:
        differing = old.device.differences(fingerprint) or [("set of limits", "other ones", "")]
        what, there, _ = differing[0]
        _log.warning("%s: tuned with another %s, %s: nothing is kept", folder, what, there)
        return (), fingerprint
    if (old.toolchain.glslang, old.toolchain.flags) != (toolchain.glslang, toolchain.flags):
        _log.warning("%s: was compiled by another compiler; nothing of it is kept", folder)
        return old.ceilings, fingerprint
    kept = changed = 0
    for entry in old.entries:
        if entry.key in entries:
            continue
        today = template_hashes.get(entry.family, entry.template_sha256)
        if today != entry.template_sha256 and not is_same(entry):
            _log.info("%s on %s: template has changed; not kept", entry.variant, entry.problem)
            changed += 1
        else:
            entries[entry.key] = replace(entry, template_sha256=today)
            if not entry.beaten:
                modules[entry.module_sha256] = bundle.module(entry).spirv
            kept += 1
    if changed:
        _log.warning(
            "%s: %d kernels are left out, their templates have changed; tune their problems again",
            folder, changed,
        )  # fmt: skip
    if kept and fingerprint.processor and not old.device.processor:
        _log.warning("%s: keeps kernels that were tuned on a processor not known", folder)
        fingerprint = replace(fingerprint, processor="")
    return old.ceilings, fingerprint


def _as_known(fingerprint: Fingerprint, old: Fingerprint) -> Fingerprint:
    """The fingerprint without what an older one does not know either."""
    version = fingerprint.api_version if old.api_version is not None else None
    processor = fingerprint.processor if old.processor else ""
    return replace(fingerprint, api_version=version, processor=processor)


@contextmanager
def _locked(root: Path, slug: str) -> Iterator[None]:
    """Lets one process at a time write into a folder, and clears what a killed one left."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            _log.debug("%s: cannot be locked: %s", root, error)  # some network file systems
        else:
            for leftover in root.glob(f".{slug}.*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _replace(root: Path, slug: str, files: Mapping[str, bytes]) -> None:
    """Writes a folder of files, checks it, and puts it in the place of the old one."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{slug}.", suffix=".tmp", dir=root))
    try:
        for name, data in files.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        open_bundle(fresh).check()  # what the reader would refuse must not get into place
        _sync(fresh)
        _swap(fresh, root / slug)
        _sync(root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(fresh: Path, target: Path) -> None:
    """Puts `fresh` at `target`; afterwards `fresh` is the old folder, or gone."""
    if not target.exists():
        fresh.rename(target)
        return
    try:
        _exchange(fresh, target)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP):
            raise
        # This file system cannot exchange folders (or, in a container, not this one). File by
        # file is next best: a kill between the two leaves a pair that readers refuse.
        for name in (KERNELS_FILE, MANIFEST_FILE):
            (fresh / name).replace(target / name)


def _exchange(one: Path, other: Path) -> None:
    """Exchanges two folders in one step (Linux renameat2)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "no renameat2")
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
