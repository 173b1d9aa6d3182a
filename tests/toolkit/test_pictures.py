"""Pictures that stand alone: well formed, with every kernel and every speed, nothing fetched."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kernelforge.report import write_report
from kernelforge.report.cells import number
from kernelforge.report.figures import roofline
from kernelforge.report.frame import gather
from kernelforge.report.pictures import PICTURES, render_pictures

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def frame():
    return gather(RECORDED, "llvmpipe")


@pytest.fixture(scope="module")
def pictures(frame):
    return {name: ElementTree.fromstring(text) for name, text in render_pictures(frame).items()}


def test_the_roofline_names_every_kernel_that_computes(frame, pictures):
    titles = [found.text for found in pictures["roofline.svg"].iter(f"{SVG}title")]
    assert titles == [point.title for point in roofline(frame).points]
    assert titles


def test_the_models_speeds_are_those_measured(frame, pictures):
    texts = {found.text for found in pictures["models.svg"].iter(f"{SVG}text")}
    assert {number(row.record.median) for row in frame.models} <= texts
    assert "generic bundle" in texts


def test_what_was_not_compared_with_the_generic_bundle_has_no_legend_of_it(frame):
    alone = tuple(row for row in frame.models if not row.record.is_generic)
    text = render_pictures(replace(frame, models=alone))["models.svg"]
    assert "generic bundle" not in text


def test_bars_lie_within_the_picture_and_not_on_each_other(pictures):
    height = float(pictures["models.svg"].get("height"))
    boxes = [
        (float(box.get("y")), float(box.get("height")))
        for box in pictures["models.svg"].iter(f"{SVG}svg")
        if box.get("y")
    ]
    assert all(top + tall <= height for top, tall in boxes)
    assert all(one + tall <= two for (one, tall), (two, _) in pairwise(boxes))


def test_nothing_is_fetched_from_elsewhere(frame):
    for text in render_pictures(frame).values():
        assert "url(" not in text and "href" not in text and text.count("http") == 1


def test_a_report_without_speeds_leaves_no_old_picture(frame, tmp_path):
    write_report(frame, tmp_path)
    assert all((tmp_path / name).exists() for name in PICTURES)
    write_report(replace(frame, models=[]), tmp_path)
    assert not (tmp_path / "models.svg").exists()
    assert (tmp_path / "roofline.svg").exists()
