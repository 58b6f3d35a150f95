"""Examples behave like a list, and two spellings of one text have one fingerprint."""

from __future__ import annotations

import pytest

from lightune.data import Columns, Example, Examples
from lightune.data.examples import fingerprint, sort_labels

ROWS = [Example(f"text {index}", None, str(index % 3), index + 1) for index in range(10)]


def test_examples_behave_like_a_list() -> None:
    examples = Examples(ROWS, Columns("classify", "text", None, ("label",)))
    assert len(examples) == 10
    assert list(examples) == ROWS
    assert examples[-1] == ROWS[-1]
    assert list(examples[::3]) == ROWS[::3]
    assert list(examples[2:8][::-2]) == ROWS[2:8][::-2]
    assert list(examples.take([5, 5, 0])) == [ROWS[5], ROWS[5], ROWS[0]]
    assert examples.take([4, 7])[-1] == ROWS[7]
    assert ROWS[3] in examples
    assert examples.labels == ("0", "1", "2")
    with pytest.raises(IndexError):
        examples.take([1])[1]


def test_labels_are_in_their_natural_order() -> None:
    assert sort_labels({"10", "9", "-1"}) == ("-1", "9", "10")
    assert sort_labels({"b", "10", "a"}) == ("10", "a", "b")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Hello  World\n", "hello world", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("STRASSE", "straße", True),
        ("hello world", "helloworld", False),
        ("", " ", True),
    ],
)
def test_fingerprints_tell_texts_apart(first: str, second: str, same: bool) -> None:
    assert (fingerprint(Example(first)) == fingerprint(Example(second))) == same


def test_a_pair_has_a_fingerprint_of_its_own() -> None:
    assert fingerprint(Example("a", "b")) != fingerprint(Example("a"))
    assert fingerprint(Example("a", "b")) != fingerprint(Example("b", "a"))
