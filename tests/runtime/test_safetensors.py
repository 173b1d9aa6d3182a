"""The safetensors reader agrees with the library on good files and refuses hostile headers."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.safetensors import MAX_METADATA_BYTES, read_safetensors
from tests.runtime.model_files import safetensors_bytes


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(blob):
    with pytest.raises(ModelError) as caught:
        read_safetensors(blob, len(blob), "model")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_the_library_read_the_same(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        'a b\n"quoted" \\ é 🌍': rng.standard_normal((3, 5)).astype(np.float32),
        "half": rng.standard_normal(7).astype(np.float16),
        "ints": np.arange(6, dtype=np.int8),
        "words": np.arange(5, dtype=np.uint32),
        "empty": np.zeros((3, 0), np.float32),
    }
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"by": 'a "test" \\ é'})
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint.raw(name), array)
        assert checkpoint.dtype("ints") == "i8"
        assert checkpoint.metadata == {"by": 'a "test" \\ é'}
        with pytest.raises(ModelError, match="is i8, weights are"):
            checkpoint.tensor("ints")


def test_the_shortest_scalar_and_odd_spacing_are_read():
    text = b' { "s" : {\n"shape":[ ] ,"data_offsets":[0,4],\t"dtype":"F32"} }   '
    blob = safetensors_bytes(text.lstrip(), b"\0\0\0\0")
    assert read_safetensors(blob, len(blob), "m")[0]["s"].shape == ()


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(offsets=(0, 4))}, "needs 8 bytes, its offsets give 4"),
        ({"a": entry(offsets=(4, 12))}, "leaves a hole"),
        ({"a": entry(offsets=(8, 0))}, "leaves a hole"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "overlaps the tensor before it"),
        ({"a": entry(), "b": entry()}, "overlaps the tensor before it"),
        ({"a": entry(shape=(3,), offsets=(0, 12))}, "cut short"),
        ({"a": entry(shape=(1,), offsets=(0, 4))}, "belong to no tensor"),
        ({"a": entry(dtype="F8_E4M3")}, "dtype 'F8_E4M3'"),
        ({"a": entry(dtype=5)}, 'expected "'),
        ({"a": entry(shape=(-2,))}, "no whole number"),
        ({"a": entry(shape=(2.5,))}, "expected ,"),
        ({"a": entry(shape=(2**62, 0), offsets=(0, 0))}, "claims shape"),
        ({"a": entry(shape=(2**33, 2**33), offsets=(0, 8))}, "claims shape"),
        ({"a": entry(shape=(10**30,))}, "no whole number"),
        ({"a": entry(shape=(1,) * 9)}, "more than 8 numbers"),
        ({"a": entry(offsets=(0, 8, 8))}, "more than 2 numbers"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "needs dtype, shape and two"),
        ({"a": entry() | {"x": 1}}, "unexpected or repeated field 'x'"),
        ({"a": [1]}, "expected {"),
        ({"__metadata__": {"k": 5}}, 'expected "'),
        (b'{"__metadata__":{"k":"\xff"}}', "not valid JSON in UTF-8"),
        (b'{"__metadata__":{"k":"1","k":"2"}}', "metadata 'k' appears twice"),
        ({"__metadata__": {"k" * 2000: "1"}}, "a name of 2000 bytes"),
        ({"n" * 2000: entry()}, "a name of 2000 bytes"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2]}}', "repeated field 'dtype'"),
        (b"[1, 2]", "an object must come first"),
        (b"not json", "an object must come first"),
        (b'{"a', "a string does not end"),
        (b'{"a":', "expected {"),
        (b'{"\xff\xfe":{}}', "not valid JSON in UTF-8"),
        (b'{"\\ud800":{}}', "not valid JSON in UTF-8"),
        (b"{} {}", "text after the object"),
        (b"{} \0", "text after the object"),
    ],
)
def test_a_wrong_header_is_refused_however_it_is_spaced(header, says):
    texts = [header]
    if isinstance(header, dict):
        texts = [json.dumps(header, separators=by).encode() for by in ((",", ":"), (" , ", " : "))]
    for text in texts:
        assert says in refused(safetensors_bytes(text, bytes(8)))


def test_a_header_without_spaces_says_the_same_as_one_with_them():
    header = {
        "a": entry(shape=(), offsets=(0, 4)),
        "b c\u00e9": entry("BF16", (2, 0, 3), (4, 4)),
        "d": entry("I8", (1,) * 8, (4, 5)),
    }
    found = []
    for by in ((",", ":"), (" , ", " : ")):
        text = json.dumps(header, separators=by).encode()
        blob = safetensors_bytes(text + b" " * (300 - len(text)), bytes(5))
        found.append(read_safetensors(blob, len(blob), "m"))
    assert found[0] == found[1]
    assert [e.shape for e in found[0][0].values()] == [(), (2, 0, 3), (1,) * 8]


def test_metadata_of_any_length_is_accepted_and_very_long_texts_are_left_out():
    texts = {"short": "x", "longest": "y" * MAX_METADATA_BYTES, "long": "z" * 70_000, "none": ""}
    blob = safetensors_bytes({"__metadata__": texts, "a": entry()}, bytes(8))
    entries, metadata = read_safetensors(blob, len(blob), "m")
    assert list(entries) == ["a"]
    assert metadata == {name: text for name, text in texts.items() if name != "long"}


def test_a_name_that_appears_twice_is_refused():
    one = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
    text = b"{" + one % (0, 8) + b"," + one % (8, 16) + b"}"
    assert "tensor 'a' appears twice" in refused(safetensors_bytes(text, bytes(16)))


def test_lengths_beyond_the_file_or_the_limit_are_refused():
    assert "only 3 bytes" in refused(b"abc")
    assert "but 2 follow" in refused(struct.pack("<Q", 100) + b"{}")
    assert "the limit is 16000000" in refused(struct.pack("<Q", 16_000_001) + bytes(16_000_001))


HOSTILE = {
    "nested lists": b'{"a":{"shape":' + b"[" * 4_000_000,
    "nested objects": b'{"a":' * 700_000,
    "empty objects": b"{" + b'"a":{},' * 500_000 + b"}",
    "metadata pairs": b'{"__metadata__":{' + b'"a":"b",' * 20_000 + b'"a":"b"}}',
    "one long name": b'{"' + b"a" * 4_000_000 + b'":{}}',
    "escaped quotes": b'{"' + b'\\"' * 2_000_000 + b'":{}}',
    "long metadata": b'{"__metadata__":{"a":"' + "é🌍".encode() * 600_000 + b'"}}',
    "unlike metadata": b'{"__metadata__":{'
    + b",".join(b'"%d":"%s"' % (i, b"x" * 1000) for i in range(4_000))
    + b"}}",
    "tensors without data": b"{"
    + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(4_000))
    + b"}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_takes_memory_in_proportion_to_its_file(kind, monkeypatch):
    monkeypatch.setattr("kernelforge_runtime.weights.safetensors.MAX_TENSORS", 3_000)
    blob = safetensors_bytes(HOSTILE[kind])
    tracemalloc.start()
    try:
        if kind == "long metadata":
            assert read_safetensors(blob, len(blob), "m") == ({}, {})
        else:
            refused(blob)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(blob) + 2_000_000
