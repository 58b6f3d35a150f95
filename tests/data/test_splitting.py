"""`split`: reproducible, stratified, and the same text on one side only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightune.data import Columns, Example, Examples, split
from lightune.data.examples import fingerprint, labels_of
from lightune.data.kin import find_kin
from lightune.errors import InputError


def examples_of(targets: list, texts: list[str] | None = None, task: str = "classify") -> Examples:
    texts = texts or [f"text {index}" for index in range(len(targets))]
    rows = [Example(text, None, target, row) for row, (text, target) in enumerate(zip(texts, targets, strict=True), start=1)]
    return Examples(rows, Columns(task, "text", None, ("label",)))


def rows(examples: Examples | None) -> list[int]:
    return [example.row for example in examples or ()]


def test_each_label_has_its_share_of_each_part() -> None:
    splits = split(examples_of(["a"] * 700 + ["b"] * 200 + ["c"] * 100))
    for part, size in ((splits.train, 80), (splits.dev, 10), (splits.test, 10)):
        assert part is not None
        assert Counter(example.target for example in part) == {"a": 7 * size, "b": 2 * size, "c": size}
    assert sorted(rows(splits.train) + rows(splits.dev) + rows(splits.test)) == list(range(1, 1001))
    assert splits.facts["rows"] == {"train": 800, "dev": 100, "test": 100}
    assert splits.facts["warnings"] == []


def test_the_seed_decides() -> None:
    examples = examples_of(["a", "b"] * 100)
    assert rows(split(examples, seed=1).test) == rows(split(examples, seed=1).test)
    assert rows(split(examples, seed=1).test) != rows(split(examples, seed=2).test)


def test_many_small_labels_keep_the_totals() -> None:
    splits = split(examples_of([f"label {index // 4}" for index in range(400)]))
    assert splits.facts["rows"] == {"train": 320, "dev": 40, "test": 40}
    assert len(splits.train.labels) == 100
    assert "labels are too rare to be in dev: 'label" in splits.facts["warnings"][0]


def test_the_same_text_stays_on_one_side() -> None:
    texts = [f"Text  {index % 60}" if index % 2 else f"text {index % 60} " for index in range(240)]
    splits = split(examples_of(["a", "b", "b"] * 80, texts), dev=0.2, test=0.2)
    sides = [{fingerprint(example) for example in part} for part in splits.parts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert splits.facts["repeated"] == 240 - len(set().union(*sides))


def test_regression_spreads_the_values() -> None:
    values = np.random.default_rng(0).normal(size=2000).tolist()
    splits = split(examples_of(values, task="regress"))
    assert splits.facts["rows"] == {"train": 1600, "dev": 200, "test": 200}
    edges = np.quantile(values, np.linspace(0.1, 0.9, 9))
    for part in splits.parts.values():
        held = np.bincount(np.searchsorted(edges, [example.target for example in part]), minlength=10) / len(part)
        assert held == pytest.approx(np.full(10, 0.1), abs=0.011)


def test_multilabel_spreads_rare_labels() -> None:
    targets = [("common", "rare") if index % 20 == 0 else ("common",) if index % 2 else () for index in range(1000)]
    splits = split(examples_of(targets, task="multilabel"))
    counts = {name: Counter(label for example in part for label in labels_of(example)) for name, part in splits.parts.items()}
    assert {name: count["rare"] for name, count in counts.items()} == {"train": 40, "dev": 5, "test": 5}


def test_given_parts_stay_as_they_are() -> None:
    examples, given = examples_of(["a", "b"] * 20), examples_of(["a", None, "b"])
    splits = split(examples, dev=given, test=0.1)
    assert rows(splits.dev) == [1, 3]
    assert len(splits.train) == 36
    only = split(examples, dev=None, test=None)
    assert (only.dev, only.test, len(only.train)) == (None, None, 40)
    assert list(split(examples, dev=0.1, test=0).parts) == ["train", "dev"]


def test_rows_without_a_label_are_set_apart() -> None:
    splits = split(examples_of(["a", "b", None] * 20))
    assert len(splits.unlabelled) == 20
    assert all(example.target is not None for part in splits.parts.values() for example in part)
    assert "20 rows without a label were set apart." in splits.facts["told"]


def test_a_small_set_still_has_every_part() -> None:
    splits = split(examples_of(["a", "a", "b", "b"]))
    assert [len(part) for part in splits.parts.values()] == [2, 1, 1]
    assert [len(part) for part in split(examples_of([1.0, 2.0, 3.5, 4.0], task="regress")).parts.values()] == [2, 1, 1]


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["a", "b"], {}, "2 different labelled texts, too few for 3 parts"),
        (["a", "b", "c", "d"], {}, "no label is left with two different texts"),
        (["a", "b"] * 9, {"dev": 1.5}, "dev is 1.5, expected a share between 0 and 1"),
        (["a", "b"] * 9, {"dev": 0.5, "test": 0.5}, "dev and test together are 1"),
    ],
)
def test_what_cannot_be_split_is_an_error(targets: list[str], options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(examples_of(targets), **options)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.frozensets(st.sampled_from("abcdef"), max_size=3)), min_size=8, max_size=80),
    st.booleans(),
    st.integers(0, 5),
)
def test_whatever_the_rows_nothing_is_lost_and_train_knows_every_label(drawn: list, several: bool, seed: int) -> None:
    targets = [tuple(sorted(labels)) if several else min(labels, default="none") for _, labels in drawn]
    examples = examples_of(targets, [f"text {number}" for number, _ in drawn], "multilabel" if several else "classify")
    try:
        splits = split(examples, dev=0.2, test=0.2, seed=seed)
    except InputError:
        return
    assert sorted(row for part in splits.parts.values() for row in rows(part)) == list(range(1, len(drawn) + 1))
    keys = [{fingerprint(example) for example in part} for part in splits.parts.values()]
    assert sum(map(len, keys)) == len(set().union(*keys))
    known = {label for example in splits.train for label in labels_of(example)}
    assert {label for example in examples for label in labels_of(example)} <= known


def test_a_text_and_one_that_quotes_it_stay_together() -> None:
    sentences = [
        f"in number {place} the {word} film of the year bores with {word} {place} jokes"
        for place, word in enumerate(["long", "loud"] * 100)
    ]
    phrases = [" ".join(sentence.split()[2:9]) for sentence in sentences]
    parts = split(examples_of(["bad"] * 400, [*sentences, *phrases]), dev=0.2, test=0.2, seed=1).parts
    sides = {example.text: name for name, part in parts.items() for example in part}
    assert len(set(sides.values())) == 3
    assert all(sides[sentence] == sides[phrase] for sentence, phrase in zip(sentences, phrases, strict=True))


def test_kin_are_found_by_words_and_turns_of_phrase_tell_nothing() -> None:
    others = [f"something else {place} is told in these words {place}" for place in range(200)]
    texts = [
        "The plot is thin, but the cast shines.",
        "the CAST shines!",
        "but the cast shines",
        "这部电影的剧情很好看",
        "剧情很好看",
        *others,
    ]
    assert find_kin(texts)[:3] == [[0, 2], [1], [3, 4]]
    assert find_kin([*texts, *[f"{place} but the cast shines anyway {place}" for place in range(30)]])[0] == [0]  # too common
    assert find_kin(texts[:5]) == [[0], [1], [2], [3], [4]]  # too few texts
