"""What `inspect` shows of a bundle, and how --check verifies every kernel in it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.cli.crossovers import crossovers
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar
from kernelforge.families import load_families
from kernelforge.family import KernelFamily
from kernelforge.stale import Age, age
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, Entry, locate, open_bundle
from kernelforge_runtime.bundle.bundle import read_manifest
from kernelforge_runtime.errors import BundleError, DeviceError, DeviceLostError, KernelForgeError
from kernelforge_runtime.vk import Device, list_devices, open_device

HEADERS = ("family", "type", "problem", "us", "default us", "trials", "variant")
SEED = 20250713
"""Of the inputs of --check: not those that a bundle was verified with when it was made."""

MOST_BYTES = 16 << 20
"""Of a problem that --check runs; larger ones are cut."""


@dataclass(frozen=True)
class Checked:
    """What --check found out about one entry.

    Attributes:
        state: "ok", "WRONG", or "skipped".
        detail: how large the error was, or why it was skipped.
    """

    entry: Entry
    state: str
    detail: str


def show_bundle(folder: Path, args: argparse.Namespace, output: Output) -> None:
    """Its device and kernels; with --check, whether each is intact and right.

    Raises:
        BundleError: --check found something wrong.
    """
    if not args.check:
        bundle = open_bundle(folder)
        _show(bundle, output)
        known, here = age(bundle), _here(folder, args.device)
        if here:
            output.text(f"here     {here}")
        _show_age(known, output)
        output.document({**_document(bundle), **_age_document(known), "here": here})
        return
    with open_device(args.device) as device:
        bundle = open_bundle(folder, device.info)
        _show(bundle, output)
        validated, known = _check_modules(bundle), age(bundle)
        checked = _check_results(bundle, device, output)
    checked += [Checked(entry, "skipped", reason) for entry, reason in bundle.skipped]
    counts = Counter(c.state for c in checked)
    output.text()
    output.text(f"manifest and {len(_modules(bundle))} modules: hashes and signatures agree")
    output.text(f"spirv-val: {validated}")
    output.text(
        f"on {device.info.name}: {counts['ok']} kernels right, {counts['WRONG']} wrong, "
        f"{counts['skipped']} skipped"
    )
    for found in checked:
        if found.state != "ok":
            output.text(
                f"{found.state}: {found.entry.variant} {found.entry.problem}: {found.detail}"
            )
    _show_age(known, output)
    output.document(
        {
            **_document(bundle),
            "checked_on": device.info.slug,
            "spirv_val": validated,
            **_age_document(known),
            "results": [
                {"variant": c.entry.variant, "problem": str(c.entry.problem), "state": c.state,
                 "detail": c.detail}
                for c in checked
            ],
        }
    )  # fmt: skip
    wrong = [c for c in checked if c.state == "WRONG"]
    if wrong:
        raise BundleError(
            f"bundle {folder}: {len(wrong)} of {len(checked)} kernels are wrong on "
            f"{device.info.name}, the first is {wrong[0].entry.variant} at "
            f"{wrong[0].entry.problem}: {wrong[0].detail}; tune it again"
        )


def _here(folder: Path, selector: str | None) -> str:
    """How the bundle fits a device of this machine: the one asked for, or the one it is named for.

    Empty where there is no such device, and for the generic bundle.
    """
    try:
        if selector is not None:
            with open_device(selector) as device:
                return locate(device.info, folder).reason
        slug = read_manifest(folder).device.slug
        found = (info for info in list_devices() if info.slug == slug)
        return next((locate(info, folder).reason for info in found), "")
    except DeviceError as error:
        if selector is not None:
            raise
        return f"not compared with a device: {error}"


def _show_age(known: Age | None, output: Output) -> None:
    if known is None:
        output.note("whether it is stale was not checked: pip install 'kernelforge[tune]'")
        return
    for reason in known.stale:
        output.text(f"stale: {reason}")
    if known.advice:
        output.text(known.advice)
    if known.edited:
        names = ", ".join(known.edited)
        output.text(f"templates were edited since, without a change to these kernels: {names}")


def _age_document(known: Age | None) -> dict[str, Any]:
    if known is None:
        return {"stale": None, "edited": None}
    return {"stale": known.stale, "edited": known.edited}


def _show(bundle: Bundle, output: Output) -> None:
    device, made_by = bundle.manifest.device, bundle.manifest.toolchain
    output.text(f"bundle   {bundle.path}")
    output.text(f"device   {device.name} ({device.slug}), driver {device.driver}")
    if device.device_type == "cpu":
        output.text(f"on       {device.processor or 'a processor that was not kept'}")
    output.text(f"made by  kernelforge {made_by.kernelforge}, glslang {made_by.glslang}")
    ceilings = ", ".join(f"{name} {value:g}" for name, value in bundle.manifest.ceilings)
    if ceilings:
        output.text(f"ceilings {ceilings}")
    entries = bundle.manifest.entries
    problems = len({(e.family, e.precision, e.problem) for e in entries})
    output.text(f"kernels  {len(entries)} for {problems} problems, {len(_modules(bundle))} modules")
    if beaten := sum(entry.beaten for entry in entries):
        output.text(f"beaten   {beaten} of these: others are faster, only their figures are kept")
    output.text()
    output.table(HEADERS, [_row(entry) for entry in entries])
    for line in crossovers(bundle):
        output.text(f"crossover {line}")


def _row(entry: Entry) -> list[str]:
    return [
        entry.family,
        entry.precision,
        str(entry.problem),
        f"{entry.median_ns / 1e3:.1f}" if entry.median_ns else "-",
        f"{entry.default_ns / 1e3:.1f}" if entry.default_ns else "-",
        str(entry.trials),
        entry.variant,
    ]


def _modules(bundle: Bundle) -> set[str]:
    return {entry.module_sha256 for entry in bundle.manifest.entries if not entry.beaten}


def _document(bundle: Bundle) -> dict[str, Any]:
    return {
        "bundle": bundle.path,
        "sha256": bundle.sha256,
        "device": bundle.manifest.device.to_json(),
        "toolchain": vars(bundle.manifest.toolchain),
        "ceilings": dict(bundle.manifest.ceilings),
        "crossovers": crossovers(bundle),
        "entries": [
            {"family": e.family, "precision": e.precision, "problem": str(e.problem),
             "variant": e.variant, "median_ns": e.median_ns, "default_ns": e.default_ns,
             "trials": e.trials, "module_sha256": e.module_sha256,
             "layouts": dict(e.signature.layouts), "beaten": e.beaten}
            for e in bundle.manifest.entries
        ],
    }  # fmt: skip


def _check_modules(bundle: Bundle) -> str:
    """Checks every module against its signature, and with spirv-val where that is installed."""
    bundle.check()
    try:
        from kernelforge.compile import validate
    except ModuleNotFoundError:
        return "not run: pip install 'kernelforge[tune]'"
    ran = [validate(bundle.module(entry)) for entry in bundle.entries]
    return "every module is valid" if ran and all(ran) else "not installed"


def _check_results(bundle: Bundle, device: Device, output: Output) -> list[Checked]:
    """Every entry against its oracle: on its own problem (cut if large) and awkward small ones."""
    checked = []
    done: dict[tuple[str, Problem], tuple[str, str]] = {}
    with ProgressBar(output, "checking kernels", len(bundle.entries)) as bar:
        for number, entry in enumerate(bundle.entries, 1):
            checked.append(_check_entry(bundle, entry, device, done))
            bar.show(number)
            if checked[-1].state != "ok" or number % 20 == 0:
                bar.line(f"{number}/{len(bundle.entries)} {entry.variant}: {checked[-1].state}")
    return checked


def _check_entry(
    bundle: Bundle, entry: Entry, device: Device, done: dict[tuple[str, Problem], tuple[str, str]]
) -> Checked:
    from kernelforge.measure.reduced import reduced_problem
    from kernelforge.measure.verify import verify

    family = load_families().get(entry.family)
    if family is None or entry.precision not in {p.name for p in family.precisions}:
        return Checked(entry, "skipped", "this version has no such family, so no oracle for it")
    precision, module = family.precision(entry.precision), bundle.module(entry)
    own = reduced_problem(family, precision, entry.problem, device.info) or entry.problem
    problems = [
        _affordable(family, entry, own),
        *_corners(family.corner_problems, entry, family.space, device),
    ]
    worst = ""
    for problem in dict.fromkeys(problems):
        key = (module.sha256, problem)
        if key not in done:
            try:
                found = verify(device, family, precision, module, problem, SEED)
                done[key] = (
                    "ok" if found.ok else "WRONG",
                    found.reason or f"{found.max_error:.2g}",
                )
            except DeviceLostError:
                raise
            except KernelForgeError as error:
                done[key] = ("WRONG", str(error))
        state, detail = done[key]
        if state != "ok":
            return Checked(entry, state, f"at {problem}: {detail}")
        worst = worst or f"largest error {detail}"
    return Checked(entry, "ok", worst)


def _affordable(family: KernelFamily, entry: Entry, problem: Problem) -> Problem:
    """The problem, with its longest dimensions halved until its buffers are small.

    Tables of a whole vocabulary would take minutes to draw, and may not even fit the device.
    """

    def nbytes(of: Problem) -> int:
        return sum(binding.nbytes(of) for binding in entry.signature.bindings)

    while nbytes(problem) > MOST_BYTES:
        for name in sorted(problem, key=lambda n: -problem[n]):
            smaller = Problem(**{**problem, name: max(1, problem[name] // 2)})
            fits = family.refuses(smaller) is None and entry.signature.serves(smaller)
            if fits and nbytes(smaller) < nbytes(problem):
                problem = smaller
                break
        else:
            break
    return problem


def _corners(
    corners: tuple[Problem, ...], entry: Entry, space: Any, device: Device
) -> list[Problem]:
    """Awkward problems that the entry's kernel serves."""
    from kernelforge.variant import Variant

    params: Mapping[str, Any] = Variant.parse(entry.variant).values
    return [
        corner
        for corner in corners
        if entry.signature.serves(corner) and space.refuses(params, device.info, corner) is None
    ]
