"""Damaged and hostile model files, made by mutating good ones: every reader refuses or reads.

No other exception, no long wait, no memory beyond the file's own size. The suite runs a few
hundred cases; KERNELFORGE_FUZZ_CASES=100000 runs that many, shared between the three formats.
"""

import contextlib
import os
import struct
import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import check_finite, open_checkpoint
from tests.runtime.ggmf import official, parse
from tests.runtime.model_files import (
    DATA,
    Storage,
    dumps,
    safetensors_bytes,
    tensor,
    write_archive,
    write_pth,
    write_safetensors,
)
from tests.runtime.test_ggmf import header as ggmf_bytes

CASES = int(os.environ.get("KERNELFORGE_FUZZ_CASES", "300"))
BASE_BYTES = 4_000_000
SLOWEST_S = 5.0

FUZZ = settings(
    max_examples=max(1, CASES // 3),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)

EDIT = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("extreme"), st.floats(0, 1), st.sampled_from(EXTREMES)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 40)),
    st.tuples(st.just("splice"), st.floats(0, 1), st.tuples(st.floats(0, 1), st.integers(1, 200))),
    st.tuples(st.just("digit"), st.floats(0, 1), st.sampled_from(b'0123456789-.e"{}[],')),
)
EDITS = st.lists(EDIT, min_size=1, max_size=5)


def mutate(blob, edits):
    """`blob` with the edits applied; places are fractions of its length."""
    data = bytearray(blob)
    for kind, place, value in edits:
        at = int(place * max(0, len(data) - 1))
        if kind == "flip" and data:
            data[at] ^= value
        elif kind == "set":
            data[at : at + len(value)] = value
        elif kind == "extreme":
            width = 4 if value < 2**32 else 8
            data[at : at + width] = value.to_bytes(width, "little")
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = value
        elif kind == "drop":
            del data[at : at + value]
        elif kind == "splice":
            start = int(value[0] * len(data))
            data[at:at] = data[start : start + value[1]]
        elif kind == "digit":
            digits = [i for i, byte in enumerate(data) if byte in b"0123456789"]
            if digits:
                data[digits[int(place * (len(digits) - 1))]] = value
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for the case at hand."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def good(folder):
    """Good files to start from: format -> list of bytes; "pickle" has pickles alone."""
    rng = np.random.default_rng(0)
    arrays = {
        "emb.weight": rng.standard_normal((6, 4)).astype(np.float32),
        "blocks.0.att.key.weight": rng.standard_normal((4, 4)).astype(np.float16),
        "blocks.0.ln1.weight": rng.integers(0, 0x4000, 4).astype(np.uint16),
        "head.weight": rng.standard_normal((6, 4)).astype(np.float32),
    }
    pth = write_pth(folder / "a", arrays, transposed=("head.weight",), parameters=("emb.weight",))
    files = [pth.read_bytes()]
    published = DATA / "251016_rosa_1bit_run.pth"
    if published.exists():
        files.append(published.read_bytes())
    tree = {"a": tensor(Storage("0", "FloatStorage", 12), 2, (2, 3), (3, 1)), "b": None}
    tree["b"] = tensor(Storage("1", "BFloat16Storage", 8), 0, (2, 2, 2), (1, 2, 4))
    with_reader = write_safetensors(folder / "a", arrays).read_bytes()
    r_k = (b"blocks.0.att.r_k", 0, (2, 1), bytes(8))
    shifts = (b"blocks.0.att.x_rwkvag", 1, (2, 1, 6), bytes(24))
    emb = (b"emb.weight", 0, (2, 4), bytes(32))
    packed = (b"blocks.0.ffn.key.weight", 8, (32, 2), bytes(48))
    decay = (b"blocks.0.att.time_decay", 0, (1, 2, 2), bytes(16))
    ln_x = (b"blocks.0.att.ln_x.weight", 0, (4,), bytes(16))
    w1 = (b"blocks.0.att.w1", 1, (4, 2), bytes(16))
    return {
        "pth": files,
        "pickle": [dumps(tree, protocol) for protocol in (2, 4)],
        "safetensors": [with_reader],
        "ggmf": [ggmf_bytes(emb, r_k, shifts, packed, w1), ggmf_bytes(emb, ln_x, decay)],
    }


@contextmanager
def bounded(limit_bytes):
    """Fails where the block takes more memory or time than a reader may."""
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        assert time.process_time() - started < SLOWEST_S
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def read_all(path, size):
    """Opens a file and reads every tensor; only ModelError may come out."""
    try:
        with bounded(3 * size + BASE_BYTES), open_checkpoint(path) as checkpoint:
            total = sum(checkpoint.nbytes(name) for name in checkpoint)
            assert total <= 2 * size
            for name in checkpoint:
                if checkpoint.dtype(name) in ("f32", "f16", "bf16"):
                    assert checkpoint.tensor(name).shape == checkpoint.shape(name)
                assert checkpoint.raw(name).nbytes == checkpoint.nbytes(name)
            check_finite(checkpoint)
    except ModelError as error:
        assert "\n" not in str(error)


@FUZZ
@given(st.integers(0, 9), st.booleans(), EDITS)
def test_a_mutated_pth_is_read_or_refused(folder, good, choice, inside, edits):
    path = folder / "case"
    if inside:  # a pickle of its own archive: the checksum must not be what stops it
        program = mutate(good["pickle"][choice % 2], edits)
        write_archive(path, program, {"0": bytes(48), "1": bytes(16)})
    else:
        path.write_bytes(mutate(good["pth"][choice % len(good["pth"])], edits))
    read_all(path, path.stat().st_size)


@FUZZ
@given(st.integers(0, 2), EDITS, st.binary(max_size=60))
def test_a_mutated_safetensors_is_read_or_refused(folder, good, how, edits, noise):
    blob = good["safetensors"][0]
    length = struct.unpack_from("<Q", blob)[0]
    if how == 0:
        blob = mutate(blob, edits)
    elif how == 1:  # the header alone, with a length that is right again
        blob = safetensors_bytes(mutate(blob[8 : 8 + length], edits), blob[8 + length :])
    else:
        blob = safetensors_bytes(b"{" + noise, blob[8 + length :])
    (folder / "case.safetensors").write_bytes(blob)
    read_all(folder / "case.safetensors", len(blob))


@FUZZ
@given(st.integers(0, 1), EDITS)
def test_a_mutated_ggmf_is_read_or_refused(good, choice, edits):
    blob = mutate(good["ggmf"][choice], edits)
    with bounded(8 * len(blob) + BASE_BYTES), contextlib.suppress(ValueError):
        arrays = official(parse(blob))
        assert all(array.dtype == np.float32 for array in arrays.values())
