"""The .pth reader: real files of the RWKV author, odd layouts, and archives made to do harm."""

import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import check_finite, open_checkpoint
from tests.runtime.model_files import (
    DATA,
    ORDERED_DICT,
    Call,
    Global,
    Storage,
    dumps,
    tensor,
    write_archive,
    write_pth,
)

REAL = {
    "251016_rosa_1bit_run.pth": (10, "emb_rosa.emb.weight", (11, 32)),
    "251018_rosa_4bit_run.pth": (18, "emb_rosa.emb.weight", (11, 64)),
    "251024_rosaQKV_L2_digit20.pth": (99, "ln1a.weight", (128,)),
    "260123_reverse_L2.pth": (99, "ln1a.weight", (32,)),
    "260123_reverse_L2_only_rwkv7.pth": (99, "ln1a.weight", (32,)),
}


@pytest.mark.parametrize("name", REAL)
def test_published_checkpoints_open(name):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in ../shared/data")
    count, known, shape = REAL[name]
    with open_checkpoint(DATA / name) as checkpoint:
        check_finite(checkpoint)
        assert len(checkpoint) == count
        assert checkpoint.shape(known) == shape
        assert {checkpoint.dtype(n) for n in checkpoint} == {"f32"}
        with zipfile.ZipFile(DATA / name) as archive:
            stored = {n for n in archive.namelist() if "/data/" in n}
            first = next(iter(checkpoint))
            root = next(iter(stored)).split("/")[0]
            content = archive.read(f"{root}/data/0")
        assert len(stored) == count
        assert checkpoint.raw(first).tobytes() == content


def open_tree(tmp_path, value, storages=None, **options):
    path = tmp_path / "m.pth"
    program = value if isinstance(value, bytes) else dumps(value)
    write_archive(path, program, storages or {"0": bytes(48)}, **options)
    return open_checkpoint(path)


def refused(tmp_path, value, storages=None, **options):
    with pytest.raises(ModelError) as caught:
        open_tree(tmp_path, value, storages, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def floats(elements=12, key="0"):
    return Storage(key, "FloatStorage", elements)


def test_transposed_and_parameter_tensors_read_exactly(tmp_path):
    rng = np.random.default_rng(2)
    arrays = {
        "plain": rng.standard_normal((3, 4)).astype(np.float32),
        "turned": rng.standard_normal((5, 3)).astype(np.float32),
        "bf16": rng.integers(0, 0x4000, (6, 2)).astype(np.uint16),
    }
    path = write_pth(tmp_path / "m", arrays, transposed=("turned", "bf16"), parameters=("plain",))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.raw("turned").flags.f_contiguous
        np.testing.assert_array_equal(checkpoint.tensor("turned"), arrays["turned"])
        np.testing.assert_array_equal(checkpoint.tensor("plain"), arrays["plain"])
        wide = (arrays["bf16"].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(checkpoint.tensor("bf16"), wide)
        assert checkpoint.tensor("bf16").flags.c_contiguous


def test_views_into_a_shared_storage_read_exactly(tmp_path):
    data = np.arange(12, dtype=np.float32)
    tree = {
        "rows": tensor(floats(), 4, (2, 2), (4, 1)),
        "column": tensor(floats(), 2, (3, 1), (4, 99)),
        "none": tensor(floats(), 12, (0, 3), (3, 1)),
        "scalar": tensor(floats(), 11, (), ()),
    }
    with open_tree(tmp_path, tree, {"0": data.tobytes()}) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor("rows"), [[4, 5], [8, 9]])
        np.testing.assert_array_equal(checkpoint.tensor("column"), [[2], [6], [10]])
        assert checkpoint.tensor("none").shape == (0, 3)
        assert checkpoint.tensor("scalar") == 11


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_reads(tmp_path, protocol):
    tree = {"a": tensor(floats(), 0, (12,), (1,)), "é" * 300: tensor(floats(), 0, (1,), (1,))}
    with open_tree(tmp_path, dumps(tree, protocol)) as checkpoint:
        assert len(checkpoint) == 2


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (Call(Global("posix", "system"), "touch pwned"), "posix.system"),
        (Call(Global("builtins", "eval"), "1"), "builtins.eval"),
        (Call(Global("torch._utils", "_rebuild_tensor_v3"), 1), "torch._utils._rebuild_tensor_v3"),
        (Call(Global("collections", "OrderedDict"), [1]), "calls collections.OrderedDict with 1"),
        (Global("torch", "load"), "torch.load"),
        (Storage("0", "LongStorage", 4), "torch.LongStorage; only float32"),
        (Call("os.system", "x"), "calls something that is no name"),
        (tensor(1, 0, (1,), (1,)), "a tensor without a storage"),
        (1.5, "is a float, not a tensor"),
        ({"nested": 1}, "is a dict, not a tensor"),
    ],
)
def test_a_pickle_that_asks_for_more_is_refused_by_name(tmp_path, target, named):
    assert named in refused(tmp_path, {"a": target})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02(S'ls'\nios\nsystem\n.", "instruction 0x53"),
        (b"\x80\x02}K\x01K\x02s.", "dictionary key that is a int"),
        (b"\x80\x02}]]s.", "dictionary key that is a list"),
        (b"\x80\x02K\x05.", "holds a int"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02u.", "mark that was never set"),
        (b"\x80\x02h\x05.", "recalls value 5"),
        (b"\x80\x02X\xff\xff\xff\x7fabc", "ends in the middle"),
        (b"\x80\x02\x8a\xff.", "an integer of 255 bytes"),
        (b"\x80\x02K\x01}b.", "sets attributes of a int"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction 0x81"),
        (b"\x80\x02}", "ends in the middle"),
        (b"\x80\x09}.", "protocol newer than 5"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
    ],
)
def test_a_damaged_or_hostile_pickle_is_refused(tmp_path, program, says):
    assert says in refused(tmp_path, program)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (-1, (2,), (1,)),
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (0, (3, 4), (4, 2)),
        (0, (-3, -4), (4, 1)),
        (0, (2, 2), (-1, 1)),
        (0, (2,), (2**62,)),
        (0, (2**62, 0), (1, 1)),
        (0, (2**40,), (0,)),
        (0, (2**40, 2**40), (0, 0)),
        (13, (0,), (1,)),
        (0, (2, 2), (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, [2], [1]),
        (0, (True,), (1,)),
        (2**64 - 1, (1,), (1,)),
        (0.0, (1,), (1,)),
        (None, (1,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, offset, shape, strides):
    said = refused(tmp_path, {"bad": tensor(floats(), offset, shape, strides)})
    assert "'bad'" in said or "integer of" in said


def test_storages_that_lie_are_refused(tmp_path):
    good = tensor(floats(), 0, (12,), (1,))
    assert "file holds 11" in refused(tmp_path, {"a": good}, {"0": bytes(44)})
    assert "which the archive lacks" in refused(tmp_path, {"a": good}, {"1": bytes(48)})
    negative = tensor(floats(-1), 0, (0,), (1,))
    assert "storage of -1 elements" in refused(tmp_path, {"a": negative})
    packed = refused(tmp_path, {"a": good}, {"0": bytes(48)}, method=zipfile.ZIP_DEFLATED)
    assert "compressed" in packed


def test_many_tensors_over_one_storage_are_refused(tmp_path):
    tree = {str(i): tensor(floats(5000), 0, (5000,), (1,)) for i in range(50)}
    assert "share their storages" in refused(tmp_path, tree, {"0": bytes(20_000)})


def test_zip_bombs_and_odd_archives_are_refused(tmp_path):
    bomb = [("model/version", bytes(10_000_000))]
    tree = {"a": tensor(floats(), 0, (12,), (1,))}
    assert "zip bomb" in refused(tmp_path, tree, method=zipfile.ZIP_DEFLATED, extra=bomb)
    assert "2 members called data.pkl" in refused(tmp_path, tree, extra=[("b/data.pkl", b"x")])
    with pytest.warns(UserWarning, match="Duplicate name"):
        said = refused(tmp_path, tree, extra=[("model/data/0", b"x")])
    assert "two members are called" in said
    path = tmp_path / "plain.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ModelError, match="0 members called data"):
        open_checkpoint(path)


def test_a_directory_that_points_outside_is_refused(tmp_path):
    path = write_pth(tmp_path / "m", {"a": np.zeros(12, np.float32)})
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)
    for place, says in ((42, "claims"), (24, "zip bomb"), (24, "two sizes"), (28, "beyond")):
        hurt = bytearray(whole)
        hurt[entry + place : entry + place + 2] = b"\x10\0" if "two" in says else b"\xf0\xf0"
        path.write_bytes(hurt)
        with pytest.raises(ModelError, match=says):
            open_checkpoint(path)
    hurt = bytearray(whole)
    hurt[-10:-6] = struct.pack("<L", 2**31)
    path.write_bytes(hurt)
    with pytest.raises(ModelError, match="its directory claims"):
        open_checkpoint(path)


def test_flipped_bytes_in_the_pickle_fail_its_checksum(tmp_path):
    path = write_pth(tmp_path / "m", {"name": np.zeros(12, np.float32)})
    path.write_bytes(path.read_bytes().replace(b"name", b"nome", 1))
    with pytest.raises(ModelError, match="fails its checksum"):
        open_checkpoint(path)


def test_a_deflated_pickle_with_stored_tensors_is_read(tmp_path):
    path = tmp_path / "m"
    with zipfile.ZipFile(path, "w") as archive:
        program = dumps({"a": tensor(floats(), 0, (12,), (1,))})
        archive.writestr("x/data.pkl", program, zipfile.ZIP_DEFLATED)
        archive.writestr("x/data/0", bytes(48))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names == ("a",)


HOSTILE = {
    "empty dictionaries": b"}" * 300_000,
    "nested lists": b"]" * 150_000 + b"a" * 149_999 + b".",
    "far memo": b"}r\xff\xff\xff\x7f0",
    "wide strings": b"X\x40\x42\x0f\x00" + "é🌍".encode().ljust(1_000_000, b"a") + b"q\x00" * 9,
    "huge string": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    "huge bytearray": b"\x96\xff\xff\xff\xff\xff\xff\xff\x00",
    "doubling tuples": b")" + b"q\x00h\x00\x86" * 80_000 + b".",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_cannot_take_memory(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("kernelforge_runtime.weights.pth._BASE_BUDGET_BYTES", 2_000_000)
    path = write_archive(tmp_path / "m", b"\x80\x02" + HOSTILE[kind], {})
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * size + 4_000_000


def test_attributes_of_the_dictionary_are_ignored(tmp_path):
    # torch adds `_metadata` to a state dict with BUILD; seen in published checkpoints.
    inner = dumps({"a": tensor(floats(), 0, (12,), (1,))})
    program = inner[:-1] + b"}X\x01\x00\x00\x00xK\x01sb."
    with open_tree(tmp_path, program) as checkpoint:
        assert checkpoint.names == ("a",)
    assert ORDERED_DICT.name == "OrderedDict"
