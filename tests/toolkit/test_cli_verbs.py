"""What each verb does, and what it says about bad input; real processes on a software device."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from kernelforge.pack import Winner, pack
from kernelforge_runtime.abi.device_info import GENERIC as GENERIC_DEVICE
from kernelforge_runtime.bundle import open_bundle
from kernelforge_runtime.weights import open_checkpoint
from tests.runtime.model_files import Call, Global, dumps, write_archive, write_safetensors
from tests.toolkit.cli_process import (
    DEVICE,
    GENERIC,
    NO_TOOLS,
    NO_VULKAN,
    kernelforge,
    need_device,
    one_line,
    tiny_model,
    workplace,
)

vulkan = pytest.mark.vulkan
glslang = pytest.mark.glslang
PROMPT_IDS = "72,101,108,108,111"


def cpu_run(*arguments):
    return kernelforge("run", *arguments, "--device", "cpu", **NO_VULKAN, **NO_TOOLS)


# run


@vulkan
@glslang
def test_run_continues_a_prompt_from_a_bundle_without_a_compiler():
    place = workplace()
    asked = ["run", place.model, "Hello", "--greedy", "--tokens", "6", "--json"]
    found = kernelforge(*asked, "--stats", **place.env, **NO_TOOLS)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert len(told["tokens"]) == 6
    assert told["stats"]["device"].startswith(DEVICE)
    assert "prefill" in found.stderr
    steps = told["stats"]["dispatches"]
    each = steps["decode"]["layers"][0]
    line = f"a step of decode: {steps['decode']['total']} dispatches, {each} per layer"
    assert 6 <= each <= 12
    assert line in found.stderr
    by_numpy = json.loads(cpu_run(*asked[1:], "--weights", "f16").stdout)
    assert told["tokens"] == by_numpy["tokens"]
    assert told["text"] == by_numpy["text"]


@vulkan
@glslang
def test_run_traces_every_dispatch_on_a_line_and_keeps_stdout_for_the_text():
    place = workplace()
    found = kernelforge(
        "run", place.model, "Hi", "--tokens", "2", "--seed", "1", "--trace", **place.env
    )
    assert found.returncode == 0, found.stderr
    lines = found.stderr.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("dispatch "))
    first = [line.split()[0] for line in lines[heading + 1 : heading + 3]]
    assert first == ["emb.weight", "layer_norm"]
    assert "gemv/f16/" in found.stderr
    assert " GB/s  GFLOP/s  " in lines[heading]
    assert "us traced; untraced" in lines[-1]
    assert "emb.weight" not in found.stdout


def test_run_on_the_cpu_needs_neither_vulkan_nor_a_compiler_nor_a_bundle():
    found = cpu_run(tiny_model(), "--prompt-ids", PROMPT_IDS, "--tokens", "3", "--seed", "4")
    assert found.returncode == 0, found.stderr
    assert found.stdout
    assert found.stderr == ""


def test_run_reads_its_prompt_from_stdin_and_repeats_with_a_seed():
    asked = [tiny_model(), "--prompt-file", "-", "--tokens", "5", "--seed", "4", "--json"]
    texts = [
        json.loads(
            kernelforge("run", *asked, "--device", "cpu", stdin="Hello", **NO_VULKAN).stdout
        )["tokens"]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 5


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffHello".encode())
    found = cpu_run(tiny_model(), "--prompt-file", file, "--tokens", "1", "--json")
    assert json.loads(found.stdout)["stats"]["prompt_tokens"] == len("Hello")


def test_a_saved_state_goes_on_where_the_text_ended(tmp_path):
    model, state = tiny_model(), tmp_path / "state"
    first = cpu_run(model, "ab", "--greedy", "--tokens", "3", "--save-state", state, "--json")
    said = json.loads(first.stdout)["tokens"]
    then = cpu_run(model, "cd", "--greedy", "--tokens", "3", "--load-state", state, "--json")
    ids = ",".join(map(str, [97, 98, *said, 99, 100]))
    whole = cpu_run(model, "--prompt-ids", ids, "--greedy", "--tokens", "3", "--json")
    assert json.loads(then.stdout)["tokens"] == json.loads(whole.stdout)["tokens"]


def nan_weights(path):
    with open_checkpoint(tiny_model()) as checkpoint:
        arrays = {name: checkpoint.tensor(name) for name in checkpoint}
    arrays["blocks.0.att.key.weight"][3, 4] = np.nan
    return write_safetensors(path, arrays)


def truncated(path):
    path.write_bytes(tiny_model().read_bytes()[:-100])
    return path


def header_beyond_the_file(path):
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    return path


def lfs_pointer(path):
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"
    )
    return path


def unknown_version(path):
    return write_safetensors(path, {"model.embed.weight": np.zeros((4, 4), np.float32)})


def hostile_pth(path):
    return write_archive(path, dumps(Call(Global("os", "system"), "touch pwned"), 2), {})


BAD_MODELS = {
    "missing": (lambda path: path, "no such file"),
    "lfs": (lfs_pointer, "git"),
    "truncated": (truncated, ""),
    "long-header": (header_beyond_the_file, ""),
    "hostile-pth": (hostile_pth, "os.system"),
    "unknown-version": (unknown_version, "not an RWKV model of a known version"),
    "nan": (nan_weights, "NaN"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_file_is_one_line_that_names_it(kind, tmp_path):
    make, says = BAD_MODELS[kind]
    path = make(tmp_path / "model.safetensors")
    found = cpu_run(path, "Hello", "--tokens", "1")
    assert (found.returncode, found.stdout) == (1, "")
    assert says in one_line(found.stderr, f"kernelforge run: {path}: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt-ids", "99999"], "this model's ids are 0 to 255"),
        ([""], "no tokens to run"),
        (["x", "--weights", "q3"], "weight format 'q3'"),
        (["x", "--tokenizer", "klingon"], "tokenizer 'klingon' is not known"),
        (["x", "--temperature", "-1"], "temperature"),
        (["x", "--load-state", "/nonexistent"], "no such file"),
        (["--prompt-file", "/nonexistent"], "No such file"),
        (["x", "--tokens", "1", "--save-state", "/proc/state"], "state /proc/state"),
        (["x", "--save-state", "/proc/x/state"], "--save-state /proc/x/state: there is no such fo"),
        (["x", "--save-state", "/"], "--save-state /: it is a folder"),
    ],
)
def test_other_bad_input_of_run_is_one_line(arguments, says):
    found = cpu_run(tiny_model(), *arguments)
    assert found.returncode == 1
    assert says in one_line(found.stderr, "kernelforge run: ")


# devices, doctor


@pytest.mark.parametrize(
    "arguments",
    [
        ["devices"],
        ["tune", "--family", "copy", "--out", "{out}"],
        ["run", "{model}", "x"],
        ["build", "--device-profile", "this"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_a_device_there_is_one_line(arguments, tmp_path):
    filled = [a.format(out=tmp_path, model=tiny_model()) for a in arguments]
    found = kernelforge(*filled, XDG_DATA_HOME=str(tmp_path), **NO_VULKAN)
    assert (found.returncode, found.stdout) == (1, "")
    assert "no Vulkan" in one_line(found.stderr, f"kernelforge {arguments[0]}: ")


@vulkan
@glslang
def test_devices_lists_what_there_is_and_its_bundle():
    place = workplace()
    text = kernelforge("devices", **place.env)
    assert text.returncode == 0, text.stderr
    line = next(row for row in text.stdout.splitlines() if DEVICE in row)
    assert "generic" in line
    assert f"kernelforge tune --device {DEVICE}" in text.stderr
    told = json.loads(kernelforge("devices", "--json", **place.env).stdout)
    assert DEVICE in [device["slug"] for device in told["devices"]]


@vulkan
@glslang
def test_doctor_is_content_where_a_bundle_runs_even_without_a_compiler():
    place = workplace()
    found = kernelforge("doctor", **place.env, **NO_TOOLS)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "ran a generic kernel" in found.stdout
    assert "apt-get install glslang-tools" in found.stdout


def test_doctor_fails_without_a_device_and_says_the_fix():
    found = kernelforge("doctor", **NO_VULKAN)
    assert found.returncode == 1
    assert "mesa-vulkan-drivers" in found.stdout
    assert one_line(found.stderr, "kernelforge doctor: no model can be run")


@vulkan
def test_doctor_finds_a_damaged_bundle(tmp_path):
    need_device()
    (tmp_path / "generic").mkdir()
    (tmp_path / "generic" / "manifest.json").write_text("{}")
    found = kernelforge("doctor", "--json", KERNELFORGE_TUNED=str(tmp_path))
    assert found.returncode == 1
    findings = {f["what"]: f for f in json.loads(found.stdout)["findings"]}
    assert findings["bundle generic"]["state"] == "missing"


# build, inspect, convert


@glslang
@vulkan
def test_building_twice_gives_the_same_bytes(tmp_path):
    workplace()
    for name in ("one", "two"):
        asked = ["--family", "copy", "--all", "--out", tmp_path / name]
        found = kernelforge("build", *asked, KERNELFORGE_CACHE=str(tmp_path / f"cache {name}"))
        assert found.returncode == 0, found.stderr
        assert "variants built for generic" in found.stdout
        assert "needs buffer_device_address" in found.stdout
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in sorted(
            (tmp_path / name).rglob("*.*")) if p.is_file()}
        for name in ("one", "two")
    }  # fmt: skip
    assert files["one"] == files["two"]
    assert {path.suffix for path in files["one"]} == {".spv", ".glsl"}


@pytest.mark.parametrize("verb", ["build", "tune"])
def test_building_without_a_compiler_is_one_line(verb, tmp_path):
    asked = [verb, "--family", "copy", "--out", tmp_path]
    found = kernelforge(*asked, **NO_TOOLS)
    assert found.returncode == 1
    assert "apt-get install glslang-tools" in one_line(found.stderr, f"kernelforge {verb}: ")


@pytest.mark.parametrize("verb", ["build", "tune"])
def test_an_output_folder_that_cannot_be_written_is_refused_at_once(verb, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    found = kernelforge(verb, "--family", "copy", "--out", out)
    assert (found.returncode, found.stdout) == (1, "")
    line = one_line(found.stderr, f"kernelforge {verb}: ")
    assert str(out) in line
    assert "--out" in line


FEW = ("copy", "gemm", "layer_norm", "sample")


def few_kernels(folder):
    """The generic bundle's float32 kernels of FEW families, as a bundle; how many they are."""
    whole = open_bundle(GENERIC)
    kept = []
    for entry in whole.entries:
        if entry.family in FEW and entry.precision == "f32":
            seen = entry.verified
            checked = SimpleNamespace(
                ok=True, seed=seen.seed, max_error=seen.max_abs_error, tolerance=seen.tolerance
            )
            names = ("family", "precision", "problem", "median_ns", "spread_ns", "trials")
            more = ("default_ns", "template_sha256", "glsl_sha256")
            told = {name: getattr(entry, name) for name in (*names, *more)}
            kept.append(Winner(module=whole.module(entry), verification=checked, **told))
    pack(folder, GENERIC_DEVICE, kept, toolchain=whole.manifest.toolchain)
    return len(kept)


@glslang
@vulkan
def test_inspect_shows_a_family_a_variant_a_model_and_a_bundle(tmp_path):
    place = workplace()
    family = json.loads(kernelforge("inspect", "gemv", "--space", "--json").stdout)
    space = family["space"]
    assert space["size"] == space["valid"] + sum(r["first"] for r in space["reasons"])
    variant = kernelforge("inspect", "copy/f32/ADDRESS0.WORKGROUP64", "--glsl", "--stats")
    assert "#version" in variant.stdout
    assert "instructions" in variant.stdout
    model = json.loads(kernelforge("inspect", place.model, "--json", "--check").stdout)
    assert (model["version"], model["width"], model["vocab"]) == ("rwkv7", 64, 256)
    assert model["weight_bytes"]["f32"] > model["weight_bytes"]["f16"]
    count = few_kernels(tmp_path)
    few = {**place.env, "KERNELFORGE_TUNED": str(tmp_path)}
    bundle = kernelforge("inspect", "generic", "--check", "--device", DEVICE, **few)
    assert bundle.returncode == 0, bundle.stderr
    assert f": {count} kernels right, 0 wrong, 0 skipped" in bundle.stdout
    assert "stale" not in bundle.stdout


@glslang
@vulkan
def test_the_generic_bundle_is_that_of_todays_kernels(tmp_path):
    """What `build --generic` makes, but for SPIR-V of another compiler, and measurements."""
    made = kernelforge("build", "--generic", "--device", DEVICE, "--out", tmp_path)
    assert made.returncode == 0, made.stderr
    entries = [
        {
            (entry["family"], entry["variant"], entry["glsl_sha256"], str(entry["problem"]))
            for entry in json.loads((folder / "manifest.json").read_text())["entries"]
        }
        for folder in (tmp_path / "generic", GENERIC)
    ]
    assert entries[0] == entries[1], "run `kernelforge build --generic` and commit tuned/generic"
    assert len(entries[0]) > 100


@glslang
@vulkan
def test_inspect_refuses_a_bundle_of_which_a_byte_was_changed(tmp_path):
    place = workplace()
    for name in ("manifest.json", "kernels.safetensors"):
        (tmp_path / name).write_bytes((place.tuned / "generic" / name).read_bytes())
    kernels = tmp_path / "kernels.safetensors"
    data = bytearray(kernels.read_bytes())
    data[-40] ^= 1
    kernels.write_bytes(data)
    found = kernelforge("inspect", tmp_path, "--check", "--device", DEVICE)
    assert found.returncode == 1
    assert str(kernels) in one_line(found.stderr, "kernelforge inspect: ")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("gmv", "did you mean gemv?"),
        ("gemv/f99/ROWS4", "no precision f99"),
        ("gemv/f16/ROWS4", "has no value"),
        ("gemv/f16", "expected FAMILY/PRECISION/PARAMETERS"),
    ],
)
def test_inspect_says_what_a_wrong_name_should_be(target, says):
    found = kernelforge("inspect", target)
    assert found.returncode == 1
    assert says in one_line(found.stderr, "kernelforge inspect: ")


def test_convert_writes_a_model_that_runs_the_same(tmp_path):
    target = tmp_path / "converted.safetensors"
    made = kernelforge("convert", tiny_model(), target, "--dtype", "f32", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["path"] == str(target)
    asked = ["--prompt-ids", PROMPT_IDS, "--greedy", "--tokens", "4", "--json"]
    tokens = [json.loads(cpu_run(m, *asked).stdout)["tokens"] for m in (tiny_model(), target)]
    assert tokens[0] == tokens[1]


def test_convert_to_a_place_that_cannot_be_written_is_one_line(tmp_path):
    found = kernelforge("convert", tiny_model(), "/proc/nowhere/x.safetensors")
    assert found.returncode == 1
    assert one_line(found.stderr, "kernelforge convert: /proc/nowhere/x.safetensors: ")
