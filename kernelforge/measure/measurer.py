"""What a search needs of whatever measures for it: `bench.Bench` here, `isolated` elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import LostError, Measurement
from kernelforge.measure.side_by_side import Turns
from kernelforge.measure.verify import Verification
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType


class Measurer(Protocol):
    """Measures variants of one family on one problem of one device."""

    info: DeviceInfo
    family: KernelFamily
    precision: DType
    problem: Problem

    @property
    def isolated(self) -> bool:
        """Whether the search can go on after a variant lost the device."""

    def next_seed(self) -> int:
        """A seed that was not used before."""

    def describe(self, params: Mapping[str, Any]) -> Measurement:
        """A measurement of this variant with nothing measured yet."""

    def recall(self, measured: Iterable[Measurement]) -> None:
        """Takes over what was measured elsewhere, so that equal programs are not measured again."""

    def measure(self, params: Mapping[str, Any], incumbent_ns: float | None = None) -> Measurement:
        """Compiles, verifies and times one variant."""

    def measure_again(self, params: Mapping[str, Any]) -> Measurement:
        """Times a variant anew, although it was measured before."""

    def check_everywhere(
        self, module: ShaderModule, params: Mapping[str, Any], seed: int
    ) -> Verification:
        """Verifies on the full problem and at the family's corners."""

    def time_in_turns(
        self,
        modules: Sequence[ShaderModule],
        fastest_ns: float,
        rounds: int,
        seconds: float,
        seed: int,
    ) -> tuple[dict[str, Turns], dict[str, LostError]]:
        """Times modules alternately; what was timed, and what was lost on the way."""
