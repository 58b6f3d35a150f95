import math

import numpy as np
import pytest

from lightune import metrics


def f1_by_hand(gold: np.ndarray, answers: np.ndarray, label: object) -> tuple[float, float, float]:
    """Precision, recall and F1 of one label, from their definitions."""
    hits = int(((gold == label) & (answers == label)).sum())
    said, held = int((answers == label).sum()), int((gold == label).sum())
    precision, recall = (hits / said if said else 0.0), (hits / held if held else 0.0)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


@pytest.fixture
def answered() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    chances = draw.dirichlet(np.ones(4), 60)
    gold = np.where(draw.random(60) < 0.5, chances.argmax(1), draw.integers(0, 4, 60))
    return gold, chances, chances.argmax(1)


def test_single_label_scores_follow_their_definitions(answered: tuple[np.ndarray, ...]) -> None:
    gold, _, answers = answered
    scores = metrics.single_label(gold, answers)
    table = np.array([f1_by_hand(gold, answers, label) for label in range(4)])
    share = np.bincount(gold, minlength=4) / len(gold)
    for place, name in enumerate(("precision", "recall", "f1")):
        assert scores[f"macro_{name}"] == pytest.approx(table[:, place].mean())
        assert scores[f"weighted_{name}"] == pytest.approx(table[:, place] @ share)
    assert scores["accuracy"] == pytest.approx((gold == answers).sum() / 60)
    counts = metrics.confusion(gold, answers, 4)
    right, all_rows, said, held = np.trace(counts), counts.sum(), counts.sum(0), counts.sum(1)  # Gorodkin 2004
    spread = math.sqrt(float((all_rows**2 - said @ said) * (all_rows**2 - held @ held)))
    assert scores["mcc"] == pytest.approx((right * all_rows - said @ held) / spread)


def test_auroc_is_the_chance_that_a_true_one_is_ranked_above_a_false_one() -> None:
    draw = np.random.default_rng(0)
    gold, chance = draw.integers(0, 2, 50), draw.random(50).round(1)  # with ties
    scores = metrics.rank_single_label(gold, np.stack([1 - chance, chance], 1))
    ranks = [(a > b) + 0.5 * (a == b) for a in chance[gold == 1] for b in chance[gold == 0]]
    assert scores["auroc"] == pytest.approx(np.mean(ranks))
    assert 0 < scores["average_precision"] <= 1


def test_ranking_scores_are_left_out_where_a_label_does_not_occur() -> None:
    chances = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert "auroc" not in metrics.rank_single_label(np.array([0, 0]), chances)


def test_many_labels_scores_follow_their_definitions() -> None:
    draw = np.random.default_rng(1)
    gold, chances = draw.random((40, 3)) < 0.4, draw.random((40, 3))
    holds = chances > 0.5
    scores = metrics.many_labels(gold, holds)
    assert scores["micro_f1"] == pytest.approx(f1_by_hand(gold.ravel(), holds.ravel(), True)[2])
    assert scores["macro_f1"] == pytest.approx(np.mean([f1_by_hand(gold[:, k], holds[:, k], True)[2] for k in range(3)]))
    assert scores["exact_match"] == pytest.approx(np.mean([(a == b).all() for a, b in zip(gold, holds, strict=True)]))
    assert scores["hamming_loss"] == pytest.approx((gold ^ holds).mean())


def test_a_single_yes_or_no_label_is_scored_on_its_yes() -> None:
    gold, holds = np.array([[1], [1], [0], [0], [1]], bool), np.array([[1], [0], [1], [0], [1]], bool)
    scores = metrics.many_labels(gold, holds)
    assert scores["micro_f1"] == scores["macro_f1"] == pytest.approx(2 / 3)
    (row,) = metrics.by_label(gold, holds, ("toxic",))
    assert (row["label"], row["support"]) == ("toxic", 3)
    assert row["f1"] == pytest.approx(2 / 3)


def test_numbers_follow_their_definitions() -> None:
    draw = np.random.default_rng(2)
    gold = draw.normal(size=30)
    values = gold + draw.normal(size=30)
    scores = metrics.numbers(gold, values)
    assert scores["pearson"] == pytest.approx(np.corrcoef(gold, values)[0, 1])
    rank = lambda array: array.argsort().argsort()
    assert scores["spearman"] == pytest.approx(np.corrcoef(rank(gold), rank(values))[0, 1])
    assert scores["mse"] == pytest.approx(np.mean((gold - values) ** 2))
    assert scores["mae"] == pytest.approx(np.mean(np.abs(gold - values)))


def test_a_constant_side_correlates_by_nothing() -> None:
    scores = metrics.numbers(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert scores["pearson"] == scores["spearman"] == 0.0


def test_by_label_lists_labels_that_nobody_has() -> None:
    table = metrics.by_label(np.array([0, 0, 2]), np.array([0, 2, 2]), ("a", "b", "c"))
    assert [row["label"] for row in table] == ["a", "b", "c"]
    assert [row["support"] for row in table] == [2, 0, 1]
    assert table[2]["precision"] == 0.5


def test_confusion_has_true_labels_in_rows() -> None:
    assert metrics.confusion(np.array([0, 0, 1]), np.array([1, 0, 1]), 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    error, bins = metrics.calibration(np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True]))
    assert error == pytest.approx((3 * abs(2.9 / 3 - 2 / 3) + 1 * abs(0.55 - 1)) / 4)
    assert [row["count"] for row in bins] == [1, 3]
    assert metrics.calibration(np.array([1.0, 1.0]), np.array([True, True]))[0] == 0.0


def test_the_bootstrap_interval_is_that_of_the_normal_approximation() -> None:
    right = np.arange(400) < 300  # accuracy 0.75, its standard error √(0.75 · 0.25 / 400)
    low, high = metrics.bootstrap(lambda rows: {"accuracy": right[rows].mean()}, 400, resamples=2000)["accuracy"]
    error = math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - 1.96 * error, abs=0.006)
    assert high == pytest.approx(0.75 + 1.96 * error, abs=0.006)


def test_the_bootstrap_repeats_and_copes_with_scores_that_are_not_always_there() -> None:
    gold = np.array([0] * 9 + [1])
    chances = np.linspace(0, 1, 10)
    score = lambda rows: metrics.rank_single_label(gold[rows], np.stack([1 - chances, chances], 1)[rows])
    first = metrics.bootstrap(score, 10, resamples=50)
    assert first == metrics.bootstrap(score, 10, resamples=50)
    assert first["auroc"][0] == 1.0
    assert metrics.bootstrap(score, 10, resamples=0) == {}
