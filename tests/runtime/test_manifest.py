"""Manifests: one layout, exact keys, capped sizes. Names as in tuned/README.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding
from kernelforge_runtime.bundle import Fingerprint, Manifest, manifest
from kernelforge_runtime.bundle import signature as signature_form
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import BundleError
from tests.runtime.bundle_files import (
    DEVICE,
    SIGNATURE,
    TOOLCHAIN,
    bundle_bytes,
    edited,
    entry,
)

README = Path(__file__).parents[2] / "tuned" / "README.md"


def make(*entries: Any) -> Manifest:
    return Manifest(Fingerprint.of(DEVICE), TOOLCHAIN, entries, (("read_bandwidth_gbps", 2.5),))


def refused(text: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words) as caught:
        Manifest.parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def set_entry(key: str, value: Any) -> bytes:
    return edited(lambda data: data["entries"][0].__setitem__(key, value))


def set_signature(key: str, value: Any) -> bytes:
    return edited(lambda data: data["entries"][0]["signature"].__setitem__(key, value))


def test_a_manifest_survives_the_round_trip() -> None:
    full = replace(
        SIGNATURE,
        bindings=(*SIGNATURE.bindings, Binding("packed", F32, ("N/32", "M", 4))),
        grid=Grid((CeilDiv("N", 64), CeilDiv("M", 1)), (CeilDiv("M", 2),)),
        subgroup=32,
        addressing="address",
        features=("subgroup_arithmetic",),
        fixed=(("M", 4),),
    )
    first = make(entry(), entry(Problem(N=7, M=4), "scale", signature=full))
    again = Manifest.parse(first.to_bytes())
    assert again == first
    assert Manifest.parse(make().to_bytes()) == make()


def test_what_was_not_kept_of_a_device_is_unknown_not_wrong() -> None:
    def strip(data: dict[str, Any]) -> None:
        for name in ("api_version", "processor"):
            data["device"].pop(name, None)

    software = replace(DEVICE, processor="Fast 9000")
    full = Manifest.parse(bundle_bytes(software)[0]).device
    assert (full.processor, full.api_version) == ("Fast 9000", (1, 2, 0))
    text = edited(strip, bundle_bytes(software)[0])
    old = Manifest.parse(text)
    assert (old.device.processor, old.device.api_version) == ("", None)
    assert old.device.differences(full) == []
    assert old.to_bytes() == text  # nothing is made up when it is written again
    refused(edited(lambda data: data["device"].__setitem__("api_version", [1, 2])), "api_version")
    refused(edited(lambda data: data["device"].__setitem__("processor", 7)), "processor")


def test_equal_manifests_have_equal_bytes() -> None:
    one, two = entry(Problem(M=1, N=2)), entry(Problem(N=3, M=1))
    assert make(one, two).to_bytes() == make(two, one).to_bytes()
    assert make(entry(Problem(M=1, N=2))).to_bytes() == make(entry(Problem(N=2, M=1))).to_bytes()


def test_the_manifest_is_laid_out_with_two_spaces() -> None:
    text, _ = bundle_bytes()
    data = json.loads(text)
    assert text.decode() == json.dumps(data, sort_keys=True, indent=2) + "\n"
    refused(json.dumps(data, sort_keys=True).encode(), "two spaces")
    refused(json.dumps(data, sort_keys=True, indent=3).encode(), "two spaces")
    refused(text.replace(b"\n    }\n  ],", b"\n   }\n  ],"), "two spaces")
    for old, new in (
        (b',\n      "trials"', b', "trials"'),
        (b"\n      ", b"\n "),
        (b"{\n ", b"{ "),
    ):
        assert old in text[text.index(b'"entries"') :]
        refused(text.replace(old, new), "two spaces")


def test_other_formats_and_versions_are_refused() -> None:
    refused(edited(lambda data: data.__setitem__("format", "onnx")), "is not of the format")
    for version in (0, 2, "1", 1.0, True, None):
        refused(edited(lambda data, v=version: data.__setitem__("version", v)), "reads 1")
    refused(b"", "entries")
    refused(b"[]", "entries")
    refused(b'{\n  "entries": [],\n}', "not valid JSON")


def test_unknown_and_missing_keys_are_refused() -> None:
    places: tuple[Any, ...] = (
        lambda data: data,
        lambda data: data["device"],
        lambda data: data["device"]["limits"],
        lambda data: data["device"]["subgroup"],
        lambda data: data["toolchain"],
        lambda data: data["entries"][0],
        lambda data: data["entries"][0]["signature"],
        lambda data: data["entries"][0]["verified"],
    )
    keys = json.loads(bundle_bytes()[0])
    for place in places:
        refused(edited(lambda data, p=place: p(data).__setitem__("extra", 1)), "'extra' is not")
        for key in place(keys):
            if (place, key) not in ((places[0], "entries"), (places[1], "api_version")):
                with pytest.raises(BundleError):
                    Manifest.parse(edited(lambda data, p=place, k=key: p(data).pop(k)))


def test_repeated_keys_are_refused() -> None:
    text, _ = bundle_bytes()
    refused(text.replace(b'"trials": 5', b'"trials": 5,\n      "trials": 6'), "'trials' is there t")
    refused(text.replace(b'"version": 1', b'"version": 1,\n  "version": 1'), "'version' is there t")
    again = b'\n  "entries": [\n    {\n    }\n  ],\n  "format"'
    refused(text.replace(b'\n  "format"', again), "'entries' is there twice")


def test_numbers_are_finite_and_of_the_right_type() -> None:
    text, _ = bundle_bytes()
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"):
        refused(text.replace(b"1e-07", number), "not a finite number")
    for number in (b"-1", b'"1"', b"null", b"[]"):
        refused(text.replace(b"1e-07", number), "max_abs_error")
    refused(text.replace(b"1e-07", b"9" * 5000), "not valid JSON")
    for value in (1.5, True, "5", None, -1, 2**53 + 1):
        for key in ("trials", "median_ns", "spread_ns", "default_ns"):
            refused(set_entry(key, value), key)


def test_deep_nesting_is_refused() -> None:
    text, _ = bundle_bytes()
    for deep in (b"[\n      " * 7_500, b'{\n      "a":' * 4_500):
        refused(text.replace(b"1e-07", deep), "too deeply")
    for deep in (b"[" * 30_000, b'{"a":' * 10_000):
        refused(text.replace(b"9.5", deep), "too deeply")


def test_entries_ascend_and_are_unique() -> None:
    def swap(data: dict[str, Any]) -> None:
        data["entries"].reverse()

    def repeat(data: dict[str, Any]) -> None:
        data["entries"].append(data["entries"][-1])

    text = make(entry(Problem(N=1)), entry(Problem(N=2))).to_bytes()
    refused(edited(swap, text), r"entries\[1\]: saxpy f32 N1 is out of order")
    refused(edited(repeat, text), r"entries\[2\]: .* there twice")
    with pytest.raises(BundleError, match="there twice"):
        make(entry(), entry()).to_bytes()


def test_sizes_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(set_signature("workgroup", 0), "workgroup")
    refused(set_signature("workgroup", signature_form.MAX_WORKGROUP + 1), "workgroup")
    refused(set_signature("subgroup", 3), "subgroup")
    refused(set_signature("subgroup", 256), "subgroup")
    refused(set_signature("bindings", []), "bindings")
    refused(set_signature("bindings", [["x", "f32", ["N"], "read"]] * 33), "bindings")
    refused(set_signature("bindings", [["x", "f32", [2**31], "read"]]), "shape")
    refused(set_signature("bindings", [["x", "f32", [0], "read"]]), "shape")
    refused(set_signature("bindings", [["x", "f32", [True], "read"]]), "shape")
    refused(set_signature("bindings", [["x", "f32", ["N"] * 9, "read"]]), "shape")
    refused(set_signature("grid", [[["N", 0]], [], []]), "divisor")
    refused(set_signature("grid", [[["N", signature_form.MAX_GRID_DIVISOR + 1]], [], []]), "div")
    refused(set_signature("grid", [[["N", 1]] * 5, [], []]), "grid axis")
    refused(set_signature("grid", [[], []]), "grid")
    refused(set_signature("push_constants", [[f"c{i}", "u32"] for i in range(65)]), "push_const")
    many = [[f"b{i}", "f32", ["N"], "read"] for i in range(32)]

    def address(data: dict[str, Any]) -> None:
        data["entries"][0]["signature"] |= {"addressing": "address", "bindings": many}

    refused(edited(address), "take 264 bytes")
    refused(set_entry("problem", {}), "problem")
    refused(set_entry("problem", {"N": 0}), "problem N")
    refused(set_entry("problem", {"N": 2**31}), "problem N")
    refused(set_entry("problem", {chr(65 + i): 1 for i in range(17)}), "problem")
    refused(edited(lambda data: data["toolchain"].__setitem__("flags", ["-x"] * 33)), "flags")
    refused(
        edited(lambda data: data.__setitem__("ceilings", {f"a{i}": 1 for i in range(65)})),
        "at most 64",
    )
    refused(set_entry("variant", "saxpy/f32/" + "A" * 70_000), "of 65536 bytes")
    refused(edited(lambda data: data["device"].__setitem__("name", "A" * 70_000)), "beside its")
    refused(b" " * (manifest.MAX_MANIFEST_BYTES + 1), "at most 16777216")
    assert manifest.MAX_ENTRIES == 20_000
    monkeypatch.setattr(manifest, "MAX_ENTRIES", 2)
    with pytest.raises(BundleError, match="at most 2 entries"):
        make(*(entry(Problem(N=n)) for n in (1, 2, 3))).to_bytes()


def test_texts_have_a_form() -> None:
    for family in ("", "Saxpy", "a/b", "..", "a" * 65, "a\n", 5):
        refused(set_entry("family", family), "family")
    for variant in ("saxpy/f32/../../x", "saxpy/f16/A", "saxpy/f32x", "/etc/passwd", "", 7):
        refused(set_entry("variant", variant), "variant")
    refused(set_entry("variant", "saxpy/f32/A B"), "variant")
    for digest in ("0" * 63, "G" * 64, "A" * 64, None):
        refused(set_entry("module", digest), "module")
    for slug in ("", ".", "..", "a/b", "-a", "a-", ".hidden", "A", "a" * 129, 1):
        refused(edited(lambda data, s=slug: data["device"].__setitem__("slug", s)), "slug")
    for name in ("a\nb", "\x1b[31m", "\ud800", "a" * 257, None):
        refused(edited(lambda data, n=name: data["device"].__setitem__("name", n)), "device: name")
    refused(set_signature("bindings", [["x y", "f32", ["N"], "read"]]), "binding name")
    refused(set_signature("bindings", [["x", "f99", ["N"], "read"]]), "f99")
    refused(set_signature("bindings", [["x", [], ["N"], "read"]]), "signature")
    refused(set_signature("bindings", [["x", "f32", ["NM"], "read"]]), "shape")
    refused(set_signature("bindings", [["x", "f32", ["N"], "execute"]]), "access")
    refused(set_signature("bindings", [["x", "f32", ["N"], "read"]] * 2), "there twice")
    refused(set_signature("push_constants", [["N", "u32"]] * 2), "there twice")
    refused(set_signature("push_constants", [["N", "f16"]]), "u32 or f32")
    refused(set_signature("addressing", "segment"), "addressing")
    refused(set_signature("addressing", {}), "signature")
    refused(set_signature("features", ["Float 16"]), "feature")
    refused(set_signature("grid", [[["NN", 1]], [], []]), "grid dimension")
    for windowed in (["q"], ["x", "x"], [], ["y"], ["x", 1], {}, ["x"] * 99, ["x"]):
        refused(set_signature("windowed", windowed), "windowed")
    refused(edited(lambda data: data["device"].__setitem__("features", ["b", "a"])), "in order")


def test_compiled_in_dimensions_agree_with_the_problem() -> None:
    refused(set_signature("fixed", {"N": 64}), "compiled for {'N': 64}, but its problem is N1024")
    refused(set_signature("fixed", {"M": 64}), "compiled for")
    refused(set_signature("fixed", {"N": 0}), "fixed N")
    refused(set_signature("fixed", ["N"]), "fixed")
    assert Manifest.parse(set_signature("fixed", {"N": 1024})).entries[0].signature.fixed


def test_what_a_kernel_serves_must_divide_the_problem_and_leave_its_memory_small() -> None:
    assert Manifest.parse(set_signature("multiples", {"N": 64})).entries[0].signature.is_limited
    refused(set_signature("multiples", {"N": 100}), "multiples of {'N': 100}, but its problem")
    refused(set_signature("multiples", {"M": 2}), "multiples of")
    refused(set_signature("multiples", {"N": 0}), "multiple of N")
    refused(set_signature("multiples", {}), "multiples")
    refused(set_signature("multiples", [64]), "multiples")
    own = [["x", "f32", ["N"], "read"], ["y", "f32", [8, "N"], "scratch"]]
    assert Manifest.parse(set_signature("bindings", own)).entries[0].signature.is_limited
    own[1][2] = [2**22, "N"]
    refused(set_signature("bindings", own), "at most 16 MiB per buffer of its own")
    refused(set_signature("grid", [[4097], [], []]), "grid count")
    assert Manifest.parse(set_signature("grid", [[["N", 64]], [], [4]]))


def test_nothing_in_a_manifest_tells_one_card_or_one_day_from_another() -> None:
    twin = replace(DEVICE, device_uuid="ff" * 16, pipeline_cache_uuid="ee" * 16)
    assert bundle_bytes(twin) == bundle_bytes(DEVICE)
    text = bundle_bytes()[0].decode()
    assert not re.search(r"uuid|date|20[0-9][0-9]-", text)


def test_every_rule_of_the_specification_has_a_test_of_its_name() -> None:
    rules = re.findall(r"^\* `(\w+)`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rules) >= 20
    tests = "".join(
        path.read_text(encoding="utf-8") for path in README.parents[1].glob("tests/*/test_*.py")
    )
    assert [rule for rule in rules if f"def test_{rule}(" not in tests] == []


def signature_text(text: bytes) -> bytes:
    """The first signature of a manifest, as it stands there."""
    found = re.search(rb'\n      "signature": \{\n.*?\n      \},', text, re.DOTALL)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("second", [False, True], ids=["new", "read before"])
def test_a_signature_is_taken_from_its_own_place_alone(second: bool) -> None:
    entries = [entry(Problem(N=7)), entry(Problem(N=8))]
    text = make(*entries).to_bytes()
    whole = signature_text(text)
    assert text.count(whole) == 2
    at = text.rindex(whole) if second else text.index(whole)
    bare = text[:at] + text[at + len(whole) :]
    refused(bare, "key signature is missing")
    end = bare.index(b'\n      "spread_ns"', at)
    twice = bare[:end] + whole + whole + bare[end:]
    refused(twice, "key 'signature' is there twice")
    start = bare.index(b'"verified": {', at) + len(b'"verified": {')
    refused(bare[:start] + whole + bare[start:], "key signature is missing")
    start = bare.index(b'"problem": {', at - 120) + len(b'"problem": {')
    refused(bare[:start] + whole + bare[start:], "signature")
    nothing = bare[:end] + b'\n      "signature": null,' + bare[end:]
    refused(nothing, "expected an object, found None")


def test_signatures_with_the_same_grid_and_constants_are_each_checked() -> None:
    good = make(entry(Problem(N=7)), entry(Problem(N=8))).to_bytes()
    data = json.loads(good)
    data["entries"][1]["signature"]["workgroup"] = 10**6
    text = (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()
    refused(text, r"entries\[1\]: workgroup: expected a whole number")
    data["entries"][1]["signature"] |= {"workgroup": 64, "grid": [[True], [], []]}
    text = (json.dumps(data, sort_keys=True, indent=2) + "\n").encode()
    refused(text, r"entries\[1\]: grid count: expected a whole number")
