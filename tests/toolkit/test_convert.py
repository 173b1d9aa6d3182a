"""Converted files: exact, rounded as asked, reproducible, and whole or not there at all."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kernelforge.convert import convert_checkpoint
from kernelforge.convert.checkpoint import _blocks
from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge.errors import ConvertError
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import open_checkpoint
from tests.runtime.model_files import DATA, write_pth

ROOT = Path(__file__).parents[2]


def arrays():
    rng = np.random.default_rng(0)
    return {
        "emb.weight": rng.standard_normal((9, 4)).astype(np.float32),
        "turned": rng.standard_normal((4, 6)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "brain": rng.integers(0, 0x4380, (3, 3)).astype(np.uint16),
        "scalar": np.array(0.5, np.float32),
    }


@pytest.fixture
def source(tmp_path):
    return write_pth(tmp_path / "model.pth", arrays(), transposed=("turned",))


def run_child(code, *arguments):
    """A child process with the checkout on its path; the finished process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "runtime")))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_tensor_keeps_its_name_shape_format_and_bits(tmp_path, source):
    made = convert_checkpoint(source, tmp_path / "m.safetensors")
    assert (made.tensors, made.cast) == (5, 0)
    assert made.nbytes == made.path.stat().st_size
    with open_checkpoint(source) as old, open_checkpoint(made.path) as new:
        assert set(old.names) == set(new.names)
        for name in old:
            assert (old.dtype(name), old.shape(name)) == (new.dtype(name), new.shape(name))
            np.testing.assert_array_equal(old.raw(name), new.raw(name))
            assert new.raw(name).flags.aligned


def test_the_library_reads_what_was_written(tmp_path):
    published = DATA / "260123_reverse_L2.pth"
    if not published.exists():
        pytest.skip("260123_reverse_L2.pth is not in ../shared/data")
    path = convert_checkpoint(published, tmp_path / "m.safetensors").path
    read = safetensors.numpy.load_file(path)
    with open_checkpoint(published) as old:
        assert set(read) == set(old.names)
        for name in old:
            np.testing.assert_array_equal(read[name], old.raw(name))
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_cast_rounds_to_nearest_even(tmp_path, source, dtype):
    convert_checkpoint(source, tmp_path / "m.safetensors", dtype)
    with open_checkpoint(source) as old, open_checkpoint(tmp_path / "m.safetensors") as new:
        for name in old:
            assert new.dtype(name) == dtype
            bits = {"f32": 24, "f16": 11, "bf16": 8}[dtype]
            want, got = old.tensor(name), new.tensor(name)
            np.testing.assert_allclose(got, want, rtol=2.0**-bits, atol=2.0**-25)


def test_bf16_ties_go_to_even_and_nan_stays_nan(tmp_path):
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFF800000], np.uint32)
    write_pth(tmp_path / "m.pth", {"a": bits.view(np.float32)})
    convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors", "bf16")
    with open_checkpoint(tmp_path / "m.safetensors") as new:
        got = new.raw("a")
        np.testing.assert_array_equal(got[[0, 1, 2, 4]], [0x3F80, 0x3F82, 0x3F81, 0xFF80])
        assert np.isnan(new.tensor("a")[3])


@pytest.mark.parametrize(("dtype", "value"), [("f16", 65520.0), ("bf16", 3.4e38)])
def test_an_overflow_names_the_tensor_and_writes_nothing(tmp_path, dtype, value):
    write_pth(tmp_path / "m.pth", {"fine": np.ones(3, np.float32), "big": np.full(2, value, "f4")})
    with pytest.raises(ConvertError, match=f"2 values of tensor 'big' are too large for {dtype}"):
        convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors", dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]


def test_infinity_that_was_there_before_is_no_overflow(tmp_path):
    write_pth(tmp_path / "m.pth", {"a": np.array([np.inf, 1], np.float32)})
    convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors", "f16")


def test_the_same_source_gives_the_same_bytes(tmp_path, source):
    first = convert_checkpoint(source, tmp_path / "a.safetensors").path.read_bytes()
    backwards = dict(reversed(arrays().items()))
    write_pth(tmp_path / "b.pth", backwards)
    for _ in range(3):
        again = convert_checkpoint(tmp_path / "b.pth", tmp_path / "b.safetensors").path
        assert again.read_bytes() == first
    convert_checkpoint(again, again)  # in place
    assert again.read_bytes() == first


def test_a_file_gets_ordinary_permissions(tmp_path, source):
    old = os.umask(0o022)
    try:
        path = convert_checkpoint(source, tmp_path / "m.safetensors").path
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [
        ("absent/m.safetensors", None, "No such file or directory: check that the folder"),
        ("model.pth/m.safetensors", None, "Not a directory: check that the folder"),
        ("m.pth", None, r"end the name in \.safetensors"),
        ("folder.safetensors", None, "is a folder"),
        ("m.safetensors", "q3", "known formats are f32 f16 bf16"),
    ],
)
def test_a_destination_that_cannot_be_gets_one_line(tmp_path, source, name, dtype, says):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ConvertError, match=says) as caught:
        convert_checkpoint(source, tmp_path / name, dtype)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        convert_checkpoint(tmp_path / "absent.pth", tmp_path / "m.safetensors")


def test_a_folder_without_write_permission_gets_one_line(tmp_path, source):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    with pytest.raises(ConvertError, match="Permission denied"):
        convert_checkpoint(source, folder / "m.safetensors")


def test_too_little_room_is_said_before_writing(tmp_path, source, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ConvertError, match=r"needs .* MB but the disk has 0\.0 MB left"):
        convert_checkpoint(source, tmp_path / "m.safetensors")


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    write_pth(tmp_path / "m.pth", {"a": np.zeros(100_000, np.float32)})
    (tmp_path / "m.safetensors").write_bytes(b"old")
    code = (
        "import resource, sys\n"
        "from kernelforge.convert import convert_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "convert_checkpoint(sys.argv[1], sys.argv[2])\n"
    )
    done = run_child(code, tmp_path / "m.pth", tmp_path / "m.safetensors")
    assert "cannot be written: File too large" in done.stderr
    assert (tmp_path / "m.safetensors").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from kernelforge.convert.writer import TensorPlan, write_safetensors\n"
        "def pieces(name):\n"
        "    yield np.zeros(1_000_000, np.float32)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_safetensors(Path(sys.argv[1]), [TensorPlan('a', 'f32', (2_000_000,))], pieces)\n"
    )
    assert run_child(code, target).returncode == -9
    assert target.read_bytes() == b"old"
    if hasattr(os, "O_TMPFILE"):
        assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_pieces_that_do_not_add_up_are_refused(tmp_path):
    plans = [TensorPlan("a", "f32", (3,))]
    with pytest.raises(ConvertError, match="gave 8 bytes, its shape needs 12"):
        write_safetensors(tmp_path / "m", plans, lambda _: [np.zeros(2, np.float32)])
    with pytest.raises(ConvertError, match="two tensors are called 'a'"):
        write_safetensors(tmp_path / "m", plans * 2, lambda _: [np.zeros(3, np.float32)])
    assert list(tmp_path.iterdir()) == []


def test_pieces_cover_an_array_in_order(monkeypatch):
    monkeypatch.setattr("kernelforge.convert.checkpoint._PIECE_ELEMENTS", 10)
    for shape in ((), (25,), (3, 4), (7, 4), (2, 3, 20), (3, 0, 5), (40, 1)):
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        pieces = list(_blocks(array))
        assert all(piece.size <= 10 for piece in pieces)
        np.testing.assert_array_equal(np.concatenate([p.ravel() for p in pieces]), array.ravel())


def test_memory_stays_below_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelforge.convert.checkpoint._PIECE_ELEMENTS", 1 << 16)
    big = {str(i): np.ones((2000, 1000), np.float32) for i in range(3)}
    write_pth(tmp_path / "m.pth", big)
    tracemalloc.start()
    try:
        convert_checkpoint(tmp_path / "m.pth", tmp_path / "m.safetensors", "bf16")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
