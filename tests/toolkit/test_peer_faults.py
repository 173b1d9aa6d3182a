"""Other engines that hang, answer nonsense or fail half-way: each is left out with its reason."""

import argparse
import time

import pytest

from kernelforge.cli.bench_peers import Absent, PeerSubject, without_lost, working_peers
from kernelforge.cli.model_bench import measure
from kernelforge.cli.output import Output
from kernelforge.errors import PeerError
from kernelforge.peers import PeerProcess, RunningPeer, measure_matmul
from kernelforge.peers.engines import LOAD_S, TOKEN_S, patience_s


def as_python(tmp_path, script):
    """A program that is started in the place of a Python, with a worker's path."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def answering(tmp_path, line):
    """A process that says the same to whatever it is asked."""
    script = f"while read -r request; do printf '%s\\n' '{line}'; done"
    return PeerProcess("web_rwkv", tmp_path, as_python(tmp_path, script))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('cat "$1"', "is it a Python with the package"),  # prints the worker instead
        ("yes no", "is it a Python with the package"),
        ("head -c 300000 /dev/zero; echo; sleep 60", "is it a Python with the package"),
        ("echo 7; sleep 60", "it answered load with '7"),
        ("echo '{}'; sleep 60", "it answered load with '{}"),
        ("exit 3", "its process ended with status 3 in load: it said nothing"),
        ("echo why >&2; exit 3", "status 3 in load: why"),
        ('echo \'{"error": ["a", 1]}\'; sleep 60', r"\['a', 1\]"),
        ("exec >&-; exec sleep 60", "its process ended with status -9 in load"),
    ],
)
def test_what_is_no_engine_is_one_clear_reason(tmp_path, monkeypatch, script, said):
    # What ends by itself is given the time for it, however busy the machine is.
    monkeypatch.setattr("kernelforge.peers.process._GRACE_S", 20 if "exit" in script else 0.2)
    process = PeerProcess("web_rwkv", tmp_path, as_python(tmp_path, script))
    try:
        with pytest.raises(PeerError, match=said) as caught:
            process.ask_label("load", 20, path="x", threads=0)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    finally:
        process.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('cat "$1"', "is it a Python with the package"),
        ("echo '{\"ok\": 1}'", "its process ended with status 0 in load"),  # to no question
        ('exec <&-; : > "$0.ready"; exec sleep 60', "no answer in 0 s"),
    ],
)
def test_what_ended_before_it_was_asked_is_heard(tmp_path, monkeypatch, script, said):
    monkeypatch.setattr("kernelforge.peers.process._GRACE_S", 0.2)
    process = PeerProcess("web_rwkv", tmp_path, as_python(tmp_path, script))
    try:
        until = time.monotonic() + 60
        while process._process.poll() is None and time.monotonic() < until:
            if (tmp_path / "python.ready").exists():
                break
            time.sleep(0.01)
        with pytest.raises(PeerError, match=said):
            process.ask("load", 20, path="x", threads=0)
    finally:
        process.close()


def test_a_request_that_nobody_reads_is_given_up(tmp_path):
    process = PeerProcess("web_rwkv", tmp_path, as_python(tmp_path, "exec sleep 60"))
    started = time.monotonic()
    with pytest.raises(PeerError, match="no answer in 1 s"):  # far more than a pipe holds
        process.ask("prefill", 1, tokens=[7] * 200_000)
    process.close()
    assert time.monotonic() - started < 50


@pytest.mark.parametrize("answer", ["-1", "0", "null", '"1"', "NaN", "Infinity", "1e400", "[1]",
                                    "true", "{}"])  # fmt: skip
def test_what_is_no_time_is_never_a_speed(tmp_path, answer):
    process = answering(tmp_path, f'{{"ok": {answer}}}')
    try:
        peer = RunningPeer("other", "other 1", "f16", "m", 3, True, process)
        with pytest.raises(PeerError, match=r"it answered decode with .*, expected a number"):
            peer.decode_s([1, 2])
    finally:
        process.close()


@pytest.mark.parametrize("answer", ["7", '["a"]', "[[1], [1, 2]]", "null", '{"a": 1}'])
def test_what_are_no_logits_leave_a_peer_out(tmp_path, answer):
    process = answering(tmp_path, f'{{"ok": {answer}}}')
    absent = Absent(Output(argparse.Namespace(json=True, quiet=True)))
    try:
        peers = [PeerSubject(RunningPeer("other", "other 1", "f16", "m", 3, True, process))]
        assert working_peers(Ours(), "f16", peers, absent) == []
        assert "logits are" in absent.reasons["other"]
    finally:
        process.close()


def test_torch_that_multiplies_in_no_time_is_refused(tmp_path):
    script = 'while read -r request; do echo \'{"ok": "fast"}\'; done'
    with pytest.raises(PeerError, match="it answered matmul with 'fast', expected a number"):
        measure_matmul(python=as_python(tmp_path, script))


def test_nobody_waits_for_hours():
    assert patience_s(4) == 4 * TOKEN_S
    assert patience_s(256) == LOAD_S
    assert patience_s(1 << 14) == 2 * (1 << 14)  # long prompts of a slow engine that does go on


class Ours:
    """A model of ours: always the same speed."""

    model = None

    def forward(self, tokens):
        import numpy as np

        return np.array([1.0, 2.0, 3.0], np.float32), None

    def warm(self, test, tokens):
        pass

    def prefill(self, tokens):
        return 5.0, float("nan")

    decode = prefill


class Failing(Ours):
    """Another engine that fails after so many runs."""

    name, label, weights, vocab = "other", "other 1", "f16", 3

    def __init__(self, runs):
        self.left = runs

    def decode_s(self, tokens):
        self.left -= 1
        if self.left < 0:
            raise PeerError("its process ended")
        return 1.0


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_a_peer_that_fails_half_way_costs_nobody_else_a_sample(runs):
    ours, other, last = Ours(), PeerSubject(Failing(runs)), PeerSubject(Failing(99))
    found = measure([ours, other, last], "tg", 4, 5)
    assert [len(samples.tok_per_s) for samples in found] == [5, max(runs - 1, 0), 5]
    absent = Absent(Output(argparse.Namespace(json=True, quiet=True)))
    going, kept = without_lost([(ours, {}), (other, {}), (last, {})], found, "f16 tg4", absent)
    assert [subject for subject, _ in going] == [ours, last]
    assert [len(samples.tok_per_s) for samples in kept] == [5, 5]
    assert absent.reasons == {"other": "in f16 tg4: its process ended"}
    absent.add("other", "in q8: gone")
    assert absent.reasons["other"] == "in f16 tg4: its process ended; in q8: gone"
