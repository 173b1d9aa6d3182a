"""VkFFT as a peer of `bench`: its bandwidth beside our copy, and the forms of a recurrence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelforge.cli.bench_peers import VKFFT, Absent, matmul_limits
from kernelforge.families import get_family
from kernelforge.measure.bench import Bench
from kernelforge.measure.fft_wkv import wkv4_by_fft, wkv5_by_fft
from kernelforge.measure.timed_problem import Effort
from kernelforge.peers.fft import RunningFft, open_fft
from kernelforge.report.fft import FFT, FftLimits, FormTime
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.errors import KernelForgeError

if TYPE_CHECKING:
    from kernelforge.measure.baseline import Ceilings
    from kernelforge_runtime.vk import Device

WRONG = 0.02
"""No transform in float32 is so far from the oracle, relative to values above one."""
_SEED = 3
_EFFORT = Effort(samples=5, total_ns=200e6)
_FORMS = {"wkv4": ("wkv4",), "wkv5": ("wkv6", "wkv6_chunk")}
_BY_FFT = {"wkv4": wkv4_by_fft, "wkv5": wkv5_by_fft}


def limits_of_others(
    names: Sequence[str],
    device: Device,
    ceilings: Ceilings | None,
    python: str | None,
    absent: Absent,
) -> dict[str, dict[str, Any]]:
    """What other libraries reach on this machine, by the journal's name for it."""
    found = {
        "matmul": matmul_limits(names, python, absent),
        "fft": fft_limits(names, device, ceilings, python, absent),
    }
    return {kind: limits for kind, limits in found.items() if limits is not None}


def fft_limits(
    names: Sequence[str],
    device: Device,
    ceilings: Ceilings | None,
    python: str | None,
    absent: Absent,
) -> dict[str, Any] | None:
    """What VkFFT reaches, where it was asked for and is there; said as it is found."""
    if VKFFT not in names:
        return None
    if ceilings is None:
        absent.add(VKFFT, "there is no bandwidth of our copy to hold it against")
        return None
    on_cpu = device.info.device_type == "cpu"
    try:
        with open_fft(device.info.name, on_cpu, python) as fft:
            gbps = fft.bandwidth((16 if on_cpu else 256) << 20)
            forms = _forms(device, fft, on_cpu, absent)
            heads = _heads(on_cpu)
            sizes = f"{64 * heads} channels in heads of 64; kernels are the families' defaults"
            found = FftLimits(fft.label, gbps, ceilings.copy_gbps, forms, sizes)
    except KernelForgeError as error:
        absent.add(VKFFT, error)
        return None
    for line in (found.sentence(), *found.crossovers()):
        absent.output.note(line)
    return found.to_json()


def _heads(on_cpu: bool) -> int:
    return 1 if on_cpu else 4


def _forms(device: Device, fft: RunningFft, on_cpu: bool, absent: Absent) -> tuple[FormTime, ...]:
    """Every form over the tokens: kernels that are verified, and transforms."""
    heads = _heads(on_cpu)
    found: list[FormTime] = []
    for tokens in (16, 64, 256, 1024) if on_cpu else (16, 64, 256, 1024, 4096):
        width = 64 * heads
        for name, sizes in (
            ("wkv4", {"C": width, "B": 1, "P": 3 * width}),
            ("wkv5", {"H": heads, "N": 64, "B": 1, "P": 3 * width, "D": 1}),
        ):
            problem = Problem(T=tokens, **sizes)
            for family in _FORMS[name]:
                ms = _kernel_ms(device, family, problem, absent)
                found += [FormTime(name, tokens, family, ms)] if ms else []
            form = _by_fft(name, problem, fft)
            if form.error < WRONG:
                found.append(form)
            else:
                absent.output.note(f"{name} {problem} by VkFFT is left out: {form.error:.1g} off")
    return tuple(found)


def _kernel_ms(device: Device, name: str, problem: Problem, absent: Absent) -> float | None:
    """Of the family's default, verified first; None, and a note, where it has none here."""
    family = get_family(name)
    precision = family.precisions[0]
    try:
        params = family.default(precision, device.info, problem)
        with Bench(device, family, precision, problem, seed=_SEED, effort=_EFFORT) as bench:
            measured = bench.measure(params)
    except KernelForgeError as error:
        absent.output.note(f"{name} {problem} is left out: {error}")
        return None
    if not measured.ok:
        absent.output.note(f"{name} {problem} is left out: {measured.reason}")
        return None
    return measured.median_ns / 1e6


def _by_fft(name: str, problem: Problem, fft: RunningFft) -> FormTime:
    """By transforms in float32, held to the oracle in float64."""
    family = get_family(_FORMS[name][0])
    precision = family.precisions[0]
    given = dict(family.inputs(problem, precision, np.random.default_rng(_SEED)))
    given["segment"] = np.array([[0, problem["T"], 0, 0]], np.uint32)
    if name == "wkv4":
        width = problem["C"]
        given["in_p"][:, width : 2 * width] /= 3  # as in trained models: no channel's are far apart
    before = fft.spent_s
    found = _BY_FFT[name](problem, given, fft.convolve)
    wanted = family.oracle(problem, precision, given, {})
    ms = 1e3 * (fft.spent_s - before)
    return FormTime(name, problem["T"], FFT, ms, _apart(found, wanted))


def _apart(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    ours, theirs = found["out_y"], wanted["out_y"]
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())
