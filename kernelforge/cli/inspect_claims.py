"""What `inspect BUNDLE --remeasure` shows: claimed times beside those of today."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from kernelforge.cli.options import UsageError
from kernelforge.cli.output import Output
from kernelforge.cli.progress import ProgressBar
from kernelforge.measure.claims import HONEST, Claim, remeasure
from kernelforge.measure.statistics import median
from kernelforge_runtime.bundle import open_bundle
from kernelforge_runtime.vk import open_device

HEADERS = (
    "family", "type", "problem", "claimed us", "now us", "now/claimed", "spread", "device",
    "without it", "variant",
)  # fmt: skip


def show_claims(folder: Path, args: argparse.Namespace, output: Output) -> None:
    """Times every winner again beside the family's default, and says how many claims hold."""
    with open_device(args.device) as device:
        bundle = open_bundle(folder, device.info)
        entries = [
            e
            for e in bundle.entries
            if args.family in (None, e.family) and args.precision in (None, e.precision)
        ]
        if not entries:
            raise UsageError(f"{folder} has no kernel of that family and type for this device")
        with ProgressBar(output, "measuring again", len(entries)) as bar:
            done: list[Claim] = []

            def follow(claim: Claim) -> None:
                done.append(claim)
                bar.show(len(done), len(entries), f"{claim.entry.family} {claim.entry.problem}")
                bar.line(f"{len(done)}/{len(entries)} {_line(claim)}")

            claims = remeasure(bundle, device, entries, on_claim=follow)
        name = device.info.name
    output.table(HEADERS, [_row(c) for c in claims if not c.why_not])
    for claim in (c for c in claims if c.why_not):
        output.text(f"not measured: {claim.entry.variant} {claim.entry.problem}: {claim.why_not}")
    output.text()
    for line in _summary(claims, name):
        output.text(line)
    output.document({"bundle": folder, "device": name, "claims": [_json(c) for c in claims]})


def _summary(claims: list[Claim], name: str) -> list[str]:
    measured = [c for c in claims if not c.why_not]
    if not measured:
        return [f"nothing was measured on {name}"]
    percent = f"{100 * HONEST:.0f} %"
    kept = sum(abs(c.ratio - 1) <= HONEST for c in measured)
    lines = [
        f"{kept} of {len(measured)} claims hold within {percent} on {name}; median of now/claimed "
        f"{median([c.ratio for c in measured]):.3f}"
    ]
    steady = [c for c in measured if math.isfinite(c.steady_ratio)]
    if steady:
        kept = sum(abs(c.steady_ratio - 1) <= HONEST for c in steady)
        lines.append(
            f"the defaults take {median([c.device_ratio for c in steady]):.3f} of what they took "
            f"then; with that taken out, {kept} of {len(steady)} hold within {percent}"
        )
    return lines


def _line(claim: Claim) -> str:
    what = f"{claim.entry.family} {claim.entry.precision} {claim.entry.problem}"
    return f"{what}: {claim.why_not or f'{_ratio(claim.ratio)} of the claimed time'}"


def _row(claim: Claim) -> tuple[str, ...]:
    entry = claim.entry
    return (
        entry.family,
        entry.precision,
        str(entry.problem),
        f"{entry.median_ns / 1e3:.1f}",
        f"{claim.now_ns / 1e3:.1f}",
        _ratio(claim.ratio),
        f"{100 * claim.spread_ns / claim.now_ns:.1f} %",
        _ratio(claim.device_ratio),
        _ratio(claim.steady_ratio),
        entry.variant,
    )


def _ratio(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _json(claim: Claim) -> dict[str, Any]:
    entry = claim.entry
    return {
        "family": entry.family, "precision": entry.precision, "problem": str(entry.problem),
        "variant": entry.variant, "claimed_ns": entry.median_ns,
        "claimed_spread_ns": entry.spread_ns, "now_ns": claim.now_ns,
        "spread_ns": claim.spread_ns, "rounds": claim.rounds, "ratio": claim.ratio,
        "default_claimed_ns": entry.default_ns, "default_now_ns": claim.default_now_ns,
        "device_ratio": claim.device_ratio, "steady_ratio": claim.steady_ratio,
        "why_not": claim.why_not,
    }  # fmt: skip
