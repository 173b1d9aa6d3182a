"""What `open_checkpoint` says about files that are no checkpoint, and what a checkpoint gives."""

import hashlib
import os

import numpy as np
import pytest

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import check_finite, open_checkpoint
from tests.runtime.model_files import safetensors_bytes, write_pth, write_safetensors


def arrays():
    rng = np.random.default_rng(0)
    return {
        "emb.weight": rng.standard_normal((7, 4)).astype(np.float32),
        "half": rng.standard_normal((2, 3, 5)).astype(np.float16),
        "brain": rng.integers(0, 0x7F00, (9,)).astype(np.uint16),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }


def expected(array):
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_every_tensor_comes_back_exactly(tmp_path, write):
    # The suffix says nothing: content decides.
    with open_checkpoint(write(tmp_path / "model.bin", arrays())) as checkpoint:
        assert checkpoint.names == tuple(arrays())
        assert len(checkpoint) == 5
        assert "emb.weight" in checkpoint
        assert "head.weight" not in checkpoint
        for name, array in arrays().items():
            assert checkpoint.shape(name) == array.shape
            assert checkpoint.nbytes(name) == array.nbytes
            assert checkpoint.dtype(name) == {"half": "f16", "brain": "bf16"}.get(name, "f32")
            np.testing.assert_array_equal(checkpoint.raw(name), array)
            got = checkpoint.tensor(name)
            assert got.dtype == np.float32
            assert got.shape == array.shape
            assert got.flags.c_contiguous
            assert got.flags.writeable
            np.testing.assert_array_equal(got, expected(array))


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_file_without_metadata_has_an_empty_one(tmp_path, write):
    with open_checkpoint(write(tmp_path / "m", arrays())) as checkpoint:
        assert checkpoint.metadata == {}


def test_raw_is_a_read_only_view_that_outlives_the_checkpoint(tmp_path):
    checkpoint = open_checkpoint(write_safetensors(tmp_path / "m", arrays()))
    view = checkpoint.raw("emb.weight")
    assert not view.flags.owndata
    assert not view.flags.writeable
    checkpoint.close()
    checkpoint.close()
    np.testing.assert_array_equal(view, arrays()["emb.weight"])
    with pytest.raises(ModelError, match="after the file was closed"):
        checkpoint.raw("emb.weight")
    with pytest.raises(ModelError, match="after the file was closed"):
        checkpoint.sha256()


def test_sha256_is_that_of_the_file(tmp_path):
    path = write_safetensors(tmp_path / "m", arrays())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_unknown_tensor_is_named(tmp_path):
    with (
        open_checkpoint(write_safetensors(tmp_path / "m", arrays())) as checkpoint,
        pytest.raises(ModelError, match=r"no tensor 'head\.weight'"),
    ):
        checkpoint.tensor("head.weight")


@pytest.mark.parametrize("name", ["emb.weight", "half", "brain"])
@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_check_finite_names_the_first_bad_tensor(tmp_path, write, name):
    bad = arrays()
    with open_checkpoint(write(tmp_path / "good", bad)) as checkpoint:
        check_finite(checkpoint)
    bad[name][(-1,) * bad[name].ndim] = 0x7FC0 if name == "brain" else np.inf
    with (
        open_checkpoint(write(tmp_path / "bad", bad)) as checkpoint,
        pytest.raises(ModelError, match=f"tensor {name!r} holds NaN or infinity"),
    ):
        check_finite(checkpoint)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (LFS, "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\n\n<html lang='en'>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF file, which is not supported"),
        (b"fmgg\x65\0\0\0\0\1\0\0", "ggmf format"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before version 1.6"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip"),
        (b"PK\x03\x04" + bytes(100), "cut short"),
        (b"plain text, not a model", "neither a torch"),
        (b"\xff" * 8 + b"{", "header says 18446744073709551615 bytes"),
        (safetensors_bytes({}), "without tensors"),
    ],
)
def test_a_file_of_another_kind_gets_one_line(tmp_path, content, says):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_a_folder_and_a_pipe_get_one_line(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        open_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(ModelError, match="a folder"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")
    with pytest.raises(ModelError, match="cannot be opened"):
        open_checkpoint("a\0b")


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_a_file_cut_anywhere_is_refused(tmp_path, write):
    whole = write(tmp_path / "whole", arrays()).read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            open_checkpoint(cut)
