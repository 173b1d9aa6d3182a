"""VkFFT beside our kernels: how much memory it moves, and where a transform is the faster WKV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kernelforge.measure.journal_lines import name, whole, within

FAR = 0.15
"""Two bandwidths of one memory that differ by more are worth a look: one of them is wasted."""
FFT = "fft"
_GBPS = 1e-9, 1e9


@dataclass(frozen=True)
class FormTime:
    """One form of a recurrence at one number of tokens.

    Attributes:
        recurrence: wkv4 or wkv5.
        tokens: T, of one sequence.
        form: the family, or "fft".
        ms: milliseconds; of "fft" only the transforms and their product.
        error: of "fft": the furthest from the float64 oracle, relative to values above one; 0 of
            verified kernels.
    """

    recurrence: str
    tokens: int
    form: str
    ms: float
    error: float = 0.0


@dataclass(frozen=True)
class FftLimits:
    """What VkFFT reached on a device.

    Attributes:
        label: its version, and where it ran.
        gbps: bytes read and written per second, in GB/s, by length of the transforms.
        copy_gbps: of our copy kernel, measured in the same run.
        forms: what the forms of the time-invariant recurrences take.
        sizes: of those, in words.
    """

    label: str
    gbps: Mapping[int, float]
    copy_gbps: float
    forms: Sequence[FormTime] = ()
    sizes: str = ""

    @property
    def best_gbps(self) -> float:
        """At the length that moves most."""
        return max(self.gbps.values())

    @property
    def difference(self) -> float:
        """How much more than our copy it moves; negative where it is less."""
        return self.best_gbps / self.copy_gbps - 1

    @property
    def flagged(self) -> bool:
        """Whether the two bandwidths are further apart than FAR."""
        return abs(self.difference) > FAR

    def sentence(self) -> str:
        """The comparison in one line."""
        most = max(self.gbps, key=lambda length: self.gbps[length])
        flag = f": MORE THAN {FAR:.0%} APART" if self.flagged else ""
        return (
            f"{self.label}: {self.best_gbps:.2f} GB/s at length {most}, "
            f"our copy {self.copy_gbps:.2f} GB/s, {self.difference:+.0%}{flag}"
        )

    def crossovers(self) -> list[str]:
        """For each recurrence a line that names the fastest form over the tokens."""
        lines = []
        for recurrence in dict.fromkeys(form.recurrence for form in self.forms):
            best: dict[int, FormTime] = {}
            for form in (f for f in self.forms if f.recurrence == recurrence):
                known = best.get(form.tokens)
                if known is None or form.ms < known.ms:
                    best[form.tokens] = form
            parts = [f"{form.form} at {tokens}" for tokens, form in sorted(best.items())]
            lines.append(f"{recurrence}: fastest is {', '.join(parts)} tokens")
        return lines

    def rows(self) -> list[tuple[str, ...]]:
        """(recurrence, tokens, form, ms, error) in words."""
        return [
            (
                f.recurrence,
                str(f.tokens),
                f.form,
                f"{f.ms:.3f}",
                f"{f.error:.1e}" if f.error else "-",
            )
            for f in self.forms
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        data["gbps"] = {str(length): value for length, value in self.gbps.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FftLimits:
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it is something else.
        """
        gbps = {int(key): within(value, *_GBPS) for key, value in data["gbps"].items()}
        if not gbps:
            raise ValueError("no bandwidth of any length")
        forms = tuple(
            FormTime(name(f["recurrence"]), whole(f["tokens"]), name(f["form"]),
                     within(f["ms"], 0, 1e9), within(f["error"], 0, 1e9))
            for f in data["forms"]
        )  # fmt: skip
        copy = within(data["copy_gbps"], *_GBPS)
        return cls(name(data["label"]), gbps, copy, forms, name(data["sizes"]))
