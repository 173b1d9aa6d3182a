"""LoRA, PiSSA and DiSHA files: what they say is added in float64 and rounded once."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.dtypes import BF16, bf16_to_float, float_to_bf16
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.weights.adapters import open_model, parse_adapter
from kernelforge_runtime.weights.adapters.merged import rounded
from kernelforge_runtime.weights.model_hash import model_hash
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rwkv7a
from tests.runtime.adapter_files import FFN, KEY, VALUE, lora, merged
from tests.runtime.model_files import write_pth, write_safetensors

WRITERS = [write_pth, write_safetensors]


@pytest.fixture
def base(tmp_path):
    return random_rwkv7(tmp_path / "base.safetensors")


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def wide(path, name):
    """A tensor of a file in float64."""
    with open_model(path) as checkpoint:
        return checkpoint.tensor(f"{name}.weight").astype(np.float64)


def product(held, name, kind="lora"):
    return held[f"{name}.{kind}_B"].astype(np.float64) @ held[f"{name}.{kind}_A"]


# What each kind does


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_lora_merged_at_load_equals_the_float64_merge(base, tmp_path, normal, write, prefix):
    held = lora(normal, KEY, 64, 64, 8) | lora(normal, FFN, 256, 64, 2)
    file = write(tmp_path / "l", {prefix + name: array for name, array in held.items()})
    for name, rank in ((KEY, 8), (FFN, 2)):
        expected = wide(base, name) + product(held, name) * (16 / rank)
        np.testing.assert_array_equal(merged(base, name, f"{file}:16"), expected.astype("f4"))
    np.testing.assert_array_equal(merged(base, VALUE, f"{file}:16"), wide(base, VALUE))


def test_small_tensors_trained_beside_lora_replace_the_model_s(base, tmp_path, normal):
    held = lora(normal, KEY, 64, 64) | {"blocks.0.ln1.weight": normal(64)}
    held["blocks.0.att.x_r"] = normal(64)  # the model has it as [1, 1, 64]
    with open_model(base, [f"{write_pth(tmp_path / 'l.pth', held)}:4"]) as checkpoint:
        assert checkpoint.shape("blocks.0.att.x_r") == (1, 1, 64)
        for name in ("blocks.0.ln1.weight", "blocks.0.att.x_r"):
            np.testing.assert_array_equal(checkpoint.tensor(name).reshape(-1), held[name])


def test_a_tuned_state_beside_lora_is_the_model_s_first_state(base, tmp_path, normal):
    states = {f"blocks.{i}.att.time_state": normal(1, 64, 64) for i in range(2)}
    file = write_pth(tmp_path / "l.pth", lora(normal, KEY, 64, 64) | states)
    model = kf.load_reference(base, adapters=[f"{file}:4"])
    np.testing.assert_array_equal(model.new_state().arrays["wkv"], np.stack([*states.values()]))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("initial_first", [True, False])
def test_pissa_takes_away_what_its_factors_began_as(
    base, tmp_path, normal, together, initial_first
):
    trained = lora(normal, KEY, 64, 64)
    initial = {f"{KEY}.init_lora_A": normal(4, 64), f"{KEY}.init_lora_B": normal(64, 4)}
    if together:
        files = [write_pth(tmp_path / "p.pth", trained | initial)]
    else:
        files = [write_pth(tmp_path / "i.pth", initial), write_pth(tmp_path / "t.pth", trained)]
    files = files if initial_first else files[::-1]
    removed = product(initial, KEY, "init_lora")
    expected = wide(base, KEY) - removed + product(trained, KEY)
    np.testing.assert_array_equal(merged(base, KEY, *files), expected.astype("f4"))


@pytest.mark.parametrize(("name", "rows", "k"), [(KEY, 64, 64), (VALUE, 64, 256), (FFN, 256, 64)])
@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("word", ["disha", "bone"])
def test_disha_adds_its_block_along_each_row(base, tmp_path, normal, name, rows, k, size, word):
    block = normal(size, rows)  # 24 leaves a tail
    file = write_pth(tmp_path / "d.pth", {f"{name}.{word}": block})
    old = wide(base, name)
    expected = np.empty_like(old)
    for row in range(rows):
        for column in range(k):
            expected[row, column] = old[row, column] + block[column % size, row]
    np.testing.assert_array_equal(merged(base, name, file), expected.astype("f4"))


@pytest.mark.parametrize(("name", "rows", "k"), [(KEY, 64, 64), (VALUE, 64, 256), (FFN, 256, 64)])
def test_disha_bat_multiplies_tile_by_tile(base, tmp_path, normal, name, rows, k):
    size = 16
    blocks = normal(k // size, size, size)
    file = write_pth(tmp_path / "d.pth", {f"{name}.disha": blocks})
    expected = wide(base, name)
    for top in range(0, rows, size):
        for column, block in enumerate(blocks.astype(np.float64)):
            at = slice(top, top + size), slice(column * size, (column + 1) * size)
            expected[at] += expected[at] @ block + block
    found = merged(base, name, file)
    np.testing.assert_allclose(found, expected, rtol=2**-23, atol=1e-12)


def test_a_file_of_web_rwkv_is_turned_and_its_vectors_blended(base, tmp_path, normal):
    down, up = normal(64, 4), normal(4, 256)
    held = {
        f"{FFN}.lora.0": down,
        f"{FFN}.lora.1": up,
        "blocks.0.ln1.weight": normal(64),
        f"{KEY}.weight": normal(64, 64),
        "blocks.0.att.w1": normal(32, 64),  # turned as well: the model's is [64, 32]
    }
    half = {name: array.astype(np.float16) for name, array in held.items()}
    alpha = 0.75
    with open_model(base) as plain:
        old = {name: plain.tensor(name).astype(np.float64) for name in plain}
    with open_model(base, [f"{write_safetensors(tmp_path / 'w.st', half)}:{alpha}"]) as found:
        f64 = {name: array.astype(np.float64) for name, array in half.items()}
        wanted = {
            f"{FFN}.weight": old[f"{FFN}.weight"]
            + alpha / 4 * f64[f"{FFN}.lora.1"].T @ f64[f"{FFN}.lora.0"].T,
            f"{KEY}.weight": old[f"{KEY}.weight"] + alpha * f64[f"{KEY}.weight"],
        }
        for name, other in (("blocks.0.ln1.weight", None), ("blocks.0.att.w1", "turned")):
            theirs = f64[name].T if other else f64[name]
            wanted[name] = alpha * theirs + (1 - alpha) * old[name]
        assert {*found.changed} == {*wanted}
        for name, expected in wanted.items():
            np.testing.assert_allclose(found.tensor(name), expected, rtol=2**-23, atol=1e-9)


# Several, and some of one


def test_several_are_added_in_order_and_rounded_once(base, tmp_path, normal):
    first, second = lora(normal, KEY, 64, 64, 4), lora(normal, KEY, 64, 64, 16)
    block = normal(8, 64)
    files = [
        f"{write_pth(tmp_path / 'a.pth', first)}:8",
        write_pth(tmp_path / "d.pth", {f"{KEY}.disha": block}),
        kf.Adapter(write_safetensors(tmp_path / "b.st", second), alpha=-4),
    ]
    sums = wide(base, KEY) + product(first, KEY) * 2
    sums = sums + np.tile(block.T.astype(np.float64), 8)
    sums = sums + product(second, KEY) * -0.25
    np.testing.assert_array_equal(merged(base, KEY, *files), sums.astype("f4"))


def test_an_expression_picks_tensors_by_the_model_s_names(base, tmp_path, normal):
    held = lora(normal, KEY, 64, 64) | lora(normal, "blocks.1.att.key", 64, 64)
    file = write_pth(tmp_path / "l.pth", held)
    with open_model(base, [rf"{file}:8:^blocks\.(?:1|7)\..*key"]) as checkpoint:
        assert [*checkpoint.changed] == ["blocks.1.att.key.weight"]
    with open_model(base, [rf"{file}:8:blocks\.0", rf"{file}:2:blocks\.1"]) as checkpoint:
        for name, alpha in ((KEY, 8), ("blocks.1.att.key", 2)):
            expected = wide(base, name) + product(held, name) * (alpha / 4)
            found = checkpoint.tensor(f"{name}.weight")
            np.testing.assert_array_equal(found, expected.astype("f4"))


@pytest.mark.parametrize(
    ("text", "path", "alpha", "pattern"),
    [
        ("x.pth", "x.pth", None, None),
        ("x.pth:16", "x.pth", 16, None),
        ("x.pth:1e-1:a:b", "x.pth", 0.1, "a:b"),
        ("x.pth::att", "x.pth", None, "att"),
        ("x.pth:", "x.pth", None, None),
        (r"C:\models\x.pth", r"C:\models\x.pth", None, None),
        (r"C:\models\x.pth:32:(?:att|ffn)", r"C:\models\x.pth", 32, "(?:att|ffn)"),
        ("d:/x.st:-1", "d:/x.st", -1, None),
    ],
)
def test_the_grammar_is_file_alpha_expression(text, path, alpha, pattern):
    found = parse_adapter(text)
    assert (found.path, found.alpha, found.pattern) == (path, alpha, pattern)


def test_a_file_that_is_there_may_have_colons_in_its_name(tmp_path):
    for name in ("a:b.pth", "a:16"):
        (tmp_path / name).touch()
        found = parse_adapter(f"{tmp_path}/{name}:2:x")
        assert (found.path, found.alpha, found.pattern) == (f"{tmp_path}/{name}", 2, "x")
        assert parse_adapter(f"{tmp_path}/{name}").path == f"{tmp_path}/{name}"


# Rounding, memory, formats


@pytest.mark.parametrize("form", ["f16", "bf16"])
def test_rounding_float64_on_by_way_of_float32_is_not_seen_in_the_format(form, rng):
    values = rng.standard_normal(20_000)
    half = values.astype(np.float32)
    step = 13 if form == "f16" else 16
    bits = half.view(np.uint32) >> step << step | 1 << (step - 1)  # half-way between two
    ties = bits.view(np.float32).astype(np.float64) * (1 + rng.choice([-1, 0, 1], 20_000) * 2e-10)
    ties = np.concatenate([ties, ties * 2.0**-17, values * 1e-7])  # subnormals of f16 too
    if form == "f16":
        expected = ties.astype(np.float16)
        by_way = ties.astype(np.float32).astype(np.float16)
        found = rounded(ties, kf.dtypes.F16).astype(np.float16)
    else:
        exact = float_to_bf16(ties.astype(np.float32))
        by_way = bf16_to_float(exact)
        below, above = bf16_to_float(exact - 1), bf16_to_float(exact + 1)
        near = np.stack([by_way, below, above]).astype(np.float64)
        distance = np.abs(near - ties)
        found = bf16_to_float(float_to_bf16(rounded(ties, BF16)))
        best = np.abs(found - ties) == distance.min(0)
        assert best.all()
        expected = np.where(distance[0] == distance.min(0), by_way, found)
    np.testing.assert_array_equal(found, expected)
    assert (by_way != expected).any(), "these values show nothing"


@pytest.mark.parametrize("form", ["f16", "bf16"])
def test_a_16_bit_model_is_merged_to_what_float64_gives(tmp_path, normal, form):
    def narrow(weights):
        for name, array in weights.items():
            weights[name] = array.astype(np.float16) if form == "f16" else float_to_bf16(array)

    arrays = {}
    random_rwkv7(tmp_path / "x.safetensors", change=arrays.update)
    narrow(arrays)
    base = write_safetensors(tmp_path / "b.safetensors", arrays)
    held = lora(normal, FFN, 256, 64, 8)
    adapter = f"{write_pth(tmp_path / 'l.pth', held)}:2"
    expected = wide(base, FFN) + product(held, FFN) * 0.25
    with open_model(base, [adapter]) as found:
        raw = found.raw(f"{FFN}.weight")
        values = found.tensor(f"{FFN}.weight")
        assert found.dtype(f"{FFN}.weight") == form
    np.testing.assert_allclose(values, expected, rtol=2**-23)
    if form == "f16":
        np.testing.assert_array_equal(raw, expected.astype(np.float16))
    else:
        assert (np.abs(bf16_to_float(raw) - expected) <= np.abs(expected) * 2**-8).all()


def test_a_table_left_in_its_file_is_merged_row_by_row(tmp_path, normal):
    base = random_rwkv7a(tmp_path / "m.safetensors")
    with open_model(base) as plain:
        rows, k = plain.shape("blocks.1.ffn.s_emb.weight")
    held = lora(normal, "blocks.1.ffn.s_emb", rows, k)
    adapter = f"{write_pth(tmp_path / 'l.pth', held)}:4"
    with open_model(base, [adapter]) as checkpoint:
        whole = checkpoint.tensor("blocks.1.ffn.s_emb.weight")
        lazy = checkpoint.lazy_rows("blocks.1.ffn.s_emb.weight")
    ids = np.array([3, 0, rows - 1, 3])
    np.testing.assert_array_equal(lazy.rows(ids), whole[ids])
    assert np.abs(whole - wide(base, "blocks.1.ffn.s_emb")).max() > 0.1


def test_a_tensor_is_merged_in_pieces(base, tmp_path, normal, monkeypatch):
    adapter = f"{write_pth(tmp_path / 'l.pth', lora(normal, FFN, 256, 64))}:3"
    whole = merged(base, FFN, adapter)
    monkeypatch.setattr("kernelforge_runtime.weights.adapters.merged._PIECE_ELEMENTS", 64 * 7)
    np.testing.assert_allclose(merged(base, FFN, adapter), whole, rtol=2**-22)


# What a model says


@pytest.mark.vulkan
def test_a_model_loaded_with_adapters_says_what_the_merged_file_says(tmp_path, normal, llvmpipe):
    ffn = "blocks.0.ffn.key"
    held = lora(normal, KEY, 64, 64) | lora(normal, ffn, 256, 64)
    file = write_pth(tmp_path / "l.pth", held)

    def change(weights):
        for name in (KEY, ffn):
            old = weights[f"{name}.weight"].astype(np.float64)
            weights[f"{name}.weight"] = (old + product(held, name) * 0.5).astype(np.float32)

    base = random_rwkv7(tmp_path / "base.safetensors", layers=1)
    by_hand = random_rwkv7(tmp_path / "by_hand.safetensors", layers=1, change=change)
    with (
        kf.load_model(base, llvmpipe, weights="f32", adapters=[f"{file}:2"]) as model,
        kf.load_model(by_hand, llvmpipe, weights="f32") as other,
    ):
        found, expected = (m.forward([1, 2, 3])[0] for m in (model, other))
        np.testing.assert_array_equal(found, expected)
        plain = kf.load_reference(base)
        assert np.abs(found - plain.forward([1, 2, 3])[0]).max() > 0.01
        assert model.hash == other.hash != plain.hash


# The hash


def test_the_hash_is_of_the_tensors_not_of_the_file(base, tmp_path):
    arrays = {}
    random_rwkv7(tmp_path / "x.safetensors", change=arrays.update)
    turned = dict(reversed(arrays.items()))
    others = [
        write_pth(tmp_path / "m.pth", turned, transposed=[f"{KEY}.weight"]),
        write_safetensors(tmp_path / "n", arrays),
    ]
    assert {kf.load_reference(path).hash for path in [base, *others]} == {
        kf.load_reference(base).hash
    }


@pytest.mark.parametrize("name", [f"{KEY}.weight", "blocks.1.ln2.bias", "emb.weight"])
def test_one_other_weight_is_another_hash(base, tmp_path, name):
    def change(weights):
        weights[name].reshape(-1)[weights[name].size // 2] += 1e-3

    other = random_rwkv7(tmp_path / "o.safetensors", change=change)
    assert kf.load_reference(base).hash != kf.load_reference(other).hash


def test_adapters_alpha_and_expression_change_the_hash(base, tmp_path, normal):
    held = lora(normal, KEY, 64, 64) | lora(normal, FFN, 256, 64)
    file = write_pth(tmp_path / "l.pth", held)
    ways = ["", f"{file}:2", f"{file}:3", f"{file}:2:att"]
    found = set()
    for way in ways:
        with open_model(base, [way] if way else []) as checkpoint:
            found.add(model_hash(checkpoint))
    assert len(found) == len(ways)


def test_every_config_reads_as_before(base, tmp_path, normal):
    file = write_pth(tmp_path / "l.pth", lora(normal, KEY, 64, 64))
    with open_model(base, [f"{file}:4"]) as found, open_model(base) as plain:
        assert recognise(found).read_config(found) == recognise(plain).read_config(plain)
        assert found.stored(f"{KEY}.weight", (64, 64)) is None  # only `tensor` merges
        left = found.stored(f"{VALUE}.weight", (64, 256))
        np.testing.assert_array_equal(np.asarray(left), plain.tensor(f"{VALUE}.weight"))
