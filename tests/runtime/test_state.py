"""States: saved, loaded, cloned; parked on the host or resident on a device."""

import json
import os
import stat
import struct

import numpy as np
import pytest
from safetensors.numpy import save

import kernelforge_runtime as kf
from kernelforge_runtime.dtypes import U32
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.state import FORMAT, State, StateSpec
from tests.models.checkpoints import random_rwkv7

SHAPES = {"shift": StateSpec(4, (32,)), "wkv": StateSpec(2, (1, 32, 32))}
HISTORY = {"rosa": StateSpec(2, (1, 3, 1), U32, symbols_per_word=8)}


@pytest.fixture
def state(rng):
    made = State.zero("rwkv7", SHAPES)
    for array in made.arrays.values():
        array[...] = rng.standard_normal(array.shape)
    return made


def equal(a, b):
    return a.arrays.keys() == b.arrays.keys() and all(
        np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays
    )


def write(path, tensors, metadata=None):
    path.write_bytes(save(tensors, metadata))
    return path


def test_a_saved_state_is_loaded_bit_for_bit(state, tmp_path):
    state.save(tmp_path / "s.safetensors")
    loaded = State.load(tmp_path / "s.safetensors", "rwkv7", SHAPES)
    assert equal(loaded, state)
    assert loaded.version == "rwkv7"
    loaded.arrays["shift"][0, 0] += 1  # writable, and its own
    assert not equal(loaded, state)


def test_a_file_has_the_same_bytes_each_time_and_nothing_is_left_beside_it(state, tmp_path):
    for name in ("a", "b"):
        state.save(tmp_path / name)
    state.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_save_leaves_the_old_file_whole(state, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"state .*folder was not written: .*use another path"):
        state.save(tmp_path / "folder")
    with pytest.raises(ModelError, match="was not written"):
        state.save(tmp_path / "missing" / "s")
    with pytest.raises(ModelError, match="was not written: embedded null byte"):
        state.save(tmp_path / "a\0b")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_save_takes_the_place_of_a_file_and_of_nothing_else(state, tmp_path):
    """What is renamed over a path replaces what is there, be it the machine's own /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ModelError, match="was not written: what is there is not a regular fil"):
            state.save(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    assert (tmp_path / "link").is_symlink()


def test_a_save_through_a_link_writes_what_it_leads_to(state, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept/s")
    for _ in range(2):
        state.save(tmp_path / "link")
    assert equal(State.load(tmp_path / "kept" / "s", "rwkv7", SHAPES), state)
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["s"]


def test_a_state_file_gets_ordinary_permissions(state, tmp_path):
    old = os.umask(0o022)
    try:
        state.save(tmp_path / "s")
    finally:
        os.umask(old)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o644


def test_a_save_that_is_broken_off_leaves_nothing_behind(state, tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_clone_is_independent(state):
    twin = state.clone()
    assert equal(twin, state)
    twin.arrays["wkv"][...] = 0
    assert state.arrays["wkv"].any()


def test_float64_states_are_saved_as_float32(tmp_path):
    state = State.zero("rwkv7", SHAPES, np.float64)
    state.arrays["shift"][0, 0] = 1 / 3
    state.save(tmp_path / "s")
    assert State.load(tmp_path / "s", "rwkv7", SHAPES).arrays["shift"][0, 0] == np.float32(1 / 3)


def test_a_state_of_another_model_version_is_refused(state, tmp_path):
    state.save(tmp_path / "s")
    with pytest.raises(ModelError, match="is of model version rwkv7; this one is rwkv6"):
        State.load(tmp_path / "s", "rwkv6", SHAPES)


def test_a_state_that_another_program_wrote_is_read(state, tmp_path):
    for metadata in (None, {"writer": "me"}):
        path = write(tmp_path / "s", state.arrays, metadata)
        assert equal(State.load(path, "rwkv7", SHAPES), state)
    named = {"kernelforge": json.dumps([FORMAT, "rwkv7"])}
    assert equal(State.load(write(tmp_path / "s", state.arrays, named), "rwkv7", SHAPES), state)


def test_a_state_of_other_shapes_is_refused(state, tmp_path):
    state.save(tmp_path / "s")
    shift = SHAPES["shift"]
    turned, more = StateSpec(32, (4,)), StateSpec(1, (1,))
    for shapes in ({"shift": shift}, {**SHAPES, "shift": turned}, {**SHAPES, "more": more}):
        with pytest.raises(ModelError, match=r"another model's|this model's take"):
            State.load(tmp_path / "s", "rwkv7", shapes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_refused(state, tmp_path, value):
    state.arrays["wkv"][1, 0, 3, 4] = value
    path = write(tmp_path / "s", state.arrays)
    with pytest.raises(ModelError, match="wkv is not finite float32"):
        State.load(path, "rwkv7", SHAPES)


@pytest.mark.parametrize("kind", ["BF16", "F16", "F64", "F8_E4M3", "I32", "BOOL", "nonsense"])
def test_a_state_of_another_element_type_is_refused(tmp_path, kind):
    width = {"BF16": 2, "F16": 2, "F64": 8, "I32": 4}.get(kind, 1)
    ends = np.cumsum([0, 128 * width, 2048 * width]).tolist()
    header = {
        name: {"dtype": kind, "shape": list(spec.extent(0)), "data_offsets": ends[i : i + 2]}
        for i, (name, spec) in enumerate(SHAPES.items())
    }
    text = json.dumps(header).encode()
    (tmp_path / "s").write_bytes(struct.pack("<Q", len(text)) + text + bytes(ends[-1]))
    with pytest.raises(ModelError, match=r"state .*/s"):
        State.load(tmp_path / "s", "rwkv7", SHAPES)


def test_damaged_missing_and_huge_files_are_refused(state, tmp_path):
    path = tmp_path / "s"
    with pytest.raises(ModelError, match="cannot be read"):
        State.load(path, "rwkv7", SHAPES)
    with pytest.raises(ModelError, match="cannot be read"):
        State.load(tmp_path, "rwkv7", SHAPES)
    state.save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[:100], whole[:-1], whole + b"\0", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="damaged or no state file"):
            State.load(path, "rwkv7", SHAPES)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: must not be read
    for specs in (SHAPES, {**SHAPES, **HISTORY}):
        with pytest.raises(ModelError, match="this model's take"):
            State.load(path, "rwkv7", specs)


def test_a_resident_state_is_read_back_when_somebody_looks():
    class Elsewhere:
        reads = 0

        def read_state(self, slot=0):
            assert slot == 3
            self.reads += 1
            return {"shift": np.full((4, 32), 7, np.float32)}

    elsewhere, state = Elsewhere(), State.zero("rwkv7", SHAPES)
    state.move_in(elsewhere, 3)
    assert elsewhere.reads == 0
    assert (state.arrays["shift"] == 7).all()
    assert (state.clone().arrays["shift"] == 7).all()
    state.move_out()
    state.arrays["shift"][...] = 8
    assert elsewhere.reads == 3
    assert (state.arrays["shift"] == 8).all()


def three_heads_of_32(weights):
    for name in [n for n in weights if n.endswith("att.r_k")]:
        weights[name] = np.full((3, 32), 0.1, np.float32)


@pytest.mark.vulkan
def test_a_width_that_is_no_multiple_of_a_binding_s_alignment_runs_everywhere(device, tmp_path):
    path = random_rwkv7(tmp_path / "m.safetensors", width=96, change=three_heads_of_32)
    expected, kept = kf.load_reference(path).forward(list(range(11)), full_output=True)
    with kf.load_model(path, device, weights="f32") as model:
        found, state = model.forward(list(range(10)), full_output=True)
        last, state = model.forward([10], state.clone())
        np.testing.assert_allclose(found, expected[:10], atol=1e-4)
        np.testing.assert_allclose(last, expected[10], atol=1e-4)
        for name, array in kept.arrays.items():
            np.testing.assert_allclose(state.arrays[name], array, atol=1e-4)


@pytest.mark.vulkan
def test_another_model_s_state_and_a_foreign_token_are_refused_and_nothing_changes(
    llvmpipe, tmp_path
):
    small, large = (
        random_rwkv7(tmp_path / f"{width}.safetensors", width=width) for width in (64, 128)
    )
    with kf.load_model(small, llvmpipe) as model, kf.load_model(large, llvmpipe) as other:
        _, state = model.forward([1, 2])
        expected, _ = model.forward([3], state.clone())
        for run in (model, kf.load_reference(small)):
            for foreign in (other.new_state(), State("rwkv6", state.clone().arrays)):
                with pytest.raises(ModelError, match="the state given is another model's"):
                    run.forward([3], foreign)
        for token in (96, -1, 2**40):
            with pytest.raises(ModelError, match=f"token {token}"):
                model.greedy(token, state)
        found, _ = model.forward([3], state)
        np.testing.assert_array_equal(found, expected)


BATCHES = {
    "twice": ([[1], [2]], lambda good, bad: [good, good], "given for two sequences: clone it"),
    "too few": ([[1], [2]], lambda good, bad: [good], "2 sequences were given 1 states"),
    "another's": ([[1], [2]], lambda good, bad: [good, bad], "the state given is another model's"),
    "foreign": ([[1], [96]], lambda good, bad: [good, None], "token 96 at position 0"),
    "flat": ([[1], 2], lambda good, bad: [good, None], "2 is no list of token ids"),
    "long": ([[1], [3, 2**70]], lambda good, bad: [good, None], "token at position 1 has 71 bits"),
}


@pytest.mark.vulkan
@pytest.mark.parametrize("kind", ["numpy", "device"])
def test_a_batch_of_which_one_part_is_bad_runs_none_of_it(kind, llvmpipe, tmp_path):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1)
    vulkan = kind == "device"  # with one slot: the first sequence has a step of its own
    with kf.load_model(path, llvmpipe) if vulkan else kf.load_reference(path) as model:
        _, good = model.forward([1, 2])
        before = good.clone()
        for tokens, states, says in BATCHES.values():
            with pytest.raises(ModelError, match=says):
                model.forward_batch(tokens, states(good, State("rwkv6", before.clone().arrays)))
        assert good.position == 2 and equal(good, before)
        assert model.forward_batch([])[0].shape == (0, 96)


@pytest.mark.vulkan
def test_a_float64_state_of_the_reference_continues_on_a_device(llvmpipe, tmp_path):
    path = random_rwkv7(tmp_path / "m.safetensors")
    reference = kf.load_reference(path, np.float64)
    _, state = reference.forward([1, 2, 3])
    expected, _ = reference.forward([4], state.clone())
    with kf.load_model(path, llvmpipe, weights="f32") as model:
        found, _ = model.forward([4], state)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_a_state_starts_with_may_differ_by_row():
    spec = StateSpec(2, (3, 4), initial=(0, 0, -1e30))
    found = State.zero("rwkv4", {"wkv4": spec}).arrays["wkv4"]
    np.testing.assert_array_equal(found[:, 2], np.float32(-1e30))
    assert not found[:, :2].any()


def test_a_history_grows_keeps_what_it_holds_and_is_loaded_with_its_position(tmp_path):
    state = State.zero("rosa", HISTORY)
    assert state.arrays["rosa"].shape == (2, 1, 3, 1)
    state.reserve(HISTORY, 8)
    assert state.arrays["rosa"].shape[-1] == 1
    state.arrays["rosa"][...] = 7
    state.position = 8
    state.reserve(HISTORY, 1)
    assert state.arrays["rosa"].shape[-1] >= 2
    assert (state.arrays["rosa"][..., 0] == 7).all()
    assert not state.arrays["rosa"][..., 1:].any()
    state.save(tmp_path / "s")
    loaded = State.load(tmp_path / "s", "rosa", HISTORY)
    assert equal(loaded, state)
    assert (loaded.position, loaded.arrays["rosa"].dtype) == (8, np.uint32)
    assert state.clone().position == 8


def test_a_history_too_short_for_its_position_is_refused(tmp_path):
    state = State.zero("rosa", HISTORY)
    state.position = 9
    state.save(tmp_path / "s")
    with pytest.raises(ModelError, match="another model's"):
        State.load(tmp_path / "s", "rosa", HISTORY)
