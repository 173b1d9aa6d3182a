"""Stop strings: found across pieces, never shown, and nothing else is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge_runtime.text import StopStrings

TEXT = st.text("ab\n", max_size=30)


def shown(stops, pieces):
    watch = StopStrings(stops)
    out = ""
    for piece in pieces:
        out += watch.push(piece)
        if watch.hit is not None:
            return out, watch.hit
    return out + watch.flush(), None


def test_without_stop_strings_text_passes_at_once():
    watch = StopStrings([])
    assert [watch.push(p) for p in ("a", "", "bc")] == ["a", "", "bc"]
    assert watch.flush() == ""


def test_what_may_become_a_stop_string_waits_until_it_is_certain():
    watch = StopStrings(["\n\nUser:"])
    assert watch.push("yes\n") == "yes"
    assert watch.push("\nUs") == ""
    assert watch.push("ual") == "\n\nUsual"
    assert watch.push("\n\nUser: hi") == ""
    assert watch.hit == "\n\nUser:"


def test_the_first_of_several_counts_and_at_one_place_the_longest():
    assert shown(["cd", "b"], ["abcd"]) == ("a", "b")
    assert shown(["b", "bcd"], ["abcd"]) == ("a", "bcd")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXT, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_any_cutting_of_a_text_shows_what_is_before_the_first_stop_string(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    places = [text.find(stop) for stop in stops if stop in text]
    out, hit = shown(stops, pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not places:
        assert (out, hit) == (text, None)
        return
    # A piece that completes a later-beginning string first ends the text there already.
    assert hit in stops
    assert text.startswith(out + hit)
    assert len(out) + len(hit) <= max(ends)
    assert not any(stop in out for stop in stops)
