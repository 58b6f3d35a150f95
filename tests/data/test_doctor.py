"""The doctor finds what is wrong, counts it, and names the rows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from lightune.data import Columns, Example, Examples, Finding, describe, examine, read, read_parts


def part(*rows: tuple, task: str = "classify", target: tuple[str, ...] = ("label",)) -> Examples:
    """Rows of (text, target) or (text, target, pair)."""
    made = [Example(text, rest[0] if rest else None, label, number) for number, (text, label, *rest) in enumerate(rows, start=1)]
    return Examples(made, Columns(task, "text", None, target))


def many(count: int, *labels: str) -> list[tuple[str, str]]:
    return [(f"text number {index}", labels[index % len(labels)]) for index in range(count)]


def only(findings: tuple[Finding, ...], code: str, of: str = "train") -> Finding:
    (found,) = [finding for finding in findings if finding.code == code and finding.part == of]
    return found


def codes(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.code for finding in findings}


def test_good_data_has_no_findings() -> None:
    assert examine({"train": part(*many(40, "a", "b")), "dev": part(("one", "a"), ("two", "b"))}) == ()


def test_empty_duplicate_and_contradicting_texts_are_found() -> None:
    rows = [*many(20, "a", "b"), ("", "a"), (" \n", "b"), ("Text  NUMBER 3", "b"), ("text number 4", "b")]
    findings = examine({"train": part(*rows)})
    assert only(findings, "empty-text").rows == (21, 22)
    assert only(findings, "duplicate").rows == (23, 24)
    assert "(1 of them word for word)" in only(findings, "duplicate").message
    assert only(findings, "conflict").rows == (5, 24)


def test_a_pair_is_the_same_only_if_both_texts_are() -> None:
    rows = [("a", "x", "b"), ("a", "y", "c"), ("a", "x", "b"), ("d", "y", "")]
    findings = examine({"train": part(*rows, task="pair")})
    assert only(findings, "duplicate").rows == (3,)
    assert only(findings, "empty-text").rows == (4,)


def test_leaks_are_found_word_for_word_and_nearly_so() -> None:
    train = part(*many(40, "a", "b"))
    dev = part(("text number 7", "a"), ("fresh", "a"), ("other", "b"))
    test = part(("new", "a"), ("text number 5", "b"), ("TEXT number  6", "b"), ("fresh", "b"), ("text number 7", "b"), ("", "a"))
    findings = examine({"train": train, "dev": dev, "test": test})
    assert only(findings, "leak", "dev").rows == (1,)
    assert "(1 of them with another label)" in only(findings, "leak", "dev").message
    from_train, from_dev = [finding for finding in findings if finding.code == "leak" and finding.part == "test"]
    assert (from_train.rows, from_dev.rows) == ((2, 5), (4,))
    assert "2 of 6 test texts also stand in train, word for word: rows 2, 5." in from_train.message
    assert only(findings, "near-leak", "test").rows == (3,)


def test_labels_that_train_lacks_are_an_error_and_come_first() -> None:
    findings = examine({"train": part(*many(40, "a", "b"), ("", "c")), "test": part(("x", "a"), ("y", "B"), ("z", "B"))})
    assert findings[0].level == "error"
    assert only(findings, "unknown-label", "test").rows == (2, 3)
    assert "'B' (2)" in findings[0].message
    assert "'b' (20), 'c' (1)" in only(findings, "absent-label", "test").message
    assert "'c' (1)" in only(findings, "rare-label").message


def test_one_label_is_an_error() -> None:
    for task, target in (("classify", "a"), ("regress", 1.0), ("multilabel", ())):
        findings = examine({"train": part(*[(f"text {index}", target) for index in range(20)], task=task)})
        assert only(findings, "one-label").level == "error"
    assert "no-rows" in codes(examine({"train": part(*many(20, "a", "b")), "dev": part()}))


def test_imbalance_and_rare_labels_are_found() -> None:
    findings = examine({"train": part(*many(200, "a"), *[(f"other {index}", "b") for index in range(5)])})
    assert "'a' has 200 train rows (98%), 'b' 5, 40 times fewer" in only(findings, "imbalance").message
    assert only(findings, "rare-label").count == 1


def test_labels_of_a_table_that_are_never_or_always_given_are_found() -> None:
    rows = [(f"text {index}", ("x", "z") if index % 2 else ("z",)) for index in range(40)]
    splits = {
        "train": part(*rows, task="multilabel", target=("x", "y", "z")),
        "test": part(("a", ("y", "x")), task="multilabel", target=("x", "y", "z")),
    }
    findings = examine(splits)
    assert "'y' (1)" in only(findings, "never-given").message
    assert "'z' (40)" in only(findings, "always-given").message
    assert "unknown-label" not in codes(findings)  # a column of the table is known, though train never has a 1 in it
    single = {name: Examples(list(each), Columns("multilabel", "text", None, ("labels",))) for name, each in splits.items()}
    assert only(examine(single), "unknown-label", "test").rows == (1,)


def test_the_order_of_labels_does_not_make_a_conflict() -> None:
    rows = [("same", ("a", "b")), ("same", ("b", "a")), ("other", ("a",)), ("other", ())]
    assert only(examine({"train": part(*rows, task="multilabel")}), "conflict").rows == (3, 4)


def test_unlabelled_rows_are_noted() -> None:
    findings = examine({"train": part(*many(40, "a", "b"), ("x", None)), "unlabelled": part(("y", None))})
    assert only(findings, "unlabelled").rows == (41,)
    assert only(findings, "unlabelled", "unlabelled").count == 1


def test_scripts_and_look_alikes_are_found() -> None:
    rows = [
        *many(40, "a", "b"),
        ("это по-русски", "a"),
        ("日本語のテキスト", "b"),
        ("log in to pаypal now", "a"),
        ("東京 is Tokyo", "b"),
        ("123 !", "a"),
    ]
    findings = examine({"train": part(*rows)})
    mixed = only(findings, "mixed-scripts")
    assert mixed.rows == (41, 42)
    assert "Latin 42, Cyrillic 1, Chinese or Japanese 1" in mixed.message
    assert only(findings, "look-alikes").rows == (43,)


def test_tokens_that_a_limit_would_cut_are_counted() -> None:
    lengths = {"train": np.array([10] * 38 + [140, 600])}
    examples = part(*many(40, "a", "b"))
    cut = only(examine({"train": examples}, lengths=lengths, max_length=128), "cut")
    assert cut.rows == (39, 40)
    assert cut.count == 2
    assert "484 tokens (43.2%) would be cut (at 64: 612, at 256: 344, at 512: 88)" in cut.message
    assert examine({"train": examples}, lengths=lengths, max_length=600) == ()
    figures = describe({"train": examples}, lengths=lengths)["parts"]["train"]["tokens"]
    assert figures["cut_at"] == {"64": 612, "128": 484, "256": 344, "512": 88}
    assert (figures["min"], figures["median"], figures["max"], figures["total"]) == (10, 10, 600, 1120)


def test_suspicious_columns_are_found() -> None:
    rows = [{"text": f"{index:08x}", "label": f"label {index}", "key": index, "language": "en"} for index in range(60)]
    findings = examine({"train": read(rows)})
    messages = " ".join(finding.message for finding in findings)
    assert "The texts in 'text' look like ids" in messages
    assert "Column 'key' looks like an id" in messages
    assert "Column 'language' looks like a constant" in messages
    assert "The labels look like ids or free text: 60 different ones in 60 train rows" in messages


def test_long_lists_of_rows_are_shortened_in_the_message_only() -> None:
    found = only(examine({"train": part(*many(40, "a", "b"), *[("same", "a")] * 12_001)}), "duplicate")
    assert found.count == 12_000
    assert found.rows == tuple(range(42, 10_042))
    assert found.message.count(",") < 30


def test_the_description_is_json_and_has_every_figure() -> None:
    splits = {"train": part(*many(40, "a", "b"), ("", "a")), "dev": part(("one", "b"))}
    described = json.loads(json.dumps(describe(splits, examine(splits))))
    assert described["parts"]["train"]["labels"] == {"a": 21, "b": 20}
    assert described["parts"]["train"]["characters"]["max"] == 14
    assert described["columns"] == {"task": "classify", "text": "text", "pair": None, "target": ["label"]}
    assert described["findings"][0] == {
        "level": "warning",
        "code": "empty-text",
        "message": "1 train rows have an empty text: row 41.",
        "count": 1,
        "rows": [41],
        "part": "train",
        "cure": "Remove these rows, or fill them in.",
    }
    values = describe({"train": part(("a", 1.5), ("b", 2.5), task="regress")})["parts"]["train"]["values"]
    assert (values["min"], values["max"], values["median"]) == (1.5, 2.5, 2.0)


@pytest.mark.shared
def test_the_leaks_of_sms_spam_are_found_by_row(shared_data: Path) -> None:
    splits = read_parts(shared_data / "sms_spam")
    leak = only(examine(splits), "leak", "test")
    train = {example.text for example in splits["train"]}
    assert leak.count == 108
    assert leak.rows == tuple(example.row for example in splits["test"] if example.text in train)


@pytest.mark.shared
def test_the_leaks_of_chnsenticorp_are_found_by_row(shared_data: Path) -> None:
    splits = read_parts(shared_data / "chnsenticorp")
    leaks = {finding.part: finding for finding in examine(splits) if finding.code == "leak" and "stand in train" in finding.message}
    train = {example.text for example in splits["train"]}
    assert {name: leak.count for name, leak in leaks.items()} == {"dev": 338, "test": 331}
    for name, leak in leaks.items():
        assert leak.rows == tuple(example.row for example in splits[name] if example.text in train)


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds() -> None:
    words = [f"word{index}" for index in range(997)]
    rows = [(" ".join(words[(index * step) % 997] for step in range(1, 21)), "ab"[index % 2]) for index in range(100_000)]
    examples = part(*rows)
    start = time.process_time()
    examine({"train": examples})
    assert time.process_time() - start < 8
