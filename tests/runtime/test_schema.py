"""A schema holds a file to its tensors and shapes; the registry picks the one version that fits."""

import numpy as np
import pytest

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import registry
from kernelforge_runtime.models.schema import Schema
from kernelforge_runtime.weights import open_checkpoint
from tests.runtime.model_files import write_pth, write_safetensors

SCHEMA = Schema(
    model={"emb.weight": "V C", "blocks.0.ln0.weight": "C"},
    block={"key.weight": "F C", "heads": "H N", "fixed": "3 C"},
    later={"residual": "C D"},
    optional={"start": "H N N", "ln0.weight": "C"},
)


def tensors(layers=2):
    zeros = np.zeros
    found = {"emb.weight": zeros((7, 8), "f4"), "blocks.0.ln0.weight": zeros(8, "f4")}
    for i in range(layers):
        found |= {
            f"blocks.{i}.key.weight": np.arange(40, dtype="f4").reshape(5, 8),
            f"blocks.{i}.heads": zeros((2, 4), "f4"),
            f"blocks.{i}.fixed": zeros((3, 8), "f4"),
        }
        if i:
            found[f"blocks.{i}.residual"] = zeros((8, 6), "f4")
    return found


def read(tmp_path, given, schema=SCHEMA, write=write_safetensors):
    with open_checkpoint(write(tmp_path / "m", given)) as checkpoint:
        return schema.read(checkpoint)


def refused(tmp_path, given, schema=SCHEMA):
    with pytest.raises(ModelError) as caught:
        read(tmp_path, given, schema)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'm'}: ")
    return message.removeprefix(f"{tmp_path / 'm'}: ")


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_sizes_are_read_from_shapes_and_tensors_by_name(tmp_path, write):
    given = tensors()
    with open_checkpoint(write(tmp_path / "m", given)) as checkpoint:
        reader = SCHEMA.read(checkpoint)
        assert reader.sizes == {"V": 7, "C": 8, "F": 5, "H": 2, "N": 4, "D": 6}
        assert reader.layers == 2
        assert reader.parameters == sum(a.size for a in given.values())
        np.testing.assert_array_equal(reader("emb.weight"), given["emb.weight"])
        block = reader.block(1)
        assert block.name("key.weight") == "blocks.1.key.weight"
        np.testing.assert_array_equal(block("key.weight"), given["blocks.1.key.weight"])
        assert "residual" in block
        assert "residual" not in reader.block(0)


def test_a_missing_tensor_is_named(tmp_path):
    given = tensors()
    del given["blocks.1.heads"]
    assert refused(tmp_path, given) == "blocks.1.heads is missing"


def test_of_many_missing_tensors_three_are_named_and_the_rest_counted(tmp_path):
    given = {n: a for n, a in tensors(3).items() if "heads" not in n and "fixed" not in n}
    says = "blocks.0.heads, blocks.0.fixed, blocks.1.heads and 3 more are missing"
    assert refused(tmp_path, given) == says


def test_a_block_that_is_left_out_is_missing(tmp_path):
    given = {n: a for n, a in tensors(3).items() if not n.startswith("blocks.1.")}
    assert "blocks.1.key.weight" in refused(tmp_path, given)


def test_an_unknown_tensor_is_named(tmp_path):
    for name in ("extra", "blocks.1.extra", "blocks.01.heads", "blocks.x.heads"):
        given = {**tensors(), name: np.zeros(3, "f4")}
        assert refused(tmp_path, given) == f"{name} is no tensor of this version"


def test_a_block_number_beyond_the_files_tensors_is_refused_at_once(tmp_path):
    given = {**tensors(), "blocks.99999999.heads": np.zeros((2, 4), "f4")}
    assert refused(tmp_path, given) == "names block 99999999, but holds 10 tensors"
    given = {**tensors(), f"blocks.{'9' * 500}.heads": np.zeros((2, 4), "f4")}
    assert "is no tensor of this version" in refused(tmp_path, given)


def test_a_shape_that_contradicts_another_names_both(tmp_path):
    given = tensors()
    given["blocks.1.key.weight"] = np.zeros((5, 9), "f4")
    says = "blocks.1.key.weight has shape [5, 9], expected [5, 8]"
    assert refused(tmp_path, given).startswith(says)
    assert "C is from emb.weight; F is from blocks.0.key.weight" in refused(tmp_path, given)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.fixed", (2, 8), "[3, 8]"),  # a number in the table
        ("blocks.0.heads", (8,), "[H, N]"),  # too few axes
        ("blocks.0.ln0.weight", (2, 4), "[8]"),  # too many
        ("emb.weight", (0, 8), "[V, C]"),  # nothing in it
        ("blocks.1.residual", (1, 8, 0), "[8, D]"),
    ],
)
def test_a_shape_of_another_kind_is_refused(tmp_path, name, shape, expected):
    given = {**tensors(), name: np.zeros(shape, "f4")}
    says = refused(tmp_path, given)
    assert says.startswith(f"{name} has shape {list(shape)}, expected {expected}")


def test_axes_of_one_are_dropped_where_there_are_more_than_the_table_has(tmp_path):
    given = tensors()
    given["blocks.0.ln0.weight"] = np.arange(8, dtype="f4").reshape(1, 1, 8)
    given["blocks.0.fixed"] = np.zeros((3, 1, 8), "f4")
    with open_checkpoint(write_safetensors(tmp_path / "m", given)) as checkpoint:
        reader = SCHEMA.read(checkpoint)
        np.testing.assert_array_equal(reader("blocks.0.ln0.weight"), np.arange(8))
        assert reader.block(0)("fixed").shape == (3, 8)


def test_an_axis_of_one_that_means_something_is_kept(tmp_path):
    given = tensors()
    for i in range(2):
        given[f"blocks.{i}.heads"] = np.zeros((1, 8), "f4")
    assert read(tmp_path, given).sizes["H"] == 1


def test_optional_tensors_may_be_there_and_are_then_held_to_their_shape(tmp_path):
    given = tensors()
    given["blocks.1.start"] = np.zeros((2, 4, 4), "f4")
    given["blocks.1.ln0.weight"] = np.zeros(8, "f4")
    reader = read(tmp_path, given)
    assert "start" in reader.block(1)
    assert "start" not in reader.block(0)
    given["blocks.1.start"] = np.zeros((2, 4, 5), "f4")
    assert "expected [2, 4, 4]" in refused(tmp_path, given)


def test_what_later_blocks_need_is_ignored_in_the_first_whatever_its_shape(tmp_path):
    given = {**tensors(), "blocks.0.residual": np.zeros((1, 2, 3), "f4")}
    assert "residual" not in read(tmp_path, given).block(0)
    del given["blocks.1.residual"]
    assert refused(tmp_path, given) == "blocks.1.residual is missing"


def test_a_tensor_with_nan_is_refused_when_it_is_read(tmp_path):
    given = tensors()
    given["blocks.1.key.weight"][2, 3] = np.nan
    with open_checkpoint(write_safetensors(tmp_path / "m", given)) as checkpoint:
        block = SCHEMA.read(checkpoint).block(1)
        block("heads")
        with pytest.raises(ModelError, match=r"blocks\.1\.key\.weight holds NaN"):
            block("key.weight")


SPELLED = Schema(
    model={"emb.weight": "V C"},
    block={"norm.weight": "C", "att.heads": "H N"},
    spelling={"norm.": "ln{n}.", "": "layers.{i}."},
)


def spelled(count):
    given = {"emb.weight": np.zeros((7, 8), "f4")}
    for i in range(count):
        given[f"ln{i + 1}.weight"] = np.full(8, i, "f4")
        given[f"layers.{i}.att.heads"] = np.zeros((2, 4), "f4")
    return given


def test_a_version_may_spell_its_blocks_in_its_own_way(tmp_path):
    with open_checkpoint(write_safetensors(tmp_path / "m", spelled(3))) as checkpoint:
        reader = SPELLED.read(checkpoint)
        assert reader.layers == 3
        assert reader.block(2).name("norm.weight") == "ln3.weight"
        np.testing.assert_array_equal(reader.block(2)("norm.weight"), np.full(8, 2))
        assert reader.block(2)("att.heads").shape == (2, 4)


def test_numbers_that_start_at_one_have_no_zero(tmp_path):
    given = {**spelled(2), "ln0.weight": np.zeros(8, "f4")}
    assert refused(tmp_path, given, SPELLED) == "ln0.weight is no tensor of this version"


# The registry


class Known:
    """As much of a model file as the registry looks at."""

    def __init__(self, *marks):
        self.marks = marks


def recognised(tmp_path, monkeypatch, files, names):
    monkeypatch.setattr(registry, "model_files", lambda: files)
    given = {name: np.zeros(2, "f4") for name in names}
    with open_checkpoint(write_safetensors(tmp_path / "m", given)) as checkpoint:
        return registry.recognise(checkpoint)


BUILT = {"one": Known("a"), "two": Known("a", "b"), "other": Known("x", "y")}


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (("a", "more"), "one"),
        (("more", "b", "a"), "two"),  # it holds both marks of the version that builds on "one"
        (("a", "x"), "one"),  # half the marks of "other" are none
        (("x", "y", "a"), "other"),
    ],
)
def test_of_the_versions_whose_marks_are_all_there_the_one_with_the_most_is_meant(
    tmp_path, monkeypatch, names, version
):
    assert recognised(tmp_path, monkeypatch, BUILT, names) is BUILT[version]


def test_a_file_that_two_versions_claim_alike_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="several versions at once") as caught:
        recognised(tmp_path, monkeypatch, BUILT, ("a", "b", "x", "y"))
    assert "(two, other): it holds a, b, x, y" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_no_version_claims_names_the_known_ones_and_what_it_holds(
    tmp_path, monkeypatch
):
    with pytest.raises(ModelError, match="not an RWKV model of a known version") as caught:
        recognised(tmp_path, monkeypatch, BUILT, ("b", "c", "d", "e"))
    assert "(one, two, other); it holds 4 tensors such as b, c, d" in str(caught.value)


def test_the_versions_built_in_have_unlike_marks():
    marks = [frozenset(file.marks) for file in registry.model_files().values()]
    assert len(set(marks)) == len(marks)
    assert all(marks)
