"""What a worker dies of before it begins is no variant's fault; what it dies of later is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernelforge.measure.isolated import IsolatedBench
from kernelforge.measure.measurement import LostError, Outcome
from kernelforge.measure.supervisor import IdleLossError, Supervisor
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import DeviceLostError
from tests.toolkit.faulty_family import faulty_family
from tests.toolkit.small_family import needs_compiler

BARE = """
import json, os, signal, sys, time
from multiprocessing.connection import Connection
from pathlib import Path
how, slug, mortal = sys.argv[1], sys.argv[2], Path(sys.argv[3])
channel = Connection(int(sys.argv[4]))
say = lambda message: channel.send_bytes(json.dumps({**message, "blobs": 0}).encode())
while True:
    asked = json.loads(channel.recv_bytes())
    for _ in range(asked["blobs"]):
        channel.recv_bytes()
    if how == "mute":
        time.sleep(60)
    left = int(mortal.read_text())
    if how == "before" and asked["do"] == "measure" and left:
        mortal.write_text(str(left - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    say({"begun": True})
    if how == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    timed = {**asked.get("blank", {}), "median_ns": 7.0, "samples_ns": [7.0]}
    say({"opened": slug} if asked["do"] == "open" else {"measurement": timed})
"""
"""A worker without a device, which dies by itself: how, and how many of its kind."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals are told apart in Linux")


def workers(how: str, folder: Path, many: int = 1) -> Supervisor:
    """Of these workers so many die."""
    (folder / "mortal").write_text(str(many))
    return Supervisor([sys.executable, "-c", BARE, how, GENERIC.slug, str(folder / "mortal")])


@pytest.mark.parametrize(
    ("how", "idle", "outcome"),
    [
        ("before", True, Outcome.CRASHED),
        ("mute", True, Outcome.HUNG),
        ("after", False, Outcome.CRASHED),
    ],
)
def test_a_death_counts_as_the_request_s_only_after_the_worker_has_begun(
    tmp_path: Path, how: str, idle: bool, outcome: Outcome
) -> None:
    with workers(how, tmp_path) as supervisor:
        supervisor.start()
        patience_s = 1.0 if how == "mute" else 60.0
        with pytest.raises(LostError) as caught:
            supervisor.ask({"do": "measure"}, [b"spirv"], patience_s, lambda answer: answer)
        assert isinstance(caught.value, IdleLossError) is idle
        assert caught.value.outcome is outcome
        assert supervisor.pid is None


@pytest.mark.glslang
def test_a_request_is_handed_over_again_and_no_variant_is_blamed_for_a_dead_worker(
    tmp_path: Path,
) -> None:
    needs_compiler()
    family, problem = faulty_family(("none",), 16), Problem(M=67, K=64)
    params = family.default(F32, GENERIC, problem)
    with workers("before", tmp_path, many=3) as supervisor, IsolatedBench(
        supervisor, GENERIC, family, F32, problem
    ) as bench:  # fmt: skip
        found = bench.measure(params)
        assert (found.outcome, found.median_ns, supervisor.started) == (Outcome.OK, 7.0, 4)
        assert not bench.avoid
    with workers("before", tmp_path, many=1000) as supervisor, IsolatedBench(
        supervisor, GENERIC, family, F32, problem
    ) as bench:  # fmt: skip
        with pytest.raises(DeviceLostError, match=r"5 .* ended before they began: .*SIGKILL"):
            bench.measure(params)
        assert not bench.avoid
