"""The few numbers and sentences that a reader should take home, for page and markdown alike."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from kernelforge.measure.statistics import median
from kernelforge.report.cells import number, percent
from kernelforge.report.families import geometric_mean
from kernelforge.report.frame import Frame
from kernelforge.report.kernels import KernelRow
from kernelforge.report.models import ModelRow


@dataclass(frozen=True)
class Tile:
    """A number and what it is."""

    value: str
    text: str


def tiles(frame: Frame) -> list[Tile]:
    """At most four headline numbers."""
    found = []
    decoding = _headline(frame)
    if decoding is not None:
        record = decoding.record
        text = f"tok/s decoding {record.model} in {record.weights}"
        if math.isfinite(decoding.ratio):
            text += f", {number(decoding.ratio)}× the generic kernels"
        found.append(Tile(number(record.median), text))
    mean = geometric_mean([row.speedup for row in frame.kernels])
    if math.isfinite(mean):
        text = "as fast as the default variants (geometric mean)"
        found.append(Tile(f"{number(mean)}×", text))
    if frame.kernels:
        trials = sum(row.trials for row in frame.kernels)
        found.append(Tile(str(len(frame.kernels)), f"problems tuned, in {trials} trials"))
    if frame.ceilings is not None:
        found.append(Tile(number(frame.ceilings.read_gbps), "GB/s measured read bandwidth"))
    return found


def speedup_sentence(frame: Frame) -> str:
    """How much tuning gained over the default variants."""
    rows = [row for row in frame.kernels if math.isfinite(row.speedup)]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row.speedup)
    mean = geometric_mean([row.speedup for row in rows])
    kept = sum(row.speedup == 1 for row in rows)
    text = (
        f"Over {len(rows)} problems the winner is {number(mean)}× as fast as the family's default "
        f"variant (geometric mean); most of all {best.name}, {number(best.speedup)}×."
    )
    if kept:
        text += f" For {kept} nothing was faster beyond noise, so the default stays."
    return text


def search_sentence(frame: Frame) -> str:
    """How soon the searches were nearly there, and what experience from elsewhere saved them."""
    rows = [row for row in frame.kernels if row.good_trial]
    if not rows:
        return ""
    text = (
        f"Half of {len(rows)} searches had 95 % of their winner's speed by trial "
        f"{number(median([row.good_trial for row in rows]), 0)} of "
        f"{number(median([row.trials for row in rows]), 0)} (medians)"
    )
    counts = Counter(row.origin for row in rows if row.origin in _SOURCES)
    if not counts:
        return text + "."
    found = ", ".join(f"{count} from {_SOURCES[who]}" for who, count in counts.most_common())
    return f"{text}. Of the winners came {found}.{_saved(rows)}"


def _saved(rows: list[KernelRow]) -> str:
    """What the trials that were suggested saved, over all searches that tell."""
    known = [row.saving for row in rows if row.saving is not None]
    if not known:
        return ""
    total = sum(saving.trials for saving in known)
    more = any(saving.at_least for saving in known)
    what = (
        f"saved {'at least ' * more}{total}" if total >= 0 else f"cost {'at most ' * more}{-total}"
    )
    return (
        f" Compared with what {len(known)} searches proposed themselves, those suggestions {what} "
        "trials on the way to 95 %."
    )


_SOURCES = {
    "default": "the families' declarations",
    "this run": "other problems of the same run",
    "warm start": "bundles that were given",
    "portfolio": "the portfolio that ships with the package",
    "search": "the search itself",
    "layout": "trying the fastest in the other layouts",
}


def share_sentence(frame: Frame) -> str:
    """How near the kernels come to the ceilings."""
    rows = [row for row in frame.kernels if math.isfinite(row.rate.share)]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row.rate.share)
    return (
        f"Nearest to its ceiling comes {best.name} with {percent(best.rate.share)} % of the "
        f"{best.rate.bound} ceiling; half of the {len(rows)} kernels reach "
        f"{percent(median([row.rate.share for row in rows]))} % of theirs or more."
    )


def model_sentence(frame: Frame) -> str:
    """What tuning means for a model as a whole."""
    compared = [row for row in frame.models if math.isfinite(row.ratio)]
    if not compared:
        return "Median of several repetitions, by the wall clock, everything included."
    turns = all(row.in_turns for row in compared)
    how = "measured in turns" if turns else "not all of them measured in turns"
    parts = []
    for what, decodes in (("decoding is", True), ("prefill", False)):
        ratios = [row.ratio for row in compared if row.record.decodes is decodes]
        if ratios:
            parts.append(f"{what} {_range(ratios)}")
    return (
        f"With tuned kernels {' and '.join(parts)} as fast as with the generic ones ({how}): "
        "median of several repetitions, by the wall clock, everything included."
    )


def _range(ratios: list[float]) -> str:
    low, high = number(min(ratios)), number(max(ratios))
    return f"{low}×" if low == high else f"{low}× to {high}×"


def _headline(frame: Frame) -> ModelRow | None:
    """The fastest decode of the largest model with tuned kernels, or with any."""
    rows = [row for row in frame.models if row.record.decodes]
    tuned = [row for row in rows if not row.record.is_generic] or rows
    return max(tuned, key=lambda r: (r.record.parameters, r.record.median), default=None)
