"""A new version is one model file, its test and a line of documentation: shown and enforced."""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kernelforge_runtime as kf
import kernelforge_runtime.models as package
from kernelforge.cli.main import main
from kernelforge.measure.verify import compare
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.models import registry
from tests.models.checkpoints import random_rwkv7

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "runtime" / "kernelforge_runtime" / "models"
SHORT = r"v[4-9](?:\.\d)?[a-c]?"
"""How people abbreviate a version."""
MAY_NAME_VERSIONS = {
    "kernelforge/cli/options.py": "the help of --shape lists sizes",
    "kernelforge/convert/recipes.py": "a random model has the tensors of some version",
    "kernelforge/peers/engines.py": "which versions another engine knows",
    "kernelforge/peers/llama_cpp_file.py": "what another engine calls the versions",
    "kernelforge/convert/shapes.py": "names of sizes, such as v7-0.1b",
}
"""Other files, and why they may."""


def named_in_code(source: str) -> set[str]:
    """Words of a program's identifiers and strings; docstrings and comments are prose."""
    tree = ast.parse(source)
    found: set[str] = set()
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            if isinstance(value, str) and id(node) not in docstrings:
                found |= set(re.findall(r"[\w.-]+", value))
    return found


def versions_named(source: str, versions: list[str]) -> list[str]:
    """Words that are a version's name, or a model's of that version; dashes may be underscores."""
    names = "|".join(re.escape(v).replace("_", "[_-]") for v in versions)
    pattern = re.compile(rf"(?:.*\.)?(?:{names}|{SHORT})(?:[.-].*)?")
    return sorted(word for word in named_in_code(source) if pattern.fullmatch(word))


def test_no_code_but_the_model_files_names_a_version() -> None:
    versions = list(registry.model_files())
    assert "rwkv7" in versions
    naming = {}
    for folder in (ROOT / "kernelforge", ROOT / "runtime" / "kernelforge_runtime"):
        for file in folder.rglob("*.py"):
            path = str(file.relative_to(ROOT))
            is_model_file = file.parent == MODELS and file.stem in versions
            words = versions_named(file.read_text(), versions)
            if words and not is_model_file and path not in MAY_NAME_VERSIONS:
                naming[path] = words
    assert naming == {}


def test_list_of_files_that_may_name_versions_has_no_stale_entry() -> None:
    versions = list(registry.model_files())
    for path in MAY_NAME_VERSIONS:
        assert versions_named((ROOT / path).read_text(), versions), path


@pytest.mark.parametrize(
    "code",
    [
        'if config.version == "rwkv7": pass',
        'x = "rwkv5.2"',
        'x = "rosa-lm-4bit"',
        "from kernelforge_runtime.models import rwkv7",
        "import kernelforge_runtime.models.rwkv7 as m",
        "models.rwkv7.SCHEMA",
        'shape = "v6"',
        'name = f"{x} rwkv7 {y}"',
    ],
)
def test_the_rule_sees_a_version_in_code(code: str) -> None:
    assert versions_named(code, ["rosa_lm", "rwkv5", "rwkv7"])


@pytest.mark.parametrize(
    "code",
    [
        '"""RWKV-7, and files such as rwkv7.py."""',
        'def f():\n    """Of rwkv7."""',
        "x = 1  # rwkv7",
        "ops.rwkv7_gates(proj)",  # kernels are named after the mathematics
        'family = "wkv7"',
        'FORMAT = "kernelforge.state/1"',
    ],
)
def test_the_rule_does_not_see_prose_or_kernels(code: str) -> None:
    assert versions_named(code, ["rosa_lm", "rwkv5", "rwkv7"]) == []


# The demonstration: a version that runs its last block several times

RWKV99 = '''
"""RWKV-99: RWKV-7 whose last block runs once more for every element of the vector `again`."""

from dataclasses import replace

from kernelforge_runtime.models.blocks import frame, goose
from kernelforge_runtime.models.rwkv7 import SCHEMA as RWKV7
from kernelforge_runtime.models.schema import Schema

SCHEMA = Schema(
    model={**frame.TENSORS, "again": "R"},
    block=RWKV7.block,
    later=RWKV7.later,
    optional=RWKV7.optional,
)


class Rwkv99:
    marks = ("blocks.0.att.r_k", "again")

    def read_config(self, checkpoint):
        read = SCHEMA.read(checkpoint)
        config = goose.config(read, "rwkv99")
        runs = read.layers + read.sizes["R"]
        states = {
            "shift": replace(config.states["shift"], entries=2 * runs),
            "wkv": replace(config.states["wkv"], entries=runs),
        }
        return replace(config, states=states)

    def load(self, ops, checkpoint, config):
        read = SCHEMA.read(checkpoint)
        layers = [
            (
                goose.TimeMix.load(ops, read.block(i), i == 0, config.group_norm_eps),
                goose.ChannelMix.load(ops, read.block(i)),
            )
            for i in range(read.layers)
        ]
        return frame.Frame.load(ops, read), layers + layers[-1:] * read.sizes["R"]

    def step(self, ops, weights, full_output):
        around, layers = weights
        x, v_first = around.enter(ops), None
        for i, (time_mix, channel_mix) in enumerate(layers):
            y, v_first = time_mix.read_out(ops, x, v_first, 2 * i, i)
            x = channel_mix.add(ops, time_mix.add(ops, x, y), 2 * i + 1)
        return around.leave(ops, x, full_output)


MODEL = Rwkv99()
'''


@pytest.fixture
def with_rwkv99(tmp_path, monkeypatch):
    """The package as if the file lay in its folder; a checkpoint, and its RWKV-7 written out."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "rwkv99.py").write_text(RWKV99)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    registry.model_files.cache_clear()
    plain = load_file(random_rwkv7(tmp_path / "plain.safetensors"))
    last = {n: a for n, a in plain.items() if n.startswith("blocks.1.")}
    repeated = {n.replace("blocks.1.", f"blocks.{i}."): a for i in (2, 3) for n, a in last.items()}
    save_file(plain | repeated, tmp_path / "four.safetensors")
    save_file(plain | {"again": np.zeros(2, np.float32)}, tmp_path / "looped.safetensors")
    yield tmp_path / "looped.safetensors", tmp_path / "four.safetensors"
    registry.model_files.cache_clear()
    name = f"{package.__name__}.rwkv99"
    sys.modules.pop(name, None)
    if hasattr(package, "rwkv99"):
        del package.rwkv99


def test_a_file_in_the_models_folder_is_all_that_a_new_version_takes(with_rwkv99):
    looped, four = with_rwkv99
    tokens = [5, 17, 3, 80, 3, 17]
    model = kf.load_reference(looped)
    assert model.config.version == "rwkv99"
    assert kf.load_reference(four).config.version == "rwkv7"
    got, state = model.forward(tokens, full_output=True)
    expected, _ = kf.load_reference(four).forward(tokens, full_output=True)
    np.testing.assert_array_equal(got, expected)
    assert state.position == len(tokens)


def test_decoding_saved_states_and_the_command_line_know_it_too(with_rwkv99, tmp_path, capsys):
    looped, _ = with_rwkv99
    model = kf.load_reference(looped)
    expected, _ = model.forward([5, 17, 3])
    _, state = model.forward([5, 17])
    state.save(tmp_path / "state.safetensors")
    got, _ = model.forward([3], model.load_state(tmp_path / "state.safetensors"))
    assert compare("logits", got, expected, F32, reduction=4 * model.config.width).ok
    assert main(["inspect", str(looped)]) == 0
    assert re.search(r"version +rwkv99", capsys.readouterr().out)


def test_without_its_file_the_version_is_unknown(with_rwkv99, monkeypatch):
    looped, _ = with_rwkv99
    monkeypatch.setattr(package, "__path__", package.__path__[:-1])
    registry.model_files.cache_clear()
    with pytest.raises(kf.KernelForgeError, match="again is no tensor of this version"):
        kf.load_reference(looped)
