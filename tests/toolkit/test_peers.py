"""Other engines beside ours: their processes, files, and what is said when one fails."""

import argparse
import json
import textwrap

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from kernelforge.cli.bench_peers import (
    TORCH,
    Absent,
    PeerSubject,
    matmul_limits,
    opened_peers,
    working_peers,
)
from kernelforge.cli.bench_tables import find_ratios
from kernelforge.cli.output import Output
from kernelforge.convert.random_model import random_model
from kernelforge.errors import PeerError
from kernelforge.peers import ENGINES, PeerModel, PeerProcess, open_peer
from kernelforge.peers.process import WORKERS
from kernelforge.peers.web_rwkv_file import write_web_rwkv
from kernelforge.report.bench_journal import BenchRecord, append_bench, read_bench, read_limits
from kernelforge.report.comparisons import MatmulLimits, peer_rows, product_rows
from kernelforge.report.kernels import KernelRow
from kernelforge_runtime.weights import open_checkpoint
from tests.models.checkpoints import random_rwkv7
from tests.toolkit.cli_process import DEVICE, kernelforge, tiny_model, workplace

FAKE = """
    import os, time
    class Model:
        def __init__(self, path): self.path = path
        def clear_state(self): pass
        def run(self, tokens):
            if os.environ.get("FAKE_DIES"): os.abort()
            if os.environ.get("FAKE_HANGS"): time.sleep(3600)
            if os.environ.get("FAKE_FAILS"): raise ValueError("no such\\n token")
            print("this is no answer")
            return [0.0, 2.0, float(len(tokens))]
"""
"""A package that stands where web-rwkv-py is installed, with its calls."""


@pytest.fixture
def fake(tmp_path):
    """The environment of a process that finds the fake package."""
    (tmp_path / "web_rwkv_py.py").write_text(textwrap.dedent(FAKE))
    known = tmp_path / "web_rwkv_py-9.9.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: web-rwkv-py\nVersion: 9.9\n")
    return {"PYTHONPATH": str(tmp_path)}


def peer(tmp_path, environment) -> PeerProcess:
    process = PeerProcess("web_rwkv", tmp_path, environment=environment)
    assert process.ask("load", 60, path="x", threads=0) == "web-rwkv-py 9.9"
    return process


def record(peer: str = "", **changes: object) -> BenchRecord:
    values = {
        "time": "2026-01-01T00:00:00Z", "model": "m", "version": "rwkv7", "sizes": "L1 C64 V9",
        "parameters": 9, "device": "d", "device_name": "D", "device_type": "gpu", "driver": "x",
        "weights": "f16", "bundle": peer or "tuned", "bundle_sha256": "", "kernels": "",
        "test": "tg4", "tok_per_s": (4.0, 6.0, 8.0), "pair": "t f16", "peer": peer, **changes,
    }  # fmt: skip
    return BenchRecord(**values)


def test_a_peer_answers_and_what_it_prints_is_no_answer(tmp_path, fake) -> None:
    process = peer(tmp_path, fake)
    try:
        assert process.ask("logits", 60, tokens=[5, 6]) == [0.0, 2.0, 1.0]
        assert 0 <= process.ask("prefill", 60, tokens=[1, 2, 3]) < 60
        assert 0 <= process.ask("decode", 60, tokens=[1, 2, 3]) < 60
    finally:
        process.close()


def test_a_request_that_fails_is_told_and_the_peer_goes_on(tmp_path, fake) -> None:
    process = peer(tmp_path, {**fake, "FAKE_FAILS": "1"})
    try:
        for _ in range(2):
            with pytest.raises(PeerError, match="ValueError: no such token"):
                process.ask("logits", 60, tokens=[5])
    finally:
        process.close()


def test_a_peer_that_dies_is_named_with_its_status(tmp_path, fake) -> None:
    process = peer(tmp_path, {**fake, "FAKE_DIES": "1"})
    try:
        with pytest.raises(PeerError, match="ended with status -6 in logits"):
            process.ask("logits", 60, tokens=[5])
    finally:
        process.close()


def test_a_peer_that_hangs_is_killed(tmp_path, fake) -> None:
    process = peer(tmp_path, {**fake, "FAKE_HANGS": "1"})
    with pytest.raises(PeerError, match="no answer in 1 s"):
        process.ask("logits", 1, tokens=[5])
    process.close()
    assert process._process.returncode == -9


def test_every_engine_has_its_worker() -> None:
    assert all((WORKERS / f"{engine.worker}.py").is_file() for engine in ENGINES.values())


def test_an_interpreter_that_is_not_there_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(PeerError, match="/nowhere/python: cannot be started"):
        PeerProcess("web_rwkv", tmp_path, "/nowhere/python")


def test_a_version_that_a_peer_does_not_know_is_refused_or_replaced(tmp_path) -> None:
    model = PeerModel(tiny_model(), "rwkv99", 1, 64, 300)
    with (
        pytest.raises(PeerError, match="this model is rwkv99"),
        open_peer("rwkv", model, tmp_path, tmp_path),
    ):
        pass
    with pytest.raises(PeerError, match="there are"), open_peer("x", model, tmp_path, tmp_path):
        pass


def test_web_rwkv_gets_every_tensor_under_its_name_in_halves(tmp_path) -> None:
    source = random_model("v6.L1.C64.V300", tmp_path)
    with open_checkpoint(source) as checkpoint:
        write_web_rwkv(checkpoint, tmp_path / "out.st")
        with safe_open(tmp_path / "out.st", "numpy") as written:
            assert len(list(written.keys())) == len(checkpoint)
            att = "blocks.0.att."
            one = written.get_tensor(att + "time_decay_w1")
            assert one.dtype == np.float16
            assert np.array_equal(one, checkpoint[att + "time_decay_w1"].T.astype(np.float16))
            mixes = checkpoint[att + "time_maa_w2"]
            assert np.array_equal(
                written.get_tensor(att + "time_mix_w2"),
                mixes.transpose(0, 2, 1).astype(np.float16),
            )
            first = written.get_tensor(att + "time_first")
            # One head: the dimension of one is gone, as all of them are.
            assert np.array_equal(first, checkpoint[att + "time_faaaa"][0].astype(np.float16))
            assert written.get_tensor(att + "time_decay").shape == (64,)


class Ours:
    """A model whose logits are these."""

    def forward(self, tokens):
        return np.array([1.0, 2.0, 3.0], np.float32), None


class Theirs:
    """A running peer whose logits are its own."""

    name, label, weights, vocab, same_model = "other", "other 1", "f16", 3, True

    def __init__(self, logits) -> None:
        self.found = np.array(logits, np.float32)

    def logits(self, tokens):
        return self.found

    def decode_s(self, tokens):
        return 1.0


def compared(logits, weights):
    """(peers that work, reasons why the others do not) of one with these logits."""
    absent = Absent(Output(argparse.Namespace(json=True, quiet=True)))
    peers = [PeerSubject(Theirs(logits))]
    return working_peers(Ours(), weights, peers, absent), absent.reasons


def test_a_peer_is_timed_only_where_its_logits_are_ours() -> None:
    found, absent = compared([1.0, 2.01, 3.0], "f16")
    assert len(found) == 1 and not absent
    found, absent = compared([3.0, 2.0, 1.0], "f16/f16")
    assert not found
    assert "its logits are at most 2 from ours" in absent["other"]
    found, absent = compared([1.5, 2.0, 2.5], "nf4")  # quantised: further is to be expected
    assert len(found) == 1 and not absent
    for broken in ([1.0, 2.0, np.nan], [1.0, 2.0]):
        found, absent = compared(broken, "f32")
        assert not found
        assert "2 of 3 logits are numbers" in absent["other"]


def test_a_model_that_cannot_be_written_for_a_peer_leaves_it_out(tmp_path) -> None:
    path = random_rwkv7(tmp_path / "model.safetensors", layers=1, width=64)
    save_file(load_file(path), path, {"group_norm_eps": "1e-5"})
    absent = Absent(Output(argparse.Namespace(json=True, quiet=True)))
    with opened_peers(["llama.cpp"], path, tmp_path, "/nowhere/python", absent) as peers:
        assert peers == []
    assert "group norms" in absent.reasons["llama.cpp"]


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_bench_leaves_out_a_peer_that_is_not_there_and_says_why() -> None:
    place = workplace()
    done = kernelforge(
        "bench", place.model, "--device", DEVICE, "--pp", "0", "--tg", "2", "--reps", "1",
        "--peer", "web-rwkv,llama.cpp,torch", "--peer-python", "/nowhere/python", "--json",
        **place.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "peer web-rwkv is left out: /nowhere/python: cannot be started" in done.stderr
    assert "peer torch is left out: /nowhere/python: cannot be started" in done.stderr
    found = json.loads(done.stdout)
    assert len(found["results"]) == 1
    absent = {one["peer"]: one["reason"] for one in found["peers_left_out"]}
    assert set(absent) == {"web-rwkv", "llama.cpp", "torch"}
    assert set(absent.values()) == {"/nowhere/python: cannot be started: No such file or directory"}


def test_an_unknown_peer_is_refused_before_anything_is_done() -> None:
    done = kernelforge("bench", "x.pth", "--peer", "other")
    assert done.returncode == 2
    assert "--peer other: there are rwkv, web-rwkv, llama.cpp, torch, vkfft" in done.stderr


def test_ratios_are_of_ours_against_each_peer_that_took_turns() -> None:
    ours = record()
    one, two = record("one", tok_per_s=(1.0, 2.0, 4.0)), record("two", tok_per_s=(8.0, 6.0, 4.0))
    found = find_ratios([ours, one, two])
    assert [(a.bundle, b.bundle) for a, b, _ in found] == [("tuned", "one"), ("tuned", "two")]
    rows = peer_rows([ours, one, two, record(pair="")])
    assert [row.theirs.peer for row in rows] == ["one", "two"]
    assert [row.ratio for row in rows] == [3.0, 1.0]


def test_limits_and_peers_survive_the_journal(tmp_path) -> None:
    path = tmp_path / "bench.jsonl"
    limits = MatmulLimits("torch 1 on CPU", 1024, {"f32": 233.1})
    append_bench(path, [record(), record("one")], None, {"matmul": limits.to_json()})
    records, _ = read_bench(path)
    assert [found.peer for found in records] == ["", "one"]
    assert MatmulLimits.from_json(read_limits(path, "matmul") or {}) == limits
    assert read_limits(tmp_path / "none.jsonl", "matmul") is None


def test_torch_is_asked_only_where_it_was_named() -> None:
    assert matmul_limits(["rwkv"], "/nowhere/python", None) is None  # type: ignore[arg-type]
    assert TORCH not in ENGINES


def test_a_square_product_is_held_against_the_other_librarys() -> None:
    def row(problem: str, flops: float) -> KernelRow:
        return KernelRow("gemm", "f16", problem, "", 2e6, 0, 8e6, 1, cost=(flops, 1.0))

    square, wide = row("M64.K64.S1.T64.X32.Y32", 4e8), row("M64.K64.S1.T32.X32.Y32", 2e8)
    limits = MatmulLimits("torch", 64, {"f32": 400.0})
    (found,) = product_rows([square, wide], limits)
    assert (found.size, found.tuned, found.default, found.limit) == (64, 200.0, 50.0, 400.0)
    (other,) = product_rows([square], MatmulLimits("torch", 128, {"f32": 400.0}))
    assert np.isnan(other.limit)
