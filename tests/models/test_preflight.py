"""Memory is reckoned to the byte before anything is allocated, and refused in one line."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.errors import DeviceError, OutOfMemoryError
from kernelforge_runtime.plan.arena import Arena, planned_blocks
from kernelforge_runtime.vk.memory import parse_bytes
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rwkv7_rosa, random_rwkv7a
from tests.models.older_checkpoints import random_older

FORMATS = ("f32", "f16", "q8", "0:q8,1:nf4,head:bf16")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", width=128, vocab=320)


@pytest.fixture
def own(device):
    """A device of the test's own, whose memory nobody else takes."""
    with kf.open_device(device.info.slug) as opened:
        yield opened


@pytest.fixture
def lavapipe(llvmpipe):
    with kf.open_device(llvmpipe.info.slug) as opened:
        yield opened


KERNELS = {}


def load(path, device, **how):
    """With bundles that are read once for all tests."""
    slug = device.info.slug
    KERNELS[slug] = KERNELS.get(slug) or KernelSet.open(device.info)
    return kf.load_model(path, device, KERNELS[slug], **how)


def run_all(model, chunk):
    """A prompt's largest step and one of decoding, in every slot."""
    states = [model.new_state() for _ in range(model.slots)]
    if chunk > model.slots:
        model.forward_batch([[1] * (chunk // model.slots)] * model.slots, states)
    if model.slots == 1:
        model.greedy(1, states[0])
    else:
        model.forward_batch([[1]] * model.slots, states)


@pytest.mark.parametrize(("slots", "chunk", "quant"), [(1, 16, FORMATS[3]), (3, 16, "q8")])
def test_what_is_reckoned_is_what_is_allocated(path, own, slots, chunk, quant):
    with load(path, own, slots=slots, quant=quant, chunk=chunk) as model:
        assert own.memory.used == model.needs.total - model.needs.parts["work"]
        run_all(model, chunk)
        assert own.memory.used == model.needs.total == sum(model.needs.heaps.values())
        assert model.needs.parts["weights"] == model.weight_bytes
    assert own.memory.used == 0


@pytest.mark.parametrize(
    ("write", "activations"),
    [
        (random_rwkv7_rosa, "f32"),
        (random_rwkv7a, "f16"),
        (lambda path: random_older(path, version="rwkv6"), "f16"),
        (lambda path: random_older(path, version="rwkv4"), "f32"),
    ],
)
def test_so_it_is_for_other_versions_and_activations(write, activations, tmp_path, lavapipe):
    path = write(tmp_path / "m.safetensors")
    how = {"activations": activations, "slots": 2, "chunk": 16}
    with load(path, lavapipe, **how) as model:
        run_all(model, 16)
        assert lavapipe.memory.used == model.needs.total


@pytest.mark.parametrize("write", [random_rwkv7, random_rwkv7a])
def test_with_hooks_what_looking_takes_is_reckoned_too(write, tmp_path, lavapipe):
    path = write(tmp_path / "m.safetensors")
    with load(path, lavapipe, chunk=16, hooks=True) as model:
        run_all(model, 16)
        assert lavapipe.memory.used == model.needs.total - model.needs.parts["hooks"]
        width = model.config.width
        for tokens in (16, 1):  # this other version reads more of a token than its embedding
            takes = model.config.version == "rwkv7"
            rows = {"vectors": np.ones((tokens, width))} if takes else {"tokens": [1] * tokens}
            model.forward(**rows, hidden=kf.Hidden())
        assert lavapipe.memory.used == model.needs.total
        assert f"hooks {model.needs.parts['hooks']:,}" in str(model.needs)
    with load(path, lavapipe, chunk=16) as model:
        assert model.needs.parts["hooks"] == 0


def test_who_looks_where_there_is_no_room_gets_that_of_other_steps_or_is_told(path, lavapipe):
    with load(path, lavapipe, chunk=16) as model:
        model.forward([5] * 16)
        lavapipe.memory.limit = lavapipe.memory.used + 100
        found = model.forward([3, 4], hidden=kf.Hidden())[0]  # for which that step goes
        lavapipe.memory.limit = None
        np.testing.assert_array_equal(model.forward([3, 4], hidden=kf.Hidden())[0], found)
        lavapipe.memory.limit = 1000
        with pytest.raises(OutOfMemoryError, match=r"bytes \(weights .* available: ") as found:
            model.forward([3] * 16, hidden=kf.Hidden())
        assert "\n" not in str(found.value)


def test_a_prefix_cache_the_host_has_no_room_for_is_refused_before_loading(
    path, lavapipe, monkeypatch
):
    with load(path, lavapipe, chunk=8) as model:
        total = model.needs.total
    monkeypatch.setattr("kernelforge_runtime.models.preflight.available_bytes", lambda: 5_000_000)
    lavapipe.memory.peak = 0
    with pytest.raises(OutOfMemoryError) as found:
        load(path, lavapipe, chunk=8, prefix_cache=6_000_000)
    assert lavapipe.memory.peak == 0
    said = str(found.value)
    assert "and on the host: prefix cache 6,000,000 bytes | available: " in said
    assert ", 5,000,000 bytes on the host | " in said
    fits = 5_000_000 - total  # the device computes on the host, and has its memory
    assert said.endswith(f"would fit: prefix cache of at most {fits:,} bytes")
    with pytest.raises(OutOfMemoryError):
        load(path, lavapipe, chunk=8, prefix_cache=fits + 1)
    load(path, lavapipe, chunk=8, prefix_cache=fits).close()
    monkeypatch.setattr("kernelforge_runtime.models.preflight.available_bytes", lambda: None)
    load(path, lavapipe, chunk=8, prefix_cache=1 << 60).close()


def test_more_than_one_block_of_weights_leaves_no_gap(lavapipe):
    sizes = [300, 256 * 3, 5000, 256, 256 * 2, 2048]
    arena = Arena(lavapipe, "test", block_bytes=2048)
    counted = Arena(lavapipe, "sizes", block_bytes=2048)
    for size in sizes:
        counted.take(size)
    arena.planned = planned_blocks(counted.taken, 2048)
    assert arena.planned == [512 + 768 + 256 + 512, 2048]
    before = lavapipe.memory.used
    for size in sizes:
        arena.take(size)
    assert lavapipe.memory.used - before == sum(counted.taken) == arena.nbytes
    arena.close()
    counted.close()


def test_what_does_not_fit_is_refused_before_anything_is_allocated(path, own):
    with load(path, own, weights="f32", chunk=8) as model:
        most = model.needs.total
    with load(path, own, weights="bf16", chunk=8) as model:
        fitting = model.needs.total
    own.memory.limit, own.memory.peak = most - 1, 0
    with pytest.raises(OutOfMemoryError) as found:
        load(path, own, weights="f32", chunk=8)
    said = str(found.value)
    assert own.memory.peak == 0
    assert "buffer" not in own.live_objects
    assert "\n" not in said
    assert f"needed on {own.info.name}: {most:,} bytes (weights " in said
    assert f"{most - 1:,} of {most - 1:,} bytes of the limit (--memory, KERNELFORGE_MEMORY)" in said
    assert "heap 0" in said
    assert said.endswith(f"would fit: bf16 with {fitting:,} bytes")  # before f16
    with load(path, own, weights="bf16", chunk=8) as model:
        run_all(model, 8)
    assert own.memory.peak == fitting


def test_the_files_own_format_comes_first_among_equals(tmp_path, lavapipe):
    def halve(weights):
        weights |= {name: array.astype(np.float16) for name, array in weights.items()}

    path = random_rwkv7(tmp_path / "m.safetensors", change=halve)
    with load(path, lavapipe, weights="f32", chunk=4) as model:
        lavapipe.memory.limit = model.needs.total - 1
    with pytest.raises(OutOfMemoryError, match="would fit: f16 with"):
        load(path, lavapipe, weights="f32", chunk=4)


def test_where_no_format_fits_fewer_slots_or_shorter_steps_are_named(path, lavapipe):
    limits, told = {}, {}
    for slots, chunk in ((8, 64), (1, 64), (1, 1)):
        with load(path, lavapipe, weights="nf4", slots=slots, chunk=chunk) as model:
            limits[slots, chunk] = model.needs.total
    for (slots, chunk), limit in limits.items():
        lavapipe.memory.limit = limit - 1
        with pytest.raises(OutOfMemoryError) as found:
            load(path, lavapipe, weights="nf4", slots=slots, chunk=chunk)
        told[slots, chunk] = str(found.value).rpartition(" | ")[2]
    assert told[8, 64].endswith(f"would fit: nf4, 1 slot, with {limits[1, 64]:,} bytes")
    assert told[1, 64].endswith(f"nf4, 1 slot and a chunk of 1, with {limits[1, 1]:,} bytes")
    assert told[1, 1] == "no weight format fits"


def test_steps_of_every_size_run_within_what_was_reckoned(path, lavapipe):
    prompts = [[5] * n for n in (1, 3, 16, 3)]
    with load(path, lavapipe, chunk=16) as model:
        expected = [model.forward(p)[0] for p in prompts]
        lavapipe.memory.limit = lavapipe.memory.peak = model.needs.total
    assert lavapipe.memory.used == 0
    with load(path, lavapipe, chunk=16) as model:
        for prompt, logits in zip(prompts, expected, strict=True):
            np.testing.assert_array_equal(model.forward(prompt)[0], logits)
        assert lavapipe.memory.peak <= lavapipe.memory.limit


def test_memory_that_runs_out_later_is_told_the_same_way_and_the_model_lives_on(path, lavapipe):
    with load(path, lavapipe, chunk=8) as model:
        expected, _ = model.forward([3, 4])
        lavapipe.memory.limit = model.needs.total
        with pytest.raises(OutOfMemoryError) as found:
            model.forward([1] * 256, full_output=True, chunk=256)
        assert "allocating buffer 'work'" in str(found.value)
        assert f"needed on {lavapipe.info.name}: {model.needs.total:,} bytes" in str(found.value)
        np.testing.assert_array_equal(model.forward([3, 4])[0], expected)


class Refusing:
    """A driver that has no memory for large allocations any more."""

    def __init__(self, lib, most):
        self._lib, self._most = lib, most

    def __getattr__(self, name):
        return getattr(self._lib, name)

    def vkAllocateMemory(self, device, info, allocator, out):  # noqa: N802
        if info.allocationSize > self._most:
            return -2
        return self._lib.vkAllocateMemory(device, info, allocator, out)


@pytest.mark.parametrize("most", [1000, 300_000])
def test_what_the_driver_refuses_is_told_the_same_way(path, lavapipe, most):
    lavapipe.lib = Refusing(lavapipe.lib, most)
    with pytest.raises(OutOfMemoryError) as found:
        load(path, lavapipe)
    said = str(found.value)
    assert "VK_ERROR_OUT_OF_DEVICE_MEMORY" in said
    assert f"needed on {lavapipe.info.name}: " in said
    assert "\n" not in said
    assert lavapipe.memory.used == 0
    assert "buffer" not in lavapipe.live_objects


def test_drivers_budget_is_asked_where_there_is_one(lavapipe):
    if lavapipe.physical.memory_budget() is None:
        pytest.skip("this driver has no VK_EXT_memory_budget")
    budget, _ = lavapipe.physical.memory_budget()[0]
    assert 0 < lavapipe.memory.free(0) <= budget <= lavapipe.physical.heaps[0]
    lavapipe.physical.memory_budget = lambda: [(5000, 1000)]
    assert lavapipe.memory.free(0) == 4000


def test_without_budgets_the_heap_less_what_is_taken_is_free(lavapipe):
    lavapipe.physical.memory_budget = lambda: None
    whole = lavapipe.memory.free(0)
    buffer = lavapipe.buffer(1 << 20)
    assert whole - lavapipe.memory.free(0) == 1 << 20
    buffer.close()


def test_a_heap_that_is_full_refuses_without_any_limit(path, lavapipe):
    lavapipe.physical.memory_budget = lambda: [(100_000, 0)]
    with pytest.raises(OutOfMemoryError, match=r"available: 100,000 of [0-9,]+ bytes in heap 0 \|"):
        load(path, lavapipe)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("2GiB", 2 << 30), ("1.5 GB", 1_500_000_000), ("500M", 500 << 20), ("7kib", 7168)],
)
def test_sizes_are_read_as_people_write_them(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "1e9", "2XB", "nan", "٢GiB", "9" * 99])
def test_other_sizes_are_refused(text):
    with pytest.raises(DeviceError, match="expected a size like 2GiB"):
        parse_bytes(text)


def test_verbs_take_a_limit_by_option_or_environment(path, llvmpipe, monkeypatch, capsys):
    run = ["run", str(path), "--prompt-ids", "5", "--tokens", "1", "--tokenizer", "bytes"]
    assert main([*run, "--device", "llvmpipe", "--memory", "50kB"]) == 1
    assert "50,000 of 50,000 bytes of the limit" in capsys.readouterr().err
    assert main([*run, "--device", "cpu", "--memory", "50kB"]) == 2
    assert "--memory is of a Vulkan device" in capsys.readouterr().err
    monkeypatch.setenv("KERNELFORGE_MEMORY", "60kB")
    with pytest.raises(OutOfMemoryError, match="60,000 of 60,000 bytes of the limit"):
        kf.load_model(path)
    monkeypatch.setenv("KERNELFORGE_MEMORY", "plenty")
    assert main([*run, "--device", "llvmpipe"]) == 1
    assert "memory limit 'plenty'" in capsys.readouterr().err


@pytest.mark.parametrize("what", [["--batch", "2"], ["--first-token"]])
def test_bench_takes_the_limit_whatever_it_serves(path, what, capsys):
    arguments = ["bench", str(path), "--pp", "0", "--tg", "0", *what, "--device", "llvmpipe"]
    assert main([*arguments, "--memory", "50kB", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "50,000 of 50,000 bytes of the limit" in said
    assert said.count("\n") == 1


def test_a_matrix_packed_a_few_rows_at_a_time_is_the_same(path, lavapipe, monkeypatch):
    found = []
    for at_once in (1 << 20, 1 << 12):
        monkeypatch.setattr("kernelforge_runtime.ops.matrix_place.CACHED_ELEMENTS", at_once)
        with load(path, lavapipe, quant=FORMATS[3]) as model:
            found.append(model.forward([5, 6])[0])
    np.testing.assert_array_equal(*found)
