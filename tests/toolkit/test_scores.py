"""Tables of searches: what was scored before is taken over, what is another search is not."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernelforge.errors import TuneError
from kernelforge.report.searches import read_scores, summary_rows, write_scores
from kernelforge.tune.finished_runs import FinishedRun
from kernelforge.tune.recorded import RecordedSpace, write_t4
from kernelforge.tune.replay import MARKS, SCORING, Scored, summarise
from tests.toolkit.cli_process import NO_VULKAN, kernelforge


def space(slowest: float = 40.0) -> RecordedSpace:
    """Forty configurations that take 1, 2, 3, .. ms, and the slowest one."""
    times = tuple((float(i + 1),) for i in range(39))
    configs = tuple({"x": i} for i in range(40))
    return RecordedSpace("line", configs, (*times, (slowest,)), ("correct",) * 40)


def scored(**changed: object) -> Scored:
    """Two searches of it: one finds the optimum in 3, the other never comes near."""
    curves = [np.array([20.0, 10.0] + [1.0] * 38), np.full(40, 8.0)]
    runs = [FinishedRun(curve, math.nan, "us 1") for curve in curves]
    return replace(summarise(space(), "gp", runs), **changed)  # type: ignore[arg-type]


def test_figures_mean_what_they_meant_or_scoring_is_raised() -> None:
    """Scores of other days stand in one table: whoever changes these numbers raises `SCORING`."""
    found = scored()
    shares = {mark: round(share, 6) for mark, share in found.share_at.items()}
    assert SCORING == 1
    # The best of n draws of 1 to 40 is expected at 41 / (n + 1): half of the way from the median is
    # won after 3, and 95 % after 20. There one search has the optimum, and the other still 8 ms.
    expected = [41 / (n + 1) for n in range(3, 21)]
    other = sum((best - 8) / (best - 1) for best in expected) / len(expected)
    assert found.score == pytest.approx((1 + other) / 2)
    assert found.spread == pytest.approx((1 - other) / math.sqrt(2))
    assert shares == dict.fromkeys(MARKS, 0.5625)
    assert (found.evaluations_to_good, found.success) == (math.inf, 0.5)


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = [scored(), scored(strategy="tpe", cpu_ms=1.5, evaluations_to_good=7.0)]
    write_scores(found, "kernelforge tune", tmp_path)
    again = read_scores(tmp_path)
    assert [one.to_json() for one in again] == [one.to_json() for one in found]
    assert math.isnan(again[0].cpu_ms)
    assert again[0].evaluations_to_good == math.inf
    assert not list(tmp_path.glob(".*"))
    assert read_scores(tmp_path / "nothing") == ()


def test_scores_of_another_meaning_or_other_marks_are_no_scores(tmp_path: Path) -> None:
    write_scores(
        [scored(), scored(share_at=dict.fromkeys((*MARKS, 400), 0.5))], "kernelforge tune", tmp_path
    )
    assert len(read_scores(tmp_path)) == 1
    path = tmp_path / "scores.json"
    document = json.loads(path.read_text())
    for scoring in (SCORING - 1, None):
        path.write_text(json.dumps({**document, "scoring": scoring}))
        assert read_scores(tmp_path) == ()


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"scoring": 1}', '{"scoring": 1, "scores": [{}]}', "[" * 100_000, None],
    ids=["empty", "list", "none", "fields", "deep", "seeds"],
)
def test_damaged_scores_are_one_clear_error(tmp_path: Path, text: str | None) -> None:
    if text is None:
        wrong = {**scored().to_json(), "seeds": "thirty"}
        text = json.dumps({"scoring": SCORING, "scores": [wrong]})
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(TuneError, match=r"--scores .*scores\.json: holds no scores .*delete it"):
        read_scores(tmp_path)


def test_with_and_without_other_spaces_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """Seeds differ by far more than what is gained: unpaired, none of it would be told."""
    with_others, without = (
        [FinishedRun(np.array([at, *[at / more] * 39]), math.nan, "us") for at in (32.0, 8.0, 4.0)]
        for more in (4, 2)
    )
    found = summarise(space(), "gp + portfolio", with_others, MARKS, without)
    shares = [4 / at - 2 / at for at in (32.0, 8.0, 4.0)]
    gain, error = found.gains["8"]
    assert gain == pytest.approx(np.mean(shares))
    assert error == pytest.approx(np.std(shares, ddof=1) / math.sqrt(3))
    assert found.gains["P"][0] == pytest.approx(
        found.score - summarise(space(), "gp", without, MARKS).score
    )
    write_scores([scored(), found], "kernelforge tune", tmp_path)
    assert read_scores(tmp_path)[1].gains == found.gains
    page = (tmp_path / "README.md").read_text()
    assert f"{found.share_at[8]:.3f} ({gain:+.3f} ± {error:.3f})" in page
    write_scores([scored()], "kernelforge tune", tmp_path)
    assert "other spaces know" not in (tmp_path / "README.md").read_text()


def test_scores_from_before_there_were_pairs_are_read(tmp_path: Path) -> None:
    old = {name: value for name, value in scored().to_json().items() if name != "gains"}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"scoring": SCORING, "scores": [old]}))
    assert read_scores(tmp_path)[0].gains == {}
    path.write_text(json.dumps({"scoring": SCORING, "scores": [{**old, "gains": {"8": [1]}}]}))
    with pytest.raises(TuneError, match="holds no scores"):
        read_scores(tmp_path)


def test_a_mean_says_of_how_many_spaces_and_seeds_it_is() -> None:
    cells = summary_rows([scored(), scored(space="other", seeds=30), scored(strategy="tpe")])
    assert {row[0]: row[1:3] for row in cells} == {"gp": ["2", "2 to 30"], "tpe": ["1", "2"]}


def test_a_comparison_runs_only_what_its_table_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "line.json"
    write_t4(space(), path)

    def compare(runs: str, *more: str) -> list[str]:
        """Strategies that were run for a table of two."""
        done = kernelforge(
            "tune", "--replay", path, "--seeds", "2", "--runs", tmp_path / runs,
            "--scores", tmp_path / "scores", *more, **NO_VULKAN,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        file = tmp_path / runs
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line)["strategy"] for line in lines]

    assert compare("1", "--strategy", "random") == ["random"] * 2
    first = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    assert compare("2", "--strategy", "random,tpe") == ["tpe"] * 2
    second = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    assert second[:1] == first
    assert "| random | 1 | 2 |" in (tmp_path / "scores" / "README.md").read_text()
    # Three seeds are another comparison, and so is the same file with other times in it.
    assert compare("3", "--strategy", "random", "--seeds", "3") == ["random"] * 3
    write_t4(space(slowest=41.0), path)
    assert compare("4", "--strategy", "random", "--seeds", "3") == ["random"] * 3
    assert compare("5", "--strategy", "random", "--seeds", "3") == []


def test_two_spaces_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "line.json"
    write_t4(space(), path)
    done = kernelforge("tune", "--replay", path, path, "--seeds", "1", **NO_VULKAN)
    assert done.returncode == 2
    assert "two files are called line" in done.stderr
