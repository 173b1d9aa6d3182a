"""A table left in its file gives the same rows as one that was read, and costs no memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import open_checkpoint
from tests.runtime.model_files import write_pth, write_safetensors

ROWS, COLUMNS = 50, 12
IDS = np.array([3, 49, 0, 3, 17])


def stored(dtype):
    rng = np.random.default_rng(0)
    if dtype == "bf16":
        return rng.integers(0, 0x7F00, (ROWS, COLUMNS)).astype(np.uint16)
    return rng.standard_normal((ROWS, COLUMNS)).astype(dtype)


@pytest.mark.parametrize("dtype", ["f4", "f2", "bf16"])
@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_rows_equal_those_of_the_whole_tensor(tmp_path, write, dtype):
    with open_checkpoint(write(tmp_path / "m", {"emb": stored(dtype)})) as checkpoint:
        table, whole = checkpoint.lazy_rows("emb"), checkpoint.tensor("emb")
    assert table.shape == (ROWS, COLUMNS)
    assert table.dtype.name == {"f4": "f32", "f2": "f16"}.get(dtype, dtype)
    for ids in (IDS, IDS.astype(np.uint32), IDS[:0]):
        rows = table.rows(ids)  # the checkpoint is closed by now
        assert rows.dtype == np.float32
        assert rows.shape == (len(ids), COLUMNS)
        np.testing.assert_array_equal(rows, whole[ids])


def test_rows_are_copies(tmp_path):
    with open_checkpoint(write_safetensors(tmp_path / "m", {"emb": stored("f4")})) as checkpoint:
        table = checkpoint.lazy_rows("emb")
    table.rows(IDS)[:] = 0
    np.testing.assert_array_equal(table.rows(IDS), stored("f4")[IDS])


def test_a_transposed_table_is_read_by_its_rows(tmp_path):
    path = write_pth(tmp_path / "m", {"emb": stored("f2")}, transposed=("emb",))
    with open_checkpoint(path) as checkpoint:
        table = checkpoint.lazy_rows("emb")
    np.testing.assert_array_equal(table.rows(IDS), stored("f2")[IDS])


def test_what_is_no_table_of_floats_is_refused(tmp_path):
    path = write_safetensors(tmp_path / "m", {"emb": stored("f4"), "vector": np.zeros(3, "f4")})
    checkpoint = open_checkpoint(path)
    with pytest.raises(ModelError, match=r"'vector' has shape \[3\], expected a table"):
        checkpoint.lazy_rows("vector")
    with pytest.raises(ModelError, match="no tensor 'head'"):
        checkpoint.lazy_rows("head")
    checkpoint.close()
    with pytest.raises(ModelError, match="after the file was closed"):
        checkpoint.lazy_rows("emb")


BIG_ROWS, BIG_COLUMNS = 50_000, 1024
MEASURE = """
import json, re, sys
from pathlib import Path
import numpy as np
from kernelforge_runtime.weights import open_checkpoint

def peak_kib():
    # Not getrusage: its figure begins with the parent's, which is large in a long test run.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

with open_checkpoint(sys.argv[1]) as checkpoint:
    before = peak_kib()
    table = checkpoint.lazy_rows("emb")
    rows = table.rows(np.arange(0, table.shape[0], table.shape[0] // 20))
    after = peak_kib()
    whole = checkpoint.tensor("emb").nbytes  # what the figure would show if all were read
print(json.dumps([after - before, peak_kib() - before, whole, float(rows[-1, -1])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_table_of_200_megabytes_costs_no_memory(tmp_path):
    path = tmp_path / "big.safetensors"
    nbytes = 4 * BIG_ROWS * BIG_COLUMNS
    head = json.dumps(
        {"emb": {"dtype": "F32", "shape": [BIG_ROWS, BIG_COLUMNS], "data_offsets": [0, nbytes]}}
    ).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + nbytes)  # a hole: the disk is not filled either
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lazy_kib, read_kib, whole, value = json.loads(done.stdout)
    assert whole == nbytes
    assert value == 0
    assert lazy_kib < 8 * 1024
    assert read_kib > 150 * 1024  # the figure does see memory
