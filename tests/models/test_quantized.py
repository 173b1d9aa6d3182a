"""q8 and nf4 models: what they lose, what they take, and that every path computes the same."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.evaluation.text import score_text
from kernelforge.cli.main import main
from kernelforge.convert import convert_checkpoint
from kernelforge.families import load_families
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.dtypes import DTYPES, NF4, Q8
from kernelforge_runtime.errors import BundleError, ModelError
from kernelforge_runtime.models.survey import Survey
from kernelforge_runtime.ops.numpy_quantized import QuantizedRows, Workers
from kernelforge_runtime.quantize import dequantize, quantize
from kernelforge_runtime.text import load_tokenizer
from kernelforge_runtime.weights import open_checkpoint
from tests.models.checkpoints import DEMO, ROOT, random_rwkv7
from tests.models.versions import VERSIONS

BOTH = pytest.mark.parametrize("weights", ["q8", "nf4"])
HELD_OUT_BYTES = 769
LIMIT_PERCENT = {"q8": 1.0, "nf4": 5.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("q") / "m.safetensors", layers=2, width=128)


@pytest.fixture(scope="module")
def plain_score():
    if DEMO is None:
        pytest.skip("no demonstration model in runtime/demo")
    return perplexity("f32")


def perplexity(weights):
    text = (DEMO.parent / "heldout.txt").read_bytes()[:HELD_OUT_BYTES]
    with kf.load_reference(DEMO, weights=weights) as model:
        return score_text(model, load_tokenizer("auto", model.config.vocab), text).perplexity


@BOTH
def test_the_demonstration_model_predicts_held_out_text_almost_as_well(weights, plain_score):
    found = perplexity(weights)
    worse = 100 * (found / plain_score - 1)
    said = f"{weights}: perplexity {found:.4f}, f32 {plain_score:.4f}: {worse:+.2f} %"
    print(said)  # noqa: T201
    assert worse <= LIMIT_PERCENT[weights], said


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(96, 64), (5000, 192), (33, 100)])
def test_products_equal_those_of_the_decoded_matrix_with_any_number_of_threads(
    weights, dtype, shape, rng
):
    rows, k = shape
    values = rng.standard_normal(shape).astype(np.float32)
    matrix = QuantizedRows.of("m", values, DTYPES[weights])
    padded = np.pad(values, ((0, 0), (0, -k % 64)))
    decoded = dequantize(quantize(padded, DTYPES[weights]), DTYPES[weights])[:, :k]
    np.testing.assert_array_equal(matrix.rows(0, rows), decoded)
    x = rng.standard_normal((3, k)).astype(dtype)
    expected = x.astype(np.float64) @ decoded.astype(np.float64).T
    found = []
    for threads in (1, 2, 5):
        workers = Workers(threads)
        found.append(workers.product(x, matrix))
        workers.close()
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(found[0], expected, atol=tolerance)
    assert found[0].dtype == dtype
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_a_failure_in_a_thread_is_not_lost(rng):
    matrix = QuantizedRows.of("m", rng.standard_normal((5000, 128)).astype(np.float32), Q8)
    workers = Workers(2)
    with pytest.raises(ValueError, match="matmul"):
        workers.product(np.zeros((1, 127), np.float32), matrix)
    workers.close()


@BOTH
def test_a_model_computes_what_a_float_model_of_its_decoded_weights_does(weights, path, tmp_path):
    form = DTYPES[weights]
    with open_checkpoint(path) as checkpoint:
        matrices = Survey(checkpoint).quantisable(form)
    quantised, plain = tmp_path / "q.safetensors", tmp_path / "p.safetensors"
    convert_checkpoint(path, quantised, None, None, weights, matrices)
    convert_checkpoint(quantised, plain, "f32")
    tokens = list(range(20))
    direct = kf.load_reference(path, np.float64, weights).forward(tokens, full_output=True)[0]
    read_back = kf.load_reference(quantised, np.float64).forward(tokens, full_output=True)[0]
    np.testing.assert_array_equal(direct, read_back)
    floats = kf.load_reference(plain, np.float64, "f32").forward(tokens, full_output=True)[0]
    whole = kf.load_reference(path, np.float64, "f32").forward(tokens, full_output=True)[0]
    # The rest is what float16 does to the embedding and the low-rank factors.
    assert np.abs(direct - floats).max() < 0.1 * np.abs(direct - whole).max()


@BOTH
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_runs_quantised(version, weights, tmp_path):
    source = VERSIONS[version](tmp_path / "m.safetensors", layers=2)
    with kf.load_reference(source, weights=weights) as model:
        assert model.weights.name == weights
        logits, _ = model.forward([1, 2, 3, 4], full_output=True)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weights", ["f32", "q8", "nf4"])
def test_the_memory_of_weights_is_what_the_survey_says(version, weights, tmp_path):
    source = VERSIONS[version](tmp_path / "m.safetensors", layers=2)
    with open_checkpoint(source) as checkpoint:
        survey = Survey(checkpoint)
    with kf.load_reference(source, weights=weights) as model:
        held = model.weight_bytes
    if weights == "f32":
        assert held == survey.nbytes(DTYPES["f32"])
        return
    # NumPy computes in float32 with what is float16 on a device; of a table it holds that.
    form = DTYPES[weights]
    halves = sum(
        2 * int(np.prod(part.shape))
        for stack in survey.stacks
        if max(p.shape[1] for p in stack) % 64
        for part in stack
    )
    padding = sum(
        part.shape[0] * (-part.shape[1] % 64) * (form.bits + 0.5) / 8
        for stack in survey.stacks
        if max(p.shape[1] for p in stack) % 64 == 0
        for part in stack
    )
    assert held == survey.nbytes(form) + halves + padding


RESIDENT = """
import gc, os, sys
import kernelforge_runtime as kf
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
kf.load_reference(sys.argv[3], weights=sys.argv[2]).forward([1])  # what is made once
before = resident()
model = kf.load_reference(sys.argv[1], weights=sys.argv[2], threads=1)
print(resident() - before, model.weight_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_the_process_holds_no_more_than_the_quantised_weights(tmp_path, path):
    big = random_rwkv7(tmp_path / "big.safetensors", layers=2, width=768, vocab=512)
    grown = {}
    for weights in ("f32", "q8", "nf4"):
        done = subprocess.run(
            [sys.executable, "-c", RESIDENT, str(big), weights, str(path)],
            env={
                "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}",
                "MALLOC_MMAP_THRESHOLD_": "65536",  # or the C library keeps what was freed
            },
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        grown[weights], expected = (int(word) for word in done.stdout.split())
        assert grown[weights] < expected + 4e6, grown
    assert grown["q8"] < 0.4 * grown["f32"], grown
    assert grown["nf4"] < 0.75 * grown["q8"], grown


def test_a_huge_weight_is_refused_by_name(tmp_path):
    def change(weights):
        weights["blocks.0.ffn.key.weight"][3, 5] = 1e6

    spoilt = random_rwkv7(tmp_path / "m.safetensors", change=change)
    assert kf.load_reference(spoilt, weights="q8").weights == Q8
    with pytest.raises(ModelError, match=r"blocks.0.ffn.key.weight does not fit nf4"):
        kf.load_reference(spoilt, weights="nf4")


def has_kernels(device, precision):
    """Whether the bundles have what decoding and prefill need in this precision."""
    if any(precision not in load_families()[name].precisions for name in ("gemv", "gemm")):
        return False
    kernels = KernelSet.open(device.info)
    found = {e.family for b in kernels.bundles for e in b.entries if e.precision == precision.name}
    return {"gemv", "gemm"} <= found


@pytest.mark.vulkan
@pytest.mark.parametrize("form", [Q8, NF4], ids=str)
@pytest.mark.parametrize("activations", ["f32", "f16"])
def test_vulkan_gives_the_logits_of_numpy_in_decode_and_prefill(path, device, form, activations):
    if not has_kernels(device, form):
        pytest.skip(f"the bundles for {device.info.name} have no {form} matrix products")
    tokens = list(range(40))
    reference = kf.load_reference(path, np.float64, form.name, activations)
    expected, _ = reference.forward(tokens, full_output=True)
    with kf.load_model(path, device, weights=form.name, activations=activations) as model:
        whole, _ = model.forward(tokens, full_output=True)
        state, single = None, []
        for token in tokens[:12]:
            logits, state = model.forward([token], state)
            single.append(logits)
        few, _ = model.forward(tokens[:6], full_output=True)
    limit = 1e-3 if activations == "f32" else 0.1
    np.testing.assert_allclose(whole, expected, atol=limit)
    np.testing.assert_allclose(np.stack(single), expected[:12], atol=limit)
    np.testing.assert_allclose(few, expected[:6], atol=limit)


@pytest.mark.vulkan
@pytest.mark.parametrize("form", [Q8, NF4], ids=str)
def test_a_head_beyond_the_binding_limit_goes_in_pages_with_its_scales(
    device, tmp_path, monkeypatch, form
):
    if not has_kernels(device, form):
        pytest.skip(f"the bundles for {device.info.name} have no {form} matrix products")
    source = random_rwkv7(tmp_path / "m.safetensors", layers=1, width=64, vocab=5003)
    tokens = [0, 1023, 1024, 5002, 2047, 5]
    reference = kf.load_reference(source, np.float64, form.name)
    expected, _ = reference.forward(tokens, full_output=True)
    limit = form.nbytes(64 * 1024) + 100_000  # at most a few pages of 1024 rows
    monkeypatch.setattr(device, "info", replace(device.info, max_storage_buffer=limit))
    with kf.load_model(source, device, weights=form.name) as model:
        pages = [c for c in model.calls(1) if c.label == "head.weight"]
        assert len(pages) >= 2
        assert all("scale" in c.operands for c in pages)
        found, _ = model.forward(tokens, full_output=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.vulkan
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weights", ["f16", "q8", "nf4"])
def test_a_device_takes_as_much_memory_as_computed(version, weights, llvmpipe, tmp_path):
    source = VERSIONS[version](tmp_path / "m.safetensors", layers=2)
    form = DTYPES[weights]
    with open_checkpoint(source) as checkpoint:
        survey = Survey(checkpoint)
    try:
        with kf.load_model(source, llvmpipe, weights=weights) as model:
            held = model.weight_bytes
    except BundleError as error:
        pytest.skip(f"no kernels: {error}")
    assert held == survey.device_nbytes(form, llvmpipe.info.max_storage_buffer)
    assert held >= survey.nbytes(form)


@pytest.mark.vulkan
def test_eval_compares_formats_on_a_device_and_their_memory_is_as_computed(
    llvmpipe, tmp_path, capsys
):
    if DEMO is None:
        pytest.skip("no demonstration model in runtime/demo")
    missing = [str(form) for form in (Q8, NF4) if not has_kernels(llvmpipe, form)]
    if missing:
        pytest.skip(f"the bundles for {llvmpipe.info.name} have no {missing} matrix products")
    text = tmp_path / "text.txt"
    text.write_bytes((DEMO.parent / "heldout.txt").read_bytes()[:HELD_OUT_BYTES])
    asked = [str(DEMO), "--text", str(text), "--device", llvmpipe.info.name, "--json"]
    assert main(["eval", *asked, "--weights", "f16,q8,nf4"]) == 0
    f16, q8, nf4 = json.loads(capsys.readouterr().out)["formats"]
    assert f16["worse_percent"] == 0
    for one in (q8, nf4):
        assert one["worse_percent"] <= LIMIT_PERCENT[one["weights"]], one
        assert one["perplexity"] != f16["perplexity"]
    for one in (f16, q8, nf4):
        assert one["weight_bytes"] == one["computed_weight_bytes"]
    assert nf4["weight_bytes"] < q8["weight_bytes"] < f16["weight_bytes"]
