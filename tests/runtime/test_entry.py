"""Entries as they are written, and as JSON: one and the same is read, or refused."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, Signature
from kernelforge_runtime.bundle import Manifest
from kernelforge_runtime.bundle import entry as entry_form
from kernelforge_runtime.bundle import signature as signature_form
from kernelforge_runtime.bundle.entry import Entry, read_entry
from kernelforge_runtime.bundle.signature import signature_from_json, signature_from_lines
from kernelforge_runtime.bundle.strict_json import check_lines, decode
from kernelforge_runtime.dtypes import F16, F32
from kernelforge_runtime.errors import BundleError
from tests.runtime.bundle_files import SIGNATURE, bundle_bytes, entry

TUNED = Path(__file__).parents[2] / "tuned"
NOTHING = re.compile(r"(?!)")
FULL = replace(
    SIGNATURE,
    bindings=(
        Binding("x", F16, ("M", "N"), layout="M/4 N M%4"),
        Binding("seen", F32, ("N/32",)),
        Binding("y", F32, ("N", 4), "write"),
    ),
    grid=Grid((CeilDiv("N", 64),), (CeilDiv("M", 2),)),
    subgroup=32,
    addressing="address",
    features=("subgroup_arithmetic", "uniform_windows"),
    fixed=(("M", 4),),
    multiples=(("N", 8),),
    windowed=("seen",),
)


def texts(manifest: bytes) -> Iterator[bytes]:
    """The entries of a manifest, as they stand there."""
    start, end = manifest.index(b"    {\n"), manifest.index(b'\n  ],\n  "format"')
    yield from re.split(rb"(?<=\n    }),\n(?=    {\n)", manifest[start:end])


def as_json(text: bytes, patch: pytest.MonkeyPatch) -> Entry | str:
    """An entry by the long way, or why it is refused."""

    def signature(lines: bytes) -> Signature:
        check_lines(lines)
        return signature_from_json(decode(b"{" + lines + b"}")["signature"])

    with patch.context() as other:
        other.setattr(entry_form, "_BEFORE_SIGNATURE", NOTHING)
        other.setattr(entry_form, "signature_from_lines", signature)
        return read(text)


def read(text: bytes) -> Entry | str:
    """An entry, or why it is refused."""
    try:
        return read_entry(text, {})
    except BundleError as error:
        return str(error)


def two_entries() -> list[bytes]:
    plain = replace(entry(), beaten=True, default_ns=0)
    problem = Problem(M=4, N=1024)
    return [*texts(bundle_bytes(entries=[plain, entry(problem, "x", signature=FULL)])[0])]


@pytest.mark.parametrize("slug", sorted(p.parent.name for p in TUNED.glob("*/manifest.json")))
def test_committed_entries_are_read_at_once_as_they_are_through_json(
    slug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = (TUNED / slug / "manifest.json").read_bytes()
    entries = Manifest.parse(manifest).entries
    found = [*texts(manifest)]
    assert len(found) == len(entries) > 100
    monkeypatch.setattr(entry_form, "_as_json", None)  # none of them needs it
    assert [read(text) for text in found] == [*entries]
    monkeypatch.undo()
    assert [as_json(text, monkeypatch) for text in found] == [*entries]


def test_a_changed_entry_is_the_same_or_refused_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(11)
    spare = [b"", b" ", b"0", b"1", b"-", b".", b"e", b'"', b",", b"\n", b"{", b"}", b"[", b"A"]
    outcomes = {True: 0, False: 0}
    for text in two_entries():
        for _ in range(1200):
            at, cut = rng.randrange(len(text)), rng.choice((0, 1, 1, 2))
            changed = text[:at] + rng.choice(spare) + text[at + cut :]
            one, other = read(changed), as_json(changed, monkeypatch)
            if isinstance(one, Entry) or isinstance(other, Entry):
                assert one == other, changed
            outcomes[isinstance(one, Entry)] += 1
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"N": 1024', b'"N": 2147483648', "problem N"),
        (b'"N": 1024', b'"N": 5,\n        "N": 1024', "'N' is there twice"),
        (b'"trials": 5', b'"trials": 05', "not valid JSON"),
        (b'"trials": 5', b'"trials": 9007199254740993', "trials: expected"),
        (b'"saxpy/f32/', b'"saxpy/f16/', "starts with saxpy/f32"),
        (b'"tolerance": 1e-05', b'"tolerance": 1e-05,\n        "to": 1', "'to' is not known"),
        (b'"tolerance": 1e-05', b'"tolerance": -1e-05', "tolerance: expected"),
        (b'"beaten": true', b'"beaten": false', "beaten: expected"),
        (b'"workgroup": 64', b'"workgroup": 64,', "not valid JSON"),
        (b'"workgroup": 64', b'"workgroup": 64,\n        "workgroup": 64', "there twice"),
        (b'"workgroup": 64', b'"workgroup": 64, "subgroup": 0', "one value per line"),
        (b'"subgroup": 0,', b'"subgroup": 0', "not valid JSON"),
        (b'        "subgroup": 0,\n', b"", "subgroup is missing"),
        (b'"subgroup": 0', b'"subgroups": 0', "subgroup is missing"),
    ],
)
def test_what_is_not_as_it_is_written_is_refused_in_words(
    old: bytes, new: bytes, words: str
) -> None:
    text = two_entries()[0]
    assert text.count(old) == 1
    for _ in range(2):  # the second time parts of it are known
        assert words in str(read(text.replace(old, new)))


def test_lines_that_only_look_like_a_key_are_read_as_json() -> None:
    text = two_entries()[1]
    outdented = text.replace(b'  "seen"\n        ]', b'"seen"\n        ]')
    assert outdented != text
    assert read(outdented) == read(text)


def test_parts_of_signatures_are_remembered_by_their_text_and_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = two_entries()[1]
    start = lines.index(b'\n      "signature"')
    lines = lines[start : lines.index(b"\n      }", start) + len(b"\n      }")]
    monkeypatch.setattr(signature_form, "_PARTS", {})
    asked: list[str] = []
    readers = {
        key: (lambda data, key=key, reader=reader: asked.append(key) or reader(data))
        for key, reader in signature_form._READERS.items()
    }
    monkeypatch.setattr(signature_form, "_READERS", readers)
    found: list[Signature] = [signature_from_lines(lines), signature_from_lines(lines)]
    assert found == [FULL, FULL]
    assert sorted(asked) == sorted(readers)
    asked.clear()
    other = lines.replace(b'"workgroup": 64', b'"workgroup": 32')
    assert signature_from_lines(other).workgroup == 32
    assert asked == ["workgroup"]
    monkeypatch.setattr(signature_form, "MOST_KEPT", len(signature_form._PARTS))
    signature_from_lines(lines.replace(b'"workgroup": 64', b'"workgroup": 16'))
    assert len(signature_form._PARTS) == signature_form.MOST_KEPT


def test_parts_that_are_right_alone_must_go_together() -> None:
    text = two_entries()[1]
    for old, new, words in (
        (b'"windowed": [\n          "seen"', b'"windowed": [\n          "y"', "windowed: expected"),
        (b'"addressing": "address"', b'"addressing": "descriptor"', "windowed: expected"),
        (b',\n          "uniform_windows"', b"", "do not list uniform_windows"),
    ):
        assert text.count(old) == 1
        for _ in range(2):
            assert words in str(read(text.replace(old, new)))
