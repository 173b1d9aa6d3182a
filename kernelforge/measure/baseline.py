"""What a device can do at best, measured: the ceilings that kernels are held against.

Data sheets promise, drivers differ, and a software device has no data sheet. Each ceiling is the
best of a few variants of a kernel that does one thing only, verified like any other kernel.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from kernelforge.compile import compile_variant
from kernelforge.errors import MeasureError
from kernelforge.family import KernelFamily
from kernelforge.measure.bench import Bench
from kernelforge.measure.ceilings import COPY, FMA, READ, WORD_BYTES
from kernelforge.measure.journal_lines import name, within
from kernelforge.measure.roofline import rate
from kernelforge.measure.statistics import median
from kernelforge.measure.timed_problem import Effort
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import Device

log = logging.getLogger(__name__)

_EFFORT = Effort(sample_ns=5e6, samples=8, longest_sample_ns=10e6, total_ns=40e6)
_MOST = 1e12
"""No device does as much, in any of the units."""
_TINY = Problem(N=64, G=64, L=8)


@dataclass(frozen=True)
class Ceilings:
    """The best a device was seen to do. GB = 10^9 bytes.

    Attributes:
        read_gbps: bytes read, GB/s.
        copy_gbps: bytes read plus bytes written, GB/s.
        fma_gflops: float32 operations, a multiply-add counting two, GFLOP/s.
        dispatch_us: one more dependent dispatch of an almost empty kernel in a plan.
        submit_us: submitting a plan of one such dispatch and waiting for it, wall clock.
        device: slug.
        driver: name and version.
        clock: "timestamp" or "host", of all but `submit_us`.
    """

    read_gbps: float
    copy_gbps: float
    fma_gflops: float
    dispatch_us: float
    submit_us: float
    device: str = ""
    driver: str = ""
    clock: str = ""

    @property
    def memory_gbps(self) -> float:
        """The memory's ceiling: where writes are cheap a copy moves more than a read does."""
        return max(self.read_gbps, self.copy_gbps)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ceilings:
        """Reads what `to_json` wrote; names that are not known are ignored.

        Raises:
            MeasureError: a field is missing, or nothing that a device can do.
        """
        try:
            values: dict[str, Any] = {f.name: data[f.name] for f in fields(cls)}
            for key, value in values.items():
                is_text = key in ("device", "driver", "clock")
                values[key] = name(value) if is_text else within(value, 0, _MOST)
            return cls(**values)
        except KeyError as error:
            raise MeasureError(f"ceilings without {error}: measure them again") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise MeasureError(f"ceilings: {error}: measure them again") from error


def measure_ceilings(device: Device) -> Ceilings:
    """Measures every ceiling of a device; takes a few seconds.

    Raises:
        MeasureError: none of a kernel's variants gave a right result.
        DeviceLostError: the device did not answer.
    """
    info = device.info
    on_cpu = info.device_type == "cpu"
    wanted = (32 if on_cpu else 512) << 20
    nbytes = min(wanted, info.max_storage_buffer // 2, info.memory_bytes // 8)
    words = max(1024, nbytes // WORD_BYTES)
    width = 8 if on_cpu else 32
    invocations = (1024, 16384) if on_cpu else (65536, 524288)
    memory = [Problem(N=words, G=g, L=width) for g in invocations]
    arithmetic = [Problem(G=invocations[-1], K=1024 if on_cpu else 8192)]
    read = _fastest(device, READ, memory)
    copy = _fastest(device, COPY, memory)
    fma = _fastest(device, FMA, arithmetic)
    dispatch_us, submit_us, clock = _latency(device)
    return Ceilings(
        read_gbps=read[0],
        copy_gbps=copy[0],
        fma_gflops=fma[1],
        dispatch_us=dispatch_us,
        submit_us=submit_us,
        device=info.slug,
        driver=f"{info.driver_name} {info.driver_info}".strip(),
        clock=clock,
    )


def _fastest(
    device: Device, family: KernelFamily, problems: Sequence[Problem]
) -> tuple[float, float]:
    """Best GB/s and GFLOP/s over all variants and problems."""
    precision = family.precisions[0]
    gbps = gflops = 0.0
    reason = "no variant is valid here"
    for problem in problems:
        best_ns, corner = math.inf, family.corner_problems[-1]
        with Bench(
            device, family, precision, problem, seed=1, effort=_EFFORT, verify_on=corner
        ) as bench:
            for params in family.valid(precision, device.info, problem):
                found = bench.measure(params, None if math.isinf(best_ns) else best_ns)
                if not found.ok:
                    reason = f"{found.variant}: {found.outcome.value} {found.reason}"
                    log.warning("%s", reason)
                    continue
                best_ns = min(best_ns, found.median_ns)
        if math.isfinite(best_ns):
            speed = rate(family.cost(problem, precision), best_ns)
            gbps, gflops = max(gbps, speed.gbps), max(gflops, speed.gflops)
    if not gbps > 0:
        raise MeasureError(f"{family.name} could not be measured on {device.info.name}: {reason}")
    return gbps, gflops


def _latency(device: Device) -> tuple[float, float, str]:
    """Microseconds per dispatch within a plan, and per submit and wait; and the clock."""
    precision = COPY.precisions[0]
    module = compile_variant(COPY, precision, COPY.default(precision, device.info, _TINY))
    with Bench(device, COPY, precision, _TINY, seed=1) as bench:
        short, long = bench.timer(module, 1), bench.timer(module, 201)
        try:
            for timer in (short, long):
                timer.sample()
            one = median([short.sample() for _ in range(10)])
            many = median([long.sample() * long.dispatches for _ in range(10)])
            clock = short.clock
        finally:
            short.close()
            long.close()
    per_dispatch_us = max(many - one, 0.0) / 200 / 1e3
    source = device.buffer(WORD_BYTES * _TINY["N"], name="source")
    result = device.buffer(WORD_BYTES * _TINY["N"], name="result")
    try:
        source.fill(1)
        call = Dispatch(module, _TINY, {"source": source, "result": result})
        with Plan(device, [call], name="latency") as plan:
            plan.run()
            times = []
            for _ in range(50):
                started = time.perf_counter()
                plan.run()
                times.append(time.perf_counter() - started)
    finally:
        source.close()
        result.close()
    return per_dispatch_us, median(times) * 1e6, clock
