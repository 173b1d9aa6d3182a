"""Int8 dot products in a model: off by default, taken where they were faster, held to a bound."""

import json
import logging

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from kernelforge_runtime import Int8Dot
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import locate_generic, open_bundle
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.int8_dot import INT8_BOUND
from kernelforge_runtime.models.int8_gate import relative_error
from tests.conftest import DEVICES
from tests.conftest import opened as opened_device
from tests.models.checkpoints import random_rwkv7
from tests.models.fused_kernels import generic_without, kernel_set, tuned
from tests.models.versions import VERSIONS

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

ALWAYS = Int8Dot("always")
TOKENS = [1, 2, 3, 5, 8, 13]


def times(exact, rounding):
    """Both families, as if measured, for one token and for eight."""
    sizes = [Problem(M=128, K=128, S=1, T=t, X=32, Y=32) for t in (1, 8)]
    return [(n, "q8", p, ns) for n, ns in (("gemv", exact), ("gemv_dot", rounding)) for p in sizes]


@pytest.fixture(scope="module")
def device():
    return opened_device(DEVICES[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, device):
    """A bundle in which rounding was faster."""
    place = tmp_path_factory.mktemp("rounding")
    tuned(device, place, times(200, 100))
    return next(place.glob("*/manifest.json")).parent


@pytest.fixture(scope="module")
def kernels(device, folder):
    generic = open_bundle(locate_generic(device.info).bundle_path, device.info)
    return kernel_set(open_bundle(folder, device.info), generic)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", layers=2, width=128)


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """Every 32nd input of the last matrix is huge, and counts for nothing."""

    def change(weights):
        weights["ln_out.weight"][::32] = 1000.0
        weights["head.weight"][:, ::32] = 0.0

    target = tmp_path_factory.mktemp("loud") / "loud.safetensors"
    return random_rwkv7(target, layers=1, width=128, change=change)


def families(model):
    return {c.selection.entry.family for c in model.calls(1) if c.selection.entry.precision == "q8"}


def test_nothing_is_rounded_unless_it_is_asked_for(device, kernels, path):
    with kf.load_model(path, device, kernels, "q8") as model:
        assert families(model) == {"gemv"}
        assert model.int8 is None


@pytest.mark.parametrize("use", ["faster", "always"])
def test_a_model_that_bears_it_is_off_by_what_the_trial_says(device, kernels, path, use):
    with kf.load_model(path, device, kernels, "q8") as model:
        exact = model.forward(TOKENS, full_output=True, chunk=1)[0]
    with kf.load_model(path, device, kernels, "q8", int8_dot=Int8Dot(use)) as model:
        assert families(model) == {"gemv_dot"}
        report = model.int8
        one = model.forward(TOKENS, full_output=True, chunk=1)[0]
        together = model.forward(TOKENS, full_output=True, chunk=8)[0]
    assert report.products == report.of > 0
    assert 0 < report.error <= INT8_BOUND
    assert "of their spread" in str(report)
    for found in (one, together):
        assert 0.3 * report.error < relative_error(found, exact) < 3 * report.error


def test_a_prompt_stays_exact_where_the_matrix_kernels_do_it(device, kernels, path):
    prompt = list(range(40))
    with kf.load_model(path, device, kernels, "q8") as model:
        exact = model.forward(prompt, full_output=True)[0]
    with kf.load_model(path, device, kernels, "q8", int8_dot=ALWAYS) as model:
        np.testing.assert_array_equal(model.forward(prompt, full_output=True)[0], exact)


def test_a_model_with_outliers_is_refused_in_one_line(device, kernels, loud):
    with pytest.raises(ModelError, match=r"off by \d+ % of their spread, more than the bound of 5"):
        kf.load_model(loud, device, kernels, "q8", int8_dot=ALWAYS)
    with kf.load_model(loud, device, kernels, "q8", int8_dot=Int8Dot("always", 10.0)) as model:
        assert model.int8.error > 0.2


def test_the_bound_is_the_callers_to_choose(device, kernels, path):
    with pytest.raises(ModelError, match="more than the bound of 1e-05 %"):
        kf.load_model(path, device, kernels, "q8", int8_dot=Int8Dot("always", 1e-7))


def test_where_rounding_was_slower_all_stays_exact_and_is_said(device, path, tmp_path, caplog):
    generic = generic_without(device.info, ["gemv_dot"])
    slower = kernel_set(tuned(device, tmp_path, times(100, 200)), generic)
    caplog.set_level(logging.WARNING)
    with kf.load_model(path, device, slower, "q8", int8_dot=Int8Dot("faster")) as model:
        assert families(model) == {"gemv"}
        assert model.int8.products == 0 < model.int8.of
    assert "was measured faster; all are exact" in caplog.text


def test_what_cannot_be_is_said_in_one_line(device, kernels, path, tmp_path):
    with pytest.raises(ModelError, match="are of q8 weights, found f16"):
        kf.load_model(path, device, kernels, "f16", int8_dot=ALWAYS)
    old = kernel_set(generic_without(device.info, ["gemv_dot"]))
    with pytest.raises(ModelError, match="no int8 dot product was found"):
        kf.load_model(path, device, old, "q8", int8_dot=ALWAYS)
    with pytest.raises(ModelError, match="there are faster and always"):
        Int8Dot("often")
    with pytest.raises(ModelError, match="expected more than 0"):
        Int8Dot("always", 0.0)


def test_models_whose_signs_decide_are_refused(device, kernels, tmp_path):
    name = next(n for n in VERSIONS if "rosa" in n)
    source = VERSIONS[name](tmp_path / "m-1bit.safetensors", layers=1)
    with pytest.raises(ModelError, match="reads the sign of every value"):
        kf.load_model(source, device, kernels, "q8", int8_dot=ALWAYS)


def test_logits_that_do_not_differ_have_no_error_and_lost_ones_any(rng):
    exact = rng.standard_normal((3, 40)).astype(np.float32)
    assert relative_error(exact, exact) == 0.0
    assert relative_error(exact + 5, exact + 5) == 0.0
    assert relative_error(np.full_like(exact, np.nan), exact) != pytest.approx(0.0)
    flat = np.ones((1, 4), np.float32)
    assert relative_error(flat, flat) == 0.0
    assert relative_error(flat + 1, flat) == np.inf


def test_eval_compares_with_and_without(folder, tmp_path, capsys, device):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1, width=128, vocab=256)
    text = tmp_path / "text"
    text.write_bytes(bytes(range(30, 60)))
    command = ["eval", str(path), "--device", device.info.slug, "--bundle", str(folder)]
    command += ["--text", str(text), "--tokenizer", "bytes"]
    assert main([*command, "--weights", "q8", "--int8-dot", "always", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["formats"]
    assert [one["weights"] for one in found] == ["q8", "q8+int8"]
    assert found[0]["perplexity"] != found[1]["perplexity"]
    assert abs(found[1]["worse_percent"]) < 20
    assert found[1]["int8_dot"]["products"] > 0
    assert found[1]["weight_bytes"] == found[1]["computed_weight_bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8-dot", "always", "--weights", "f16"], "--int8-dot is for q8 weights"),
        (["--int8-dot", "always", "--device", "cpu"], "it has no --int8-dot"),
        (["--int8-bound", "0.1", "--weights", "q8"], "--int8-bound is of --int8-dot"),
        (["--int8-dot", "always", "--int8-bound", "-1"], "is not a number above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(path, capsys, options, message, device):
    given = options if "--device" in options else [*options, "--device", device.info.slug]
    try:
        code = main(["eval", str(path), "--text", str(path), *given])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
