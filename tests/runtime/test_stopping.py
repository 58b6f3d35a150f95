from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from lightune.runtime.stopping import Stopper

letters = st.text(st.sampled_from("abé😀 \n"), max_size=30)  # few letters, so that stop texts occur, of 1, 2 and 4 bytes
stops = st.lists(st.text(st.sampled_from("abé😀"), min_size=1, max_size=4), max_size=3)


def first_cut(text: str, stop: list[str]) -> int:
    """Where the answer ends, found letter by letter: at the stop text that is complete first."""
    for end in range(len(text) + 1):
        if sizes := [len(item) for item in stop if text[:end].endswith(item)]:
            return end - max(sizes)
    return len(text)


def pushed(stopper: Stopper, parts: list[bytes]) -> list[str]:
    pieces = []
    for part in parts:
        pieces.append(stopper.push(part))
        if stopper.stopped:
            return pieces
    return [*pieces, stopper.push(b"", last=True)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(borders)]


@given(letters, stops, st.lists(st.integers(0, 200), max_size=20))
@example("abcd", ["abcd", "bc"], [1, 2, 3])
@example("aab", ["ab"], [1, 2])
def test_pieces_join_to_the_text_before_the_stop_however_it_is_cut(text: str, stop: list[str], places: list[int]) -> None:
    stopper = Stopper(stop)
    pieces = pushed(stopper, cut(text.encode(), places))
    whole = text[: first_cut(text, stop)]
    assert "".join(pieces) == whole
    assert stopper.stopped == any(item in text for item in stop)


@given(st.binary(max_size=30), st.lists(st.integers(0, 200), max_size=10))
def test_any_bytes_become_the_text_that_python_reads(data: bytes, places: list[int]) -> None:
    assert "".join(pushed(Stopper(), cut(data, places))) == data.decode("utf-8", "replace")


def test_nothing_is_held_back_that_is_certain() -> None:
    stopper = Stopper(["END"])
    assert [stopper.push(part) for part in (b"so E", b"ager E", b"N", b"D and more")] == ["so ", "Eager ", "", ""]
    assert stopper.stopped
    assert stopper.push(b"more", last=True) == ""


def test_half_a_character_waits_for_the_rest() -> None:
    stopper, smile = Stopper(), "😀".encode()
    assert [stopper.push(smile[:3]), stopper.push(smile[3:])] == ["", "😀"]
    assert stopper.push(smile[:2]) == ""
    assert stopper.push(b"", last=True) == "�"
