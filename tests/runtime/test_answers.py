import json

import numpy as np
import pytest

from lightune.errors import InputError
from lightune.runtime.answers import Answers


def test_one_label_of_several() -> None:
    answers = Answers("classify", ("cat", "dog"))
    logits = np.array([[2.0, 0.0], [-1.0, 3.0]], dtype=np.float32)
    assert answers.decide(logits) == ["cat", "dog"]
    assert np.allclose(answers.probabilities(logits).sum(axis=1), 1)
    first = answers.explain(logits)[0]
    assert first["label"] == "cat"
    assert first["probability"] == first["probabilities"]["cat"] == pytest.approx(1 / (1 + np.exp(-2)))


def test_huge_logits_stay_finite() -> None:
    logits = np.array([[1e30, -1e30]])
    assert Answers("classify", ("a", "b")).probabilities(logits).tolist() == [[1.0, 0.0]]
    assert Answers("multilabel", ("a", "b")).probabilities(logits).tolist() == [[1.0, 0.0]]


def test_temperature_softens_and_decides_the_same() -> None:
    logits = np.array([[2.0, 0.0, -1.0]])
    sharp, soft = Answers("classify", ("a", "b", "c")), Answers("classify", ("a", "b", "c"), temperature=2.0)
    assert soft.probabilities(logits)[0, 0] < sharp.probabilities(logits)[0, 0]
    assert soft.decide(logits) == sharp.decide(logits)


def test_any_number_of_labels_by_their_thresholds() -> None:
    logits = np.array([[0.1, 0.1], [-3.0, -3.0]])
    assert Answers("multilabel", ("a", "b")).decide(logits) == [("a", "b"), ()]
    assert Answers("multilabel", ("a", "b"), thresholds=(0.9, 0.5)).decide(logits) == [("b",), ()]
    assert Answers("multilabel", ("a", "b")).explain(logits)[1]["labels"] == []


def test_a_number_gets_its_scale_back() -> None:
    answers = Answers("regress", (), center=2.5, scale=1.5)
    assert answers.outputs == 1
    assert answers.decide(np.array([[1.0], [-1.0]])) == [4.0, 1.0]
    assert answers.explain(np.array([[0.0]])) == [{"value": 2.5}]
    assert answers.probabilities(np.array([[1.0]])).tolist() == [[4.0]]


def test_no_rows_give_no_answers() -> None:
    for answers in (Answers("classify", ("a", "b")), Answers("multilabel", ("a", "b")), Answers("regress", ())):
        assert answers.explain(np.zeros((0, answers.outputs))) == []


def test_explanations_are_json() -> None:
    logits = np.array([[0.3, 0.2]], dtype=np.float32)
    for kind in ("classify", "pair", "multilabel"):
        json.dumps(Answers(kind, ("é", "b")).explain(logits), allow_nan=False)


@pytest.mark.parametrize(
    "answers",
    [
        Answers("pair", ("0", "1"), temperature=1.7),
        Answers("multilabel", ("a",), thresholds=(0.25,)),
        Answers("regress", (), center=1.0, scale=3.0),
    ],
)
def test_through_json_and_back(answers: Answers) -> None:
    assert Answers.from_dict(json.loads(json.dumps(answers.to_dict()))) == answers


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"kind": "clasify"}, "Did you mean 'classify'"),
        ({"labels": ("a",)}, "at least 2"),
        ({"labels": ("a", "a")}, "each name once"),
        ({"temperature": 0.0}, "more than 0"),
        ({"thresholds": (0.5,)}, "one for each"),
    ],
)
def test_what_is_wrong_is_said(changes: dict, part: str) -> None:
    with pytest.raises(InputError, match=part):
        Answers(**{"kind": "classify", "labels": ("a", "b"), **changes})


def test_all_problems_at_once() -> None:
    with pytest.raises(InputError, match=r"labels.*temperature"):
        Answers("classify", ("a",), temperature=-1)


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown 'colour', no 'labels'"):
        Answers.from_dict({"kind": "classify", "colour": 1})


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[2, 3\], expected \[rows, 2\]"):
        Answers("classify", ("a", "b")).decide(np.zeros((2, 3)))
