"""What judges weights while they learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tiny_models

from lightune.development import LikenessJudge, measure_distance
from lightune.evaluation import evaluate
from lightune.runtime.answers import Answers
from lightune.sources import Source

PAIR, TAGS, NUMBER = Answers("pair", ("no", "yes")), Answers("multilabel", ("a", "b", "c")), Answers("regress", ("stars",), center=3.0)


def test_the_distance_is_how_much_probability_lies_elsewhere() -> None:
    sure, torn = np.array([[50.0, -50.0]]), np.zeros((1, 2))
    assert measure_distance(PAIR, sure, sure) == 0
    assert measure_distance(PAIR, sure, -sure) == pytest.approx(1)
    assert measure_distance(PAIR, sure, torn) == pytest.approx(0.5)
    both = np.concatenate([sure, sure])
    assert measure_distance(PAIR, both, np.concatenate([sure, torn])) == pytest.approx(0.25), "the mean of the rows"


def test_labels_that_stand_alone_count_alone_and_numbers_by_how_they_rise_together() -> None:
    one = np.array([[50.0, 50.0, -50.0]])
    assert measure_distance(TAGS, one, np.array([[50.0, -50.0, -50.0]])) == pytest.approx(1 / 3)
    numbers = np.arange(5.0)[:, None]
    assert measure_distance(NUMBER, numbers, 2 * numbers + 7) == pytest.approx(0)
    assert measure_distance(NUMBER, numbers, -numbers) == pytest.approx(2)


def test_a_student_is_judged_by_the_model_before_and_scored_by_the_labels(tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(40)
    model, other = (tiny_models.start(tiny_source("bert"), rows, seed=seed) for seed in (0, 1))
    targets = model.task.targets(rows)
    same, far = (LikenessJudge(model, rows, targets, goal) for goal in (model.logits(rows), other.logits(rows)))
    assert same.primary == "distance"
    assert {"distance", "loss", "accuracy"} <= set(same.names())
    near, there = same.scores("distance"), far.scores("distance")
    assert near["distance"] == pytest.approx(0, abs=1e-6)
    assert 1e-3 < there["distance"] <= 1
    assert near["accuracy"] == there["accuracy"] == pytest.approx(evaluate(model, rows, resamples=0)["accuracy"])
    assert same.final() == pytest.approx(near["accuracy"])
    assert same.ignorant("distance") > near["distance"], "a constant answer is no likeness"
    assert same.scores("macro_f1")["macro_f1"] <= 1
