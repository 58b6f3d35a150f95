from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tiny_models

from lightune.data import Example
from lightune.errors import InputError
from lightune.evaluation import WORST, evaluate
from lightune.runtime.answers import Answers
from lightune.tasks import TASKS, find_task


@dataclass
class Oracle:
    """A predictor that gives each text the logits it was told."""

    answers: Answers
    told: dict[str, list[float]]
    truncated_tokens: int = 0

    def logits(self, examples: Sequence[Any]) -> np.ndarray:
        self.truncated_tokens += len(examples)
        return np.array([self.told[example.text] for example in examples], dtype=np.float32)


TWO = Answers("classify", ("no", "yes"))


def test_scores_count_rows_and_cut_tokens_and_leave_out_what_is_unlabelled() -> None:
    rows = [Example("a", target="yes", row=1), Example("b", row=2), Example("c", target="no", row=3)]
    oracle = Oracle(TWO, {"a": [0.0, 2.0], "c": [0.0, 1.0]}, truncated_tokens=5)
    scores = evaluate(oracle, rows, part="dev")
    assert (scores.rows, scores.part, scores.truncated_tokens) == (2, "dev", 2)
    assert scores["accuracy"] == 0.5
    assert scores.primary == "accuracy"
    low, high = scores.values["accuracy"].low, scores.values["accuracy"].high
    assert 0 <= low <= 0.5 <= high <= 1
    (worst,) = scores.details["worst"]
    assert (worst["row"], worst["text"], worst["target"], worst["answer"]) == (3, "c", "no", "yes")
    assert worst["probability"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-4)
    assert worst["loss"] == pytest.approx(-np.log(1 - worst["probability"]), abs=1e-3)
    assert scores.details["confusion"] == {"labels": ["no", "yes"], "counts": [[0, 1], [0, 1]]}


def test_the_worst_errors_come_first_and_are_not_too_many() -> None:
    rows = [Example(str(number), target="no", row=number) for number in range(40)]
    oracle = Oracle(TWO, {str(number): [0.0, 0.1 * (number + 1)] for number in range(40)})
    worst = evaluate(oracle, rows, resamples=0).details["worst"]
    assert [row["row"] for row in worst] == list(range(39, 39 - WORST, -1))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_gives_a_record_that_json_can_hold(name: str) -> None:
    rows = tiny_models.make_rows(30, name)
    task = find_task(name).describe(rows)
    draw = np.random.default_rng(0)
    told = {row.text: draw.normal(size=task.answers.outputs).tolist() for row in rows}
    scores = evaluate(Oracle(task.answers, told), rows, resamples=20)
    record = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert record["scores"]["primary"] == task.primary
    assert {"value", "low", "high"} == record["scores"][task.primary].keys()
    assert record.keys() == {
        "part", "rows", "scores", "truncated_tokens", "labels", "confusion", "calibration", "thresholds", "regression", "worst",
    }  # fmt: skip
    assert (record["confusion"] is not None) == (name in ("classify", "pair"))
    assert (record["thresholds"] is not None) == (name == "multilabel")
    assert (record["regression"] is not None) == (name == "regress")
    assert [row["label"] for row in record["labels"]] == list(task.answers.labels)
    assert all(row["loss"] >= 0 for row in record["worst"])


def test_thresholds_decide_what_holds() -> None:
    answers = Answers("multilabel", ("a", "b"), thresholds=(0.9, 0.1))
    rows = [Example("x", target=("b",), row=1), Example("y", target=("a",), row=2)]
    scores = evaluate(Oracle(answers, {"x": [1.0, -1.0], "y": [1.0, -1.0]}), rows, resamples=0)
    assert scores["exact_match"] == 0.5
    (worst,) = scores.details["worst"]
    assert (worst["row"], worst["target"], worst["answer"]) == (2, ["a"], ["b"])


def test_regressions_are_scored_in_the_users_own_units() -> None:
    answers = Answers("regress", (), center=10.0, scale=2.0)
    rows = [Example("x", target=10.0, row=1), Example("y", target=14.0, row=2), Example("z", target=9.0, row=3)]
    scores = evaluate(Oracle(answers, {"x": [0.0], "y": [1.0], "z": [-0.5]}), rows, resamples=0)
    assert scores["mae"] == pytest.approx(2 / 3)
    assert scores.details["regression"]["points"] == [[10.0, 10.0], [14.0, 12.0], [9.0, 9.0]]
    assert [row["row"] for row in scores.details["worst"]] == [2]


def test_data_without_labels_and_unknown_labels_are_told() -> None:
    with pytest.raises(InputError, match="The test data have no labelled rows"):
        evaluate(Oracle(TWO, {}), [Example("a")])
    with pytest.raises(InputError, match="Labels 'maybe' are not among"):
        evaluate(Oracle(TWO, {"a": [0, 0]}), [Example("a", target="maybe")])
