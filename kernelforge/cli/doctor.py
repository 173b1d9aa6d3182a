"""Checks what running and tuning need on this machine, and says how to mend what is missing."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kernelforge import __version__
from kernelforge.cli import options
from kernelforge.cli.main import EXTRAS
from kernelforge.cli.output import Output, aligned
from kernelforge.errors import CompileError
from kernelforge.resources import cache_dir
from kernelforge.stale import age
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import BundleMatch, KernelSet, locate, open_bundle
from kernelforge_runtime.bundle.bundle import MANIFEST_FILE
from kernelforge_runtime.errors import DeviceError, KernelForgeError
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.resources import tuned_output_dir, tuned_search_path
from kernelforge_runtime.vk import list_devices, open_device
from kernelforge_runtime.vk.loader import Instance, api

OK, WARN, MISSING = "ok", "warn", "missing"


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        state: "ok", "warn" (works, but) or "missing".
        what: what was looked at.
        detail: what was found.
        fix: what to do about it; empty where nothing is to be done.
    """

    state: str
    what: str
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This verb has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Prints the findings; fails where a model could not even be run from a bundle."""
    output = Output(args)
    findings = [Finding(OK, "kernelforge", f"{__version__}, Python {platform.python_version()}")]
    works = False
    for finding, device_works in _vulkan():
        findings.append(finding)
        works = works or device_works
    findings += [*_validation(), *_compiler(), *_left_out(), *_packages(), *_folders(), *_bundles()]
    rows = [(f.state, f.what, f.detail + (f"; {f.fix}" if f.fix else "")) for f in findings]
    output.text("\n".join(aligned([("", "", ""), *rows])[1:]))
    output.document({"works": works, "findings": [asdict(f) for f in findings]})
    if not works:
        raise DeviceError(
            "no model can be run on a Vulkan device here; mend what is missing above, "
            "or use `kernelforge run --device cpu`"
        )
    return 0


def _vulkan() -> Iterator[tuple[Finding, bool]]:
    """The loader and every device; with each, whether a kernel of a bundle ran on it."""
    try:
        api()
        found = list_devices()
    except DeviceError as error:
        yield Finding(MISSING, "Vulkan", str(error)), False
        return
    if not found:
        fix = "apt-get install mesa-vulkan-drivers, or your GPU's driver"
        yield Finding(MISSING, "Vulkan", "a loader, but no device", fix), False
        return
    yield Finding(OK, "Vulkan", f"a loader and {len(found)} devices"), False
    for index, info in enumerate(found):
        yield _device(index, info)


def _device(index: int, info: DeviceInfo) -> tuple[Finding, bool]:
    what = f"device {index}"
    if info.api_version < (1, 2, 0):
        version = ".".join(map(str, info.api_version))
        return Finding(WARN, what, f"{info.name}: Vulkan {version}; 1.2 is needed"), False
    try:
        match = _try(index)
    except KernelForgeError as error:
        return Finding(MISSING, what, f"{info.name}: {_one_line(error)}"), False
    lacks = [f for f in ("float16", "subgroup_arithmetic") if f not in info.features]
    notes = f"; without {', '.join(lacks)}" if lacks else ""
    notes += "" if info.timestamp_bits else "; without timestamps: timed by the host's clock"
    fits, told = _fit(info)
    state = OK if fits in (BundleMatch.EXACT, BundleMatch.GENERIC) else WARN
    return Finding(state, what, f"{info.name}: opened, ran a {match} kernel{notes}", told), True


def _fit(info: DeviceInfo) -> tuple[BundleMatch | None, str]:
    """How the device's bundle fits it, and in words what does not and how to mend it."""
    try:
        located = locate(info)
    except KernelForgeError as error:
        return None, _one_line(error)
    return located.match, "" if located.match is BundleMatch.EXACT else located.reason


def _try(index: int) -> str:
    """Runs one tiny kernel of the device's bundle and checks its result."""
    values = np.arange(64, dtype=np.float32)
    size = Problem(L=1, B=1, E=len(values))
    with open_device(index) as device:
        chosen = KernelSet.open(device.info).select("copy", "f32", size)
        segment = np.array([0, 1, 0, 0], np.uint32)
        bound = {name: device.buffer(values.nbytes, name) for name in ("in_x", "out_y", "segment")}
        target = bound["out_y"]
        bound["in_x"].upload(values)
        bound["segment"].upload(segment)
        target.fill(0)
        call = Dispatch(chosen.module, size, bound, {"stride": len(values)})
        with Plan(device, [call], name="doctor") as plan:
            plan.run()
        if not np.array_equal(target.download(np.float32, values.shape), values):
            raise DeviceError(f"{device.info.name} gave a wrong result; update its driver")
    return "generic" if chosen.bundle.manifest.device.generic else "tuned"


def _validation() -> Iterator[Finding]:
    try:
        Instance(validation=True).close()
    except DeviceError as error:
        yield Finding(WARN, "validation layer", _one_line(error))
    else:
        yield Finding(OK, "validation layer", "KERNELFORGE_VALIDATION=1 turns it on")


def _compiler() -> Iterator[Finding]:
    """The GLSL compiler, what it knows, and the SPIR-V checker: only tuning needs them."""
    try:
        from kernelforge.compile.coverage import required_extensions
        from kernelforge.compile.glslang import find_compiler
        from kernelforge.compile.probe import accepts
        from kernelforge.families import load_families

        compiler = find_compiler()
    except ImportError as error:
        fix = "pip install 'kernelforge[tune]'"
        yield Finding(WARN, "GLSL compiler", f"not looked for: {error}", fix)
        return
    except KernelForgeError as error:
        yield Finding(WARN, "GLSL compiler", f"{_one_line(error)}")
        return
    yield Finding(OK, "GLSL compiler", f"{compiler.path}, glslang {compiler.version}")
    required = required_extensions(load_families().values())
    known = [name for name in required if accepts(name)]
    yield Finding(OK, "GLSL extensions", " ".join(known))
    if unknown := [name for name in required if name not in known]:
        fix = "kernels that need them are left out; KERNELFORGE_GLSLANG=... names a newer one"
        yield Finding(WARN, "GLSL extensions", f"not known: {' '.join(unknown)}", fix)
    path = shutil.which("spirv-val")
    if path is None:
        yield Finding(WARN, "spirv-val", "not found", "apt-get install spirv-tools")
    else:
        yield Finding(OK, "spirv-val", f"{path}, {_version(path)}")


def _left_out() -> Iterator[Finding]:
    """Per device and reason, the kernels that it has no variant of: that is no fault of it."""
    try:
        from kernelforge.compile.coverage import gaps, required_extensions
        from kernelforge.compile.probe import accepts
        from kernelforge.families import load_families
    except ImportError:
        return  # said of the compiler already
    try:
        devices = list_devices()
        families = load_families().values()
        unknown = {name for name in required_extensions(families) if not accepts(name)}
    except DeviceError:
        return
    except CompileError:
        unknown = set()
    for index, info in enumerate(devices):
        kinds: dict[tuple[str, str, str], list[str]] = {}
        for gap in (gap for family in families for gap in gaps(family, info, unknown)):
            kinds.setdefault((gap.reason, gap.family, gap.form), []).append(gap.precision)
        reasons: dict[str, list[str]] = {}
        for (reason, family, form), precisions in kinds.items():
            what = " ".join(filter(None, (family, form)))
            reasons.setdefault(reason, []).append(f"{what} ({' '.join(precisions)})")
        for reason, names in reasons.items():
            yield Finding(OK, f"device {index}", f"leaves out {', '.join(names)}: {reason}")


def _version(path: str) -> str:
    try:
        asked = [path, "--version"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start: {error}"
    return next(iter(said.stdout.splitlines()), "says no version")


def _packages() -> Iterator[Finding]:
    absent: dict[str, list[str]] = {}
    for package, extra in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            absent.setdefault(extra, []).append(package)
    present = [p for p in EXTRAS if not any(p in names for names in absent.values())]
    if present:
        yield Finding(OK, "packages", " ".join(present))
    uses = {"tune": "tuning and reports", "hf": "tokenizer.json files", "fft": "an FFT yardstick"}
    for extra, names in absent.items():
        fix = f"for {uses[extra]}: pip install 'kernelforge[{extra}]'"
        yield Finding(WARN, "packages", f"without {' '.join(names)}", fix)


def _folders() -> Iterator[Finding]:
    """Folders that are written to; running a model needs none of them."""
    places: list[tuple[str, Path, str]] = [
        ("kernel cache", cache_dir(), "KERNELFORGE_CACHE"),
        ("new bundles", tuned_output_dir(), "KERNELFORGE_TUNED"),
        ("journals", options.journal_folder(None, "x").parent, "XDG_DATA_HOME"),
    ]
    for what, folder, variable in places:
        above = next((p for p in (folder, *folder.parents) if p.exists()), folder)
        if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
            yield Finding(OK, what, str(folder))
        else:
            yield Finding(WARN, what, f"{folder} cannot be written", f"set {variable}")


def _bundles() -> Iterator[Finding]:
    folders = [
        folder
        for place in tuned_search_path()
        if isinstance(place, Path) and place.is_dir()
        for folder in sorted(place.iterdir())
        if (folder / MANIFEST_FILE).exists()
    ]
    if not folders:
        where = ", ".join(str(place) for place in tuned_search_path())
        fix = "kernelforge build --generic makes one"
        yield Finding(MISSING, "bundles", f"none in {where}", fix)
    for folder in folders:
        yield _checked(folder)


def _checked(folder: Path) -> Finding:
    try:
        bundle = open_bundle(folder)
        bundle.check()
    except KernelForgeError as error:
        return Finding(MISSING, f"bundle {folder.name}", _one_line(error))
    names = {entry.module_sha256 for entry in bundle.entries}
    detail = f"{len(bundle.entries)} problems, {len(names)} modules, intact; {folder}"
    known = age(bundle)
    if known is not None and known.stale:
        return Finding(WARN, f"bundle {folder.name}", f"{detail}; {known.line()}")
    return Finding(OK, f"bundle {folder.name}", detail)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
