"""The index of all reports, and reports made again from the measurements beside them."""

import re
import shutil
from pathlib import Path

import pytest

from kernelforge.cli import report as verb
from kernelforge.cli.main import main
from kernelforge.errors import ReportError
from kernelforge.report.index import write_index
from kernelforge.report.kept import keep, unpacked

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder, and an empty data folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_reports_are_made_again_elsewhere_from_what_lies_beside_them(place, capsys):
    shutil.copytree(RECORDED, place / "data" / "kernelforge" / "tuning" / "llvmpipe")
    assert main(["report"]) == 0
    made = contents(Path("reports"))
    assert "journal.jsonl.gz" in made and "index.html" in made
    shutil.rmtree(place / "data")
    for path in Path("reports").glob("**/*.*"):
        if path.is_file() and path.parent.name != "measured":
            path.unlink()
    assert main(["report"]) == 0
    assert contents(Path("reports")) == made
    assert capsys.readouterr().out.split() == 2 * ["reports/llvmpipe/report.html",
                                                   "reports/index.html"]  # fmt: skip


def test_index_links_what_is_there_and_nothing_else(tmp_path):
    for name, file, text in (
        ("a b#<i>", "report.md", "# One & <two>\n\n* **3.5** tok/s\n"),
        ("compare", "compare.md", "# Comparison\n\n* 3 rows in common\n"),
        ("searches", "README.md", "# Searches\n"),
        ("empty", "notes.txt", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
        if file.endswith(("report.md", "compare.md")):
            (tmp_path / name / file.replace(".md", ".html")).write_text("<p>")
    page = write_index(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "One &amp; &lt;two&gt;" in text and "3 rows in common" in text and "empty" not in text
    targets = re.findall(r'<a href="([^"]+)"', text)
    assert "a%20b%23%3Ci%3E/report.html" in targets
    from urllib.parse import unquote

    assert targets and all((tmp_path / unquote(target)).is_file() for target in targets)
    assert write_index(tmp_path).read_text(encoding="utf-8") == text


def test_no_reports_no_index(tmp_path):
    assert write_index(tmp_path) is None and write_index(tmp_path / "nowhere") is None


def test_kept_measurements_do_not_depend_on_when_they_were_kept(tmp_path):
    first, second = keep(RECORDED, tmp_path / "a"), keep(RECORDED, tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    with unpacked(tmp_path / "a") as folder:
        for name in ("journal.jsonl", "bench.jsonl"):
            assert (folder / name).read_bytes() == (RECORDED / name).read_bytes()


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"x" + data,
                                    lambda data: data[:40] + b"####" + data[44:]])  # fmt: skip
def test_damaged_measurements_are_named(tmp_path, damage):
    path = next(p for p in keep(RECORDED, tmp_path) if p.name == "journal.jsonl.gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReportError, match=r"journal.jsonl.gz: damaged"), unpacked(tmp_path):
        pass


def test_an_explicit_folder_gets_neither_index_nor_measurements(place):
    assert main(["report", "--journal", str(RECORDED), "--out", "here"]) == 0
    assert not Path("reports").exists() and not list(Path("here").glob("**/*.gz"))
    assert Path("reports") == verb.REPORTS


def test_a_table_that_is_no_more_leaves_no_file_behind(place):
    Path("here").mkdir()
    Path("here/operations.csv").write_text("old")
    Path("here/mine.csv").write_text("mine")
    assert main(["report", "--journal", str(RECORDED), "--out", "here"]) == 0
    assert not Path("here/operations.csv").exists() and Path("here/mine.csv").exists()
