"""What every entry of TASKS must do; Lightune finds all else by the table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional

from lightune.data import Columns, Example, Examples
from lightune.errors import InputError
from lightune.runtime.answers import Answers
from lightune.tasks import TASKS, find_task, task_for

ROWS = 60


@pytest.fixture(params=sorted(TASKS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def described(name: str) -> tuple[Any, list[Example], np.ndarray, np.ndarray]:
    """A task, its rows, their targets, and logits that know something."""
    rows = tiny_models.make_rows(ROWS, name)
    task = find_task(name).describe(rows)
    targets = task.targets(rows)
    draw = np.random.default_rng(5)
    truth = np.eye(task.answers.outputs)[targets] if name in ("classify", "pair") else targets.reshape(ROWS, -1)
    return task, rows, targets, (2.0 * truth + draw.normal(size=truth.shape)).astype(np.float32)


def test_a_task_describes_what_its_rows_show(name: str) -> None:
    task, rows, targets, _ = described(name)
    assert task.answers.kind == task.kind == name
    assert task_for(task.answers) == task
    assert len(targets) == ROWS
    if name in ("classify", "pair"):
        assert targets.dtype == np.int64
        assert [task.answers.labels[place] for place in targets] == [row.target for row in rows]
    elif name == "multilabel":
        assert [tuple(label for label, held in zip(task.answers.labels, row, strict=True) if held) for row in targets] == [
            r.target for r in rows
        ]
    else:
        assert targets.dtype == np.float32
        np.testing.assert_allclose(targets * task.answers.scale + task.answers.center, [row.target for row in rows], rtol=1e-6)
        assert abs(targets.mean()) < 1e-6
        assert targets.std() == pytest.approx(1, abs=1e-5)


def test_weights_average_to_one(name: str) -> None:
    task, _, targets, _ = described(name)
    assert task.weights(targets, False).tolist() == [1.0] * ROWS
    balanced = task.weights(targets, True)
    assert balanced.dtype == np.float32
    assert balanced.mean() == pytest.approx(1, abs=1e-5)
    if name in ("classify", "pair"):
        shares = [balanced[targets == label].sum() for label in np.unique(targets)]
        assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-5)  # every label counts as much as any other


def test_losses_are_finite_and_fall_where_the_answer_is_right(name: str) -> None:
    task, _, targets, logits = described(name)
    gold = torch.from_numpy(targets)
    for smoothing in (0.0, 0.1):
        scores = torch.from_numpy(logits).requires_grad_()
        losses = task.losses(scores, gold, smoothing)
        assert losses.shape == (ROWS,)
        assert losses.isfinite().all()
        losses.sum().backward()
        better = task.losses(scores.detach() - 0.01 * scores.grad, gold, smoothing)
        assert (better <= losses.detach() + 1e-6).all()
    extreme = task.losses(torch.full_like(scores, -80.0), gold, 0.1)
    assert extreme.isfinite().all()


def test_divergences_are_symmetric_and_zero_between_equals(name: str) -> None:
    task, _, _, logits = described(name)
    one, other = torch.from_numpy(logits), torch.from_numpy(logits[::-1].copy())
    assert torch.equal(task.divergences(one, one), torch.zeros(ROWS))
    torch.testing.assert_close(task.divergences(one, other), task.divergences(other, one))
    assert (task.divergences(one, other) >= 0).all()


def test_scores_are_plain_numbers_and_hold_the_main_one(name: str) -> None:
    task, _, targets, logits = described(name)
    scores = task.score(logits, targets)
    assert task.primary in scores
    assert all(type(value) is float and np.isfinite(value) for value in scores.values())
    right = task.score(
        np.full_like(logits, -9) + 18 * (logits * 0 + truth(task, targets)) if name != "regress" else truth(task, targets), targets
    )
    assert right[task.primary] == pytest.approx(1)


def truth(task: Any, targets: np.ndarray) -> np.ndarray:
    return np.eye(task.answers.outputs)[targets] if task.kind in ("classify", "pair") else targets.reshape(len(targets), -1)


def test_calibration_does_not_change_the_task_and_never_hurts(name: str) -> None:
    task, _, targets, logits = described(name)
    fitted = task.calibrate(logits * 3, targets)
    assert dataclasses.replace(fitted.answers, temperature=1.0, thresholds=None) == task.answers
    if name == "multilabel":
        before, after = task.score(logits * 3, targets), fitted.score(logits * 3, targets)
        assert after["macro_f1"] >= before["macro_f1"]
    elif name != "regress":
        assert fitted.score(logits * 3, targets)["accuracy"] == task.score(logits * 3, targets)["accuracy"]
        assert likelihood(fitted, logits * 3, targets) >= likelihood(task, logits * 3, targets)


def doubt(task: Any, targets: np.ndarray) -> float:
    """The share of a row's target that Platt's one part in n + 2 spreads over all labels, in the terms of label smoothing."""
    count = task.answers.outputs
    return count / (count - 1) / (len(targets) + 2)


def likelihood(task: Any, logits: np.ndarray, targets: np.ndarray) -> float:
    chances = np.log(task.answers.probabilities(logits))
    share = doubt(task, targets)
    return float(((1 - share) * chances[np.arange(len(targets)), targets] + share * chances.mean(1)).mean())


def test_few_rows_that_are_all_right_do_not_make_the_model_sure_of_everything() -> None:
    task, _, targets, _ = described("classify")
    right = 3.0 * np.eye(task.answers.outputs)[targets[:20]]
    chances = task.calibrate(right, targets[:20]).answers.probabilities(right)
    assert 0.9 < chances.max() < 0.97


def test_calibration_of_nothing_is_harmless(name: str) -> None:
    task, _, targets, logits = described(name)
    assert task.calibrate(logits[:1], targets[:1]).answers == dataclasses.replace(task.answers, thresholds=fitted_thresholds(task))


def fitted_thresholds(task: Any) -> tuple[float, ...] | None:
    return (0.5,) * task.answers.outputs if task.kind == "multilabel" else None


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_temperature_is_the_one_that_scipy_finds(scale: float) -> None:
    from scipy.optimize import minimize_scalar

    task, _, targets, logits = described("classify")
    found = task.calibrate(logits * scale, targets).answers.temperature

    def cost(exponent: float) -> float:
        scaled = torch.from_numpy(logits * scale).double() / np.exp(exponent)
        return float(functional.cross_entropy(scaled, torch.from_numpy(targets), label_smoothing=doubt(task, targets)))

    best = minimize_scalar(cost, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-8})
    assert found == pytest.approx(np.exp(best.x), rel=2e-3)


def test_thresholds_are_the_best_of_all_and_stay_at_a_half_for_rare_labels() -> None:
    draw = np.random.default_rng(1)
    gold = np.stack([draw.random(80) < 0.4, np.arange(80) < 4], 1)
    for size in (1.0, 1e-8):  # also where every probability is tiny
        chances = (size * (0.3 * gold + 0.7 * draw.random((80, 2)))).astype(np.float64)
        first, second = tasks_thresholds(chances, gold)
        assert second == 0.5
        best = max(f1(gold[:, 0], chances[:, 0] >= cut) for cut in chances[:, 0])
        assert f1(gold[:, 0], chances[:, 0] >= first) == pytest.approx(best)


def tasks_thresholds(chances: np.ndarray, gold: np.ndarray) -> tuple[float, ...]:
    from lightune.tasks.calibration import fit_thresholds

    return fit_thresholds(chances, gold)


def f1(gold: np.ndarray, holds: np.ndarray) -> float:
    return 2 * int((gold & holds).sum()) / (int(gold.sum()) + int(holds.sum()))


@pytest.mark.parametrize("kind", ["classify", "pair", "multilabel"])
def test_labels_that_the_training_data_lack_are_named(kind: str) -> None:
    task, rows, _, _ = described(kind)
    stranger = dataclasses.replace(rows[0], target=("joy",) if kind == "multilabel" else "joy")
    with pytest.raises(InputError, match=r"Labels 'joy' are not among those of the training data"):
        task.targets([*rows, stranger])


def test_label_smoothing_and_r_drop_follow_their_equations() -> None:
    task, _, targets, logits = described("classify")
    scores, gold = torch.from_numpy(logits), torch.from_numpy(targets)
    log_chance, count = scores.log_softmax(-1), scores.shape[1]
    spread = 0.9 * -log_chance[torch.arange(ROWS), gold] + 0.1 / count * -log_chance.sum(-1)
    torch.testing.assert_close(task.losses(scores, gold, 0.1), spread)
    other = scores.flip(0)
    both = [
        functional.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        for a, b in ((scores, other), (other, scores))
    ]
    torch.testing.assert_close(task.divergences(scores, other), (both[0] + both[1]) / 2)
    many, _, table, outputs = described("multilabel")
    one, two = torch.from_numpy(outputs), torch.from_numpy(outputs).flip(0)
    yes = [torch.distributions.Bernoulli(logits=value) for value in (one, two)]
    expected = (torch.distributions.kl_divergence(yes[0], yes[1]) + torch.distributions.kl_divergence(yes[1], yes[0])).sum(-1) / 2
    torch.testing.assert_close(many.divergences(one, two), expected, rtol=1e-4, atol=1e-5)
    soft = torch.from_numpy(table) * 0.9 + 0.05
    plain = -(soft * functional.logsigmoid(one) + (1 - soft) * functional.logsigmoid(-one)).sum(-1)
    torch.testing.assert_close(many.losses(one, torch.from_numpy(table), 0.1), plain)


def test_labels_keep_their_natural_order() -> None:
    numbers = [Example("a", target=label) for label in ("10", "9", "1")]
    assert find_task("classify").describe(numbers).answers.labels == ("1", "9", "10")
    columns = Columns("multilabel", "text", None, ("toxic", "insult", "never"))
    rows = Examples([Example("a", target=("insult",)), Example("b", target=("toxic", "insult"))], columns)
    assert find_task("multilabel").describe(rows).answers.labels == ("toxic", "insult", "never")  # test rows may have it


def test_equal_numbers_are_no_reason_to_fail() -> None:
    task = find_task("regress").describe([Example("a", target=0.1)] * 3)  # whose mean is not quite 0.1 in floating point
    assert task.answers.scale == 1.0
    assert np.abs(task.targets([Example("a", target=0.1)])).max() < 1e-6


def test_one_label_is_no_task() -> None:
    with pytest.raises(InputError, match="classify has 1 labels, expected at least 2"):
        find_task("classify").describe([Example("a", target="x")])


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(InputError, match=r"Unknown task 'clasify'.*Did you mean 'classify'\?"):
        find_task("clasify")
    assert isinstance(task_for(Answers("regress", ())), find_task("regress"))
