"""Which columns are chosen, from names and values, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightune.data import Columns, read, read_parts
from lightune.data.columns import choose, profile
from lightune.errors import InputError

TEXTS = [f"this is text number {index} of many" for index in range(40)]


def table(**columns: list) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def cycle(*values: object) -> list:
    return [values[index % len(values)] for index in range(len(TEXTS))]


def told(source: object, **options: object) -> str:
    return " ".join(read(source, **options).facts["told"])


@pytest.mark.parametrize(
    ("folder", "columns", "labels"),
    [
        ("trec", Columns("classify", "text", None, ("label",)), 6),
        ("banking77", Columns("classify", "text", None, ("label",)), 77),
        ("sst2", Columns("classify", "text", None, ("label",)), 2),
        ("sms_spam", Columns("classify", "text", None, ("label",)), 2),
        ("chnsenticorp", Columns("classify", "text", None, ("label",)), 2),
        ("glue_mrpc", Columns("pair", "sentence1", "sentence2", ("label",)), 2),
        ("stsb", Columns("regress", "sentence1", "sentence2", ("score",)), 0),
    ],
)
@pytest.mark.shared
def test_the_real_data_sets_are_guessed_right(shared_data: Path, folder: str, columns: Columns, labels: int) -> None:
    for part in read_parts(shared_data / folder).values():
        assert part.columns == columns
        assert len(part.labels) == labels
        assert part.facts["unlabelled"] == 0


@pytest.mark.shared
def test_trec_says_that_the_fine_labels_exist(shared_data: Path) -> None:
    assert "Column 'label_fine' also looks like labels (50 different)" in told(shared_data / "trec" / "train.jsonl")
    assert len(read(shared_data / "trec" / "train.jsonl", label="label_fine").labels) == 50


@pytest.mark.shared
def test_disaster_is_a_multilabel_table(shared_data: Path) -> None:
    examples = read(shared_data / "disaster" / "messages.csv", part="train")
    assert (examples.columns.task, examples.columns.text, examples.columns.pair) == ("multilabel", "message", None)
    assert len(examples) == 21_046
    assert examples.labels == examples.columns.target
    assert (len(examples.labels), examples.labels[0], examples.labels[-1]) == (37, "related", "direct_report")
    assert examples.facts["parts"] == {"train": 21_046, "dev": 2_573, "test": 2_629}
    sentences = " ".join(examples.facts["told"])
    assert "Column 'related' has values other than 0 and 1 ('2' in 193 rows)" in sentences
    assert "Column 'id' looks like an id" in sentences
    assert "Column 'genre' also looks like labels" in sentences


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["gsm8k", "cluener", "wnut17", "squad_v1_dev", "nl2bash"])
def test_data_for_another_task_is_not_taken_for_labels(shared_data: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"(No column|could be the labels).*Name it: (label|text)='column'"):
        read(shared_data / folder)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"Text": TEXTS, "Category": cycle("a", "b")}, Columns("classify", "Text", None, ("Category",))),
        ({"id": list(range(40)), "body": TEXTS, "spam": cycle(0, 1)}, Columns("classify", "body", None, ("spam",))),
        ({"a": TEXTS, "b": cycle("x", "y", "z")}, Columns("classify", "a", None, ("b",))),
        ({"text": TEXTS, "labels": cycle(["a"], ["a", "b"], [])}, Columns("multilabel", "text", None, ("labels",))),
        ({"text": TEXTS, "rude": cycle(0, 1), "angry": cycle(1, 0, 0)}, Columns("multilabel", "text", None, ("rude", "angry"))),
        (
            {"text": TEXTS, "rude": cycle(True, False), "angry": cycle("True", "False")},
            Columns("multilabel", "text", None, ("rude", "angry")),
        ),
        ({"text": TEXTS, "score": [index / 7 for index in range(40)]}, Columns("regress", "text", None, ("score",))),
        ({"text": TEXTS, "score": cycle(0.5, 1.0, 1.5)}, Columns("classify", "text", None, ("score",))),
        ({"text": TEXTS, "stars": list(range(40))}, Columns("classify", "text", None, ("stars",))),
        (
            {"premise": cycle("p one", "p two"), "hypothesis": TEXTS, "label": cycle(0, 1, 2)},
            Columns("pair", "premise", "hypothesis", ("label",)),
        ),
        ({"#1 String": TEXTS, "#2 String": TEXTS[::-1], "Quality": cycle(0, 1)}, Columns("pair", "#1 String", "#2 String", ("Quality",))),
        ({"text_a": TEXTS, "text_b": TEXTS[::-1], "label": cycle(0.1, 0.25)}, Columns("pair", "text_a", "text_b", ("label",))),
        ({"v1": cycle("ham", "spam"), "v2": TEXTS}, Columns("classify", "v2", None, ("v1",))),
        (
            {"text": ["".join(chr(65 + (index * 7 + step) % 26) for step in range(9)) for index in range(26)], "label": [0, 1] * 13},
            Columns("classify", "text", None, ("label",)),
        ),
    ],
)
def test_columns_are_guessed_from_names_and_values(columns: dict[str, list], expected: Columns) -> None:
    assert read(table(**columns)).columns == expected


def test_the_caller_overrides_every_guess() -> None:
    rows = table(text=TEXTS, title=TEXTS[::-1], label=cycle("1", "2"), other=cycle("x", "y"), mark=[float(index) for index in range(40)])
    assert read(rows, text="title", label="other").columns == Columns("classify", "title", None, ("other",))
    assert read(rows, pair="title").columns == Columns("pair", "text", "title", ("label",))
    assert read(rows, task="regress").columns == Columns("regress", "text", None, ("label",))
    assert read(rows, task="regress", label="mark")[3].target == 3.0
    assert read(rows, label="label, other", task="multilabel").columns.target == ("label", "other")
    twins = table(sentence1=TEXTS, sentence2=TEXTS, label=cycle("a", "b"))
    assert read(twins, task="classify").columns.pair is None
    assert read(twins, task="pair").columns.pair == "sentence2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "clasify"}, "Unknown task 'clasify'.*Did you mean 'classify'"),
        ({"task": "pair"}, "needs a second column of texts"),
        ({"task": "classify", "label": "label,other"}, "task classify has one label column, and 2 are named"),
        ({"text": "label", "label": "label"}, "'label' is named twice"),
        ({"label": "labl"}, "no column 'labl' for the label. Did you mean 'label'"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(table(text=TEXTS, label=cycle("a", "b"), other=cycle("c", "d", "e")), **options)


def test_an_unsure_guess_is_an_error_that_lists_the_candidates() -> None:
    with pytest.raises(InputError, match="'colour', 'size' could be the labels"):
        read(table(words=TEXTS, colour=cycle("red", "blue"), size=cycle("s", "m", "l")))


def test_labels_in_one_text_are_separated() -> None:
    for values, separator in (
        (cycle("a|b", "b", "c|a"), "'|'"),
        (cycle("a;b", "b", "c; a"), "';'"),
        (cycle('["a","b"]', '["b"]', '["c", "a"]'), "'json'"),
    ):
        examples = read(table(text=TEXTS, label=values), task="multilabel")
        assert [example.target for example in examples[:3]] == [("a", "b"), ("b",), ("c", "a")]
        assert f"split into labels at {separator}" in " ".join(examples.facts["told"])
    bad = table(text=TEXTS, label=['["a"]'] * 39 + ["[a]"])
    with pytest.raises(InputError, match=r"no list of labels such as .*: row 40"):
        read(bad, task="multilabel")


def test_only_a_one_gives_a_label_and_other_values_are_told() -> None:
    rows = table(text=TEXTS, related=[2, *cycle(0, 1)[1:]], other=[None, *cycle(1, 0)[1:]], third=["", *cycle(1, 0)[1:]])
    examples = read(rows)
    assert examples[0].target == ()
    assert examples[1].target == ("related",)
    assert "Column 'related' has values other than 0 and 1 ('2' in 1 rows)" in " ".join(examples.facts["told"])
    assert read([{**rows[0], "related": None}, *rows[1:]])[0].target is None


def test_whole_numbers_that_may_be_a_quantity_are_told() -> None:
    rows = table(text=TEXTS * 3, age=list(range(40)) * 3)
    assert "if it is a quantity: task='regress'" in told(rows)


def test_without_labels_the_target_is_empty() -> None:
    rows = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
    with pytest.raises(InputError, match="No column looks like labels"):
        read(rows)
    assert read(rows, labelled=False).columns == Columns("classify", "text", None, ())
    others = [{**row, "kind": "ab"[row["id"] % 2]} for row in rows]
    assert read(others, labelled=False, text="text", label="label").columns.target == ()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["0", "1", "1"], "flag"),
        ([True, False], "flag"),
        (["0"] * 99 + ["2"], "flag"),
        (["0", "1", "2"], "integer"),
        (["1.0", "2.0"], "integer"),
        (["1.5", "2"], "number"),
        (["nan", "1"], "text"),
        (["", None, float("nan")], "empty"),
        ([["a"], []], "list"),
        ([[["a"]], []], "object"),
        ([{"a": 1}], "object"),
    ],
)
def test_kinds_of_columns(values: list, kind: str) -> None:
    assert profile("column", values).kind == kind


def test_constants_and_ids_are_seen() -> None:
    looks = {
        look.name: look
        for look in choose(
            ("text", "label", "language", "uid", "doc_id"),
            table(
                text=TEXTS,
                label=cycle("a", "b"),
                language=["en"] * 40,
                uid=[f"{index:06x}" for index in range(40)],
                doc_id=[index // 2 + index for index in range(40)],
            ),
        ).profiles
    }
    assert looks["language"].constant
    assert looks["uid"].looks_like_id
    assert looks["doc_id"].looks_like_id
    assert not looks["text"].looks_like_id
    assert not looks["label"].looks_like_id
