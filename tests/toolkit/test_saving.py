"""What suggestions from elsewhere saved a search: told where the trials tell it, and only there."""

from __future__ import annotations

import pytest

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.saving import Saving, saving_of


def tried(*trials: tuple[float, str]) -> list[Measurement]:
    """Trials with a time and an origin each, named by their number from 1; 0 ns: it failed."""
    return [
        Measurement(
            "small", "f32", "M8.K8", str(number), Outcome.OK if ns else Outcome.WRONG_RESULT,
            median_ns=ns or float("nan"), origin=origin,
        )
        for number, (ns, origin) in enumerate(trials, 1)
    ]  # fmt: skip


OWN = (30.0, "search")


@pytest.mark.parametrize("origin", ["portfolio", "warm start", "this run"])
def test_what_the_search_itself_found_later_was_saved(origin: str) -> None:
    found = tried(
        (50.0, "default"), (10.0, origin), OWN, (40.0, origin), OWN, OWN, (10.4, "search")
    )
    # Without the two, its fifth trial would have been the first good one; now it was the second.
    assert saving_of(found, "2") == Saving(3)


def test_what_it_never_found_was_saved_at_least() -> None:
    found = tried((50.0, "default"), (10.0, "portfolio"), OWN, OWN, (0.0, "search"))
    assert saving_of(found, "2") == Saving(3, at_least=True)
    assert str(saving_of(found, "2")) == "at least 3"


def test_suggestions_that_only_came_first_cost_the_search_what_they_took() -> None:
    found = tried((50.0, "default"), (70.0, "portfolio"), (0.0, "warm start"), (10.0, "search"))
    assert saving_of(found, "4") == Saving(-2)


def test_nothing_is_told_without_suggestions_or_where_it_cannot_be_known() -> None:
    assert saving_of(tried((50.0, "default"), (10.0, "search")), "2") is None
    assert saving_of(tried((50.0, "default"), (10.0, "portfolio")), "elsewhere") is None
    late = tried((50.0, "default"), (20.0, "warm start"), (20.0, "portfolio"), (10.0, "portfolio"))
    assert saving_of(late, "4") is None
    assert saving_of([], "1") is None


def test_a_default_that_is_as_good_was_there_anyway() -> None:
    found = tried((10.0, "default"), (9.9, "portfolio"), OWN)
    assert saving_of(found, "2") == Saving(0)
