"""What inspect says of families that rival each other over the number of tokens."""

from pathlib import Path

from kernelforge.cli.crossovers import crossovers
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, open_bundle
from tests.runtime.bundle_files import DEVICE, SIGNATURE, entry, write_bundle


def bundle_of(folder: Path, times: dict[tuple[str, int], int]) -> Bundle:
    """Entries of a head of 64 by (family, tokens), with their medians in ns."""
    entries = [
        entry(Problem(T=tokens, H=2, N=64, B=1), family, median_ns=ns, signature=SIGNATURE)
        for (family, tokens), ns in times.items()
    ]
    return open_bundle(write_bundle(folder, DEVICE, sorted(entries, key=lambda e: e.key)), DEVICE)


def test_a_crossover_is_said_in_tokens(tmp_path: Path) -> None:
    recurrent = {("wkv7", t): 10 * t for t in (1, 16, 64, 256)}
    chunked = {("wkv7_chunk", 16): 200, ("wkv7_chunk", 64): 500, ("wkv7_chunk", 256): 1500}
    assert crossovers(bundle_of(tmp_path, recurrent | chunked)) == [
        "wkv7 f32 B1.H2.N64: wkv7 up to 16 tokens, wkv7_chunk from 64"
    ]


def test_a_form_that_always_wins_is_said_with_where_it_was_measured(tmp_path: Path) -> None:
    times = {("wkv7", 16): 10, ("wkv7_chunk", 16): 20, ("wkv7", 64): 40, ("wkv7_chunk", 64): 80}
    assert crossovers(bundle_of(tmp_path, times)) == ["wkv7 f32 B1.H2.N64: wkv7 at 16, 64 tokens"]


def test_of_three_forms_each_is_said_where_it_is_fastest(tmp_path: Path) -> None:
    times = {("wkv7", t): 10 * t for t in (16, 64, 256, 1024)}
    times |= {("wkv7_chunk", 16): 200, ("wkv7_chunk", 64): 500, ("wkv7_chunk", 256): 1500}
    times |= {("wkv7_chunk_coop", 64): 600, ("wkv7_chunk_coop", 256): 900}
    times |= {("wkv7_chunk_coop", 1024): 3000}
    assert crossovers(bundle_of(tmp_path, times)) == [
        "wkv7 f32 B1.H2.N64: wkv7 up to 16 tokens, wkv7_chunk from 64, wkv7_chunk_coop from 256"
    ]


def test_nothing_is_said_where_one_form_was_not_measured(tmp_path: Path) -> None:
    assert crossovers(bundle_of(tmp_path, {("wkv7", 16): 10, ("wkv7_chunk", 64): 20})) == []
