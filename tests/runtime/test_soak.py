"""What `scripts/soak.py` does for half an hour, for a moment; it sees what is wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import random_rwkv7

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", layers=1, vocab=96, seed=5)


@pytest.mark.vulkan
def test_random_requests_at_full_slots_leak_nothing_and_say_what_the_oracle_says(
    soak, path, llvmpipe, monkeypatch
):
    monkeypatch.setattr(soak, "WARM_STEPS", 20)
    with kf.load_model(path, llvmpipe, weights="f32", slots=4) as model:
        run = soak.Soak(model, kf.load_reference(path, weights="f32"))
        found = run.run(3.0)
        assert not found.wrong and not found.leaks
        assert found.checked >= 1 and found.steps > 20
        assert found.requests > found.steps / soak.MOST_TOKENS
        assert not run.engine.is_busy


@pytest.mark.vulkan
def test_a_text_that_is_not_the_oracle_s_and_an_object_left_open_are_told(
    soak, path, llvmpipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(soak, "WARM_STEPS", 0)
    monkeypatch.setattr(soak, "CHECKED", 1 << 30)
    other = random_rwkv7(tmp_path / "other.safetensors", layers=1, vocab=96, seed=6)
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as model:
        run = soak.Soak(model, kf.load_reference(other, weights="f32"))
        while not run.found.checked or run._first is None:
            run.step()
        left = llvmpipe.buffer(64)
        run._compare()
        left.close()
        assert run.found.wrong and "the oracle's" in run.found.wrong[0]
        assert any("Vulkan objects" in line for line in run.found.leaks)
        for _ in run.engine.run():
            pass


def test_a_model_that_is_not_there_is_one_line(soak, capsys):
    assert soak.main(["absent.pth", "--minutes", "0.01"]) == 1
    assert "absent.pth: no such file" in capsys.readouterr().err
