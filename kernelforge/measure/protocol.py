"""What a measuring process and its parent say to each other: JSON, and SPIR-V as it is.

One message is a JSON header, and as many byte strings as its field "blobs" says. Nothing is
unpickled: a process that has run a broken kernel may say anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from kernelforge.errors import MeasureError
from kernelforge.families import get_family, load_families
from kernelforge.family import KernelFamily, family_from
from kernelforge.measure.side_by_side import Turns
from kernelforge.measure.verify import Verification
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import Signature

MOST_BYTES = 64 << 20
"""A longer message is none of ours."""
MOST_BLOBS = 64
BEGUN = "begun"
"""A worker's first word on a request, before anything of it runs: what it dies of until then is no
variant's doing."""


class Channel:
    """One end of a connection; close it.

    Args:
        descriptor: of a connected socket; owned from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)

    def send(self, message: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Sends one message.

        Raises:
            OSError: the other end is gone.
        """
        self._connection.send_bytes(json.dumps({**message, "blobs": len(blobs)}).encode())
        for blob in blobs:
            self._connection.send_bytes(blob)

    def receive(self) -> tuple[dict[str, Any], list[bytes]]:
        """The next message.

        Raises:
            EOFError: the other end is gone.
            OSError: the same, or a message is too long.
            ValueError: it is no message.
        """
        message = json.loads(self._connection.recv_bytes(MOST_BYTES))
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
        count = message.pop("blobs", 0)
        if not isinstance(count, int) or not 0 <= count <= MOST_BLOBS:
            raise ValueError("a message without a count of its blobs")
        return message, [self._connection.recv_bytes(MOST_BYTES) for _ in range(count)]

    def waiting(self, seconds: float) -> bool:
        """Whether something can be received, or the other end is gone, within these seconds."""
        return self._connection.poll(max(0.0, seconds))

    def close(self) -> None:
        """Closes this end."""
        self._connection.close()


def family_to_json(family: KernelFamily) -> Any:
    """How another process finds a family.

    Raises:
        MeasureError: it cannot.
    """
    if family.source is not None:
        module, function, arguments = family.source
        return [module, function, list(arguments)]
    if load_families().get(family.name) is family:
        return family.name
    raise MeasureError(
        f"family {family.name} is not in families/ and names no source, so no other process can "
        "make it; give it a source, or measure in this process (--in-process)"
    )


def family_from_json(data: Any) -> KernelFamily:
    """The family that `family_to_json` meant."""
    if isinstance(data, str):
        return get_family(data)
    module, function, arguments = data
    return family_from((module, function, tuple(arguments)))


def module_to_json(module: ShaderModule) -> dict[str, Any]:
    """Name and signature; the SPIR-V travels as a blob."""
    return {"name": module.name, "signature": module.signature.to_json()}


def module_from_json(data: Mapping[str, Any], spirv: bytes) -> ShaderModule:
    """The module of `module_to_json`."""
    return ShaderModule(data["name"], spirv, Signature.from_json(data["signature"]))


def verification_from_json(data: Mapping[str, Any]) -> Verification:
    """A check's result, from its fields; a wrong form raises ValueError or KeyError."""
    return Verification(
        ok=data["ok"] is True,
        max_error=float(data["max_error"]),
        tolerance=float(data["tolerance"]),
        where=str(data["where"]),
        seed=int(data["seed"]),
        reason=str(data["reason"]),
        run_s=float(data["run_s"]),
    )


def turns_to_json(turns: Mapping[str, Turns]) -> dict[str, Any]:
    """Times taken in turns, by variant."""
    return {name: asdict(one) for name, one in turns.items()}


def turns_from_json(data: Mapping[str, Any]) -> dict[str, Turns]:
    """What `turns_to_json` wrote; a wrong form raises ValueError, TypeError or KeyError."""
    return {
        str(name): Turns(
            samples_ns=tuple(float(v) for v in one["samples_ns"]),
            dispatches=int(one["dispatches"]),
            clock=str(one["clock"]),
            cold=bool(one["cold"]),
        )
        for name, one in data.items()
    }
