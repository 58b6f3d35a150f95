from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from lightune import training
from lightune.data import Example
from lightune.data.batches import cut_step, plan_epoch
from lightune.errors import InputError, IntegrityError
from lightune.models import Model
from lightune.recipes import TrainOptions
from lightune.sources import Source
from lightune.training import Evaluation, Step, Training, default_epochs, task_objective

ROWS, DEV = tiny_models.make_rows(40), tiny_models.make_rows(16, seed=1)
PLAIN = TrainOptions(epochs=2.0, batch_size=8, precision="fp32", device="cpu", threads=1, rate=1e-3, head_dropout=0.0)
DROPPING = dataclasses.replace(PLAIN, dropout=0.2, head_dropout=0.2)


@pytest.fixture
def start(tiny_source: Callable[[str], Source]) -> Callable[..., Model]:
    return lambda task="classify", method="full", rows=ROWS, family="bert": tiny_models.start(tiny_source(family), rows, task, method)


def trained(
    model: Model, options: TrainOptions, rows: Sequence[Example] = ROWS, dev: Sequence[Example] = DEV
) -> tuple[Training, list[Any]]:
    training = Training(model, rows, dev, options)
    return training, list(training.steps())


def losses(facts: Sequence[Any]) -> list[float]:
    return [fact.loss for fact in facts if isinstance(fact, Step)]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: item.detach().clone() for name, item in model.trainable().items()}


def greatest_gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# what a step is


def test_a_run_tells_its_steps_and_evaluations_in_order(start: Callable[..., Model]) -> None:
    training, facts = trained(start(), PLAIN)
    steps = [fact for fact in facts if isinstance(fact, Step)]
    checks = [fact for fact in facts if isinstance(fact, Evaluation)]
    assert [fact.step for fact in steps] == list(range(1, 11))
    assert [fact.step for fact in checks] == [5, 10]
    assert [fact.epoch for fact in checks] == [1.0, 2.0]
    assert sum(fact.examples for fact in steps) == 2 * len(ROWS)
    assert sum(fact.tokens for fact in steps) == 2 * int(training.lengths.sum())
    assert all(later.seconds >= earlier.seconds for earlier, later in itertools.pairwise(facts))
    assert steps[-1].loss < steps[0].loss
    assert steps[0].rate == pytest.approx(1e-3)
    assert all(fact.gradient_norm > 0 for fact in steps)
    assert {"accuracy", "loss"} <= checks[0].scores.keys()


def test_the_model_ends_with_its_best_weights_calibrated(start: Callable[..., Model]) -> None:
    model = start()
    options = dataclasses.replace(PLAIN, epochs=6.0, rate=5e-3, metric="loss")
    training = Training(model, ROWS, DEV, options)
    kept, best = {}, None
    for fact in training.steps():
        if isinstance(fact, Evaluation):
            kept[fact.loss] = weights(model)
            best = fact.loss if fact.best else best
            assert fact.best == (fact.loss == min(kept))
    assert best == min(kept)
    assert greatest_gap(weights(model), kept[best]) == 0
    assert model.answers.temperature == model.task.calibrate(model.logits(DEV), model.task.targets(DEV)).answers.temperature != 1.0
    assert not model.network.training


def test_without_development_data_the_last_weights_stay(start: Callable[..., Model]) -> None:
    training, facts = trained(start(), PLAIN, dev=[])
    assert len(facts) == 10
    assert training.best is None
    assert training.alarms() == []


@pytest.mark.parametrize("task", ["classify", "pair", "multilabel", "regress"])
def test_every_task_learns(task: str, start: Callable[..., Model]) -> None:
    rows, dev = tiny_models.make_rows(96, task), tiny_models.make_rows(40, task, seed=1)
    model = start(task, rows=rows)
    training, facts = trained(model, dataclasses.replace(PLAIN, epochs=10.0, rate=4e-3, batch_size=16), rows, dev)
    assert losses(facts)[-1] < losses(facts)[0] * 0.7
    if task != "pair":  # which takes longer to learn
        assert training.alarms() == []


def test_more_of_the_same_seed_is_the_same_and_another_seed_is_not(start: Callable[..., Model]) -> None:
    first, second = (losses(trained(start(), DROPPING)[1]) for _ in range(2))
    assert first == second
    assert losses(trained(start(), dataclasses.replace(DROPPING, seed=1))[1]) != first


def test_a_forecast_changes_nothing(start: Callable[..., Model]) -> None:
    expected = losses(trained(start(), DROPPING)[1])
    training = Training(start(), ROWS, DEV, DROPPING)
    before = weights(training.model)
    forecast = training.forecast()
    assert greatest_gap(before, weights(training.model)) == 0
    assert losses(list(training.steps())) == expected
    assert (forecast.steps, forecast.epochs, forecast.precision) == (10, 2.0, "fp32")
    assert forecast.seconds > 0 < forecast.bytes


def test_training_settles_for_what_ends_in_time(start: Callable[..., Model]) -> None:
    training = Training(start(), ROWS, DEV, PLAIN)
    forecast = training.settle(1e4)
    assert (forecast.epochs, forecast.steps) == (2.0, 10)  # never more than was asked for
    slow = training.forecast().seconds / 10
    cut = Training(start(), ROWS, DEV, dataclasses.replace(PLAIN, epochs=1e6)).settle(slow * 50)
    assert 5 <= cut.steps <= 500
    assert cut.epochs == pytest.approx(cut.steps / 5)
    assert cut.seconds < slow * 51
    with pytest.raises(InputError, match=r"1e-09 s are too short to train: a step of 8 examples and an evaluation on 16 development rows"):
        training.settle(1e-9)


def test_a_run_that_finishes_early_ends_as_at_its_end(start: Callable[..., Model]) -> None:
    training, facts = Training(start(), ROWS, DEV, PLAIN), []
    for fact in training.steps():
        facts.append(fact)
        if fact.step >= 2:
            training.finish_early()
    assert [(fact.kind, fact.step) for fact in facts] == [("step", 1), ("step", 2), ("step", 3), ("evaluation", 3)]
    assert training.planned == 10
    assert training.best is not None
    assert greatest_gap(training.best, weights(training.model)) == 0


@pytest.mark.parametrize("epochs", [2.0, 400.0])
def test_an_end_in_time_sets_the_steps_and_the_rate_falls_to_it(
    epochs: float, start: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned were 10 steps or 2,000; a clock that moves by half a second whenever it is read leaves time for about 100."""
    ticks = itertools.count(step=0.5)
    monkeypatch.setattr("lightune.training.time", SimpleNamespace(perf_counter=lambda: next(ticks), time=time.time))
    options = dataclasses.replace(PLAIN, epochs=epochs, schedule="linear", evaluate_every=40)
    training = Training(start(), ROWS, DEV, options)
    training.end_by(100.0)
    steps = []
    for fact in training.steps():
        steps += [fact] if isinstance(fact, Step) else []
        if fact.step == 60 and not training.stopping:
            training.save(tmp_path)
            break
    again = Training(start(), ROWS, DEV, options)
    again.restore(tmp_path)
    again.end_by(100.0)
    steps += [fact for fact in again.steps() if isinstance(fact, Step)]
    assert 90 <= len(steps) <= 105
    rates = [fact.rate for fact in steps[10:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.03 * max(rates)
    assert rates[45] == pytest.approx(0.45e-3, rel=0.1)
    assert again.planned == round(5 * epochs)


# equivalences


@pytest.mark.parametrize("extra", [{}, {"class_weights": "balanced", "label_smoothing": 0.1}, {"r_drop": 0.5}])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_in_pieces_is_the_step_as_a_whole(method: str, extra: dict[str, Any], start: Callable[..., Model]) -> None:
    ends = []
    for budget in (8192, 40, 1):
        training, facts = trained(
            start(method=method), dataclasses.replace(PLAIN, batch_tokens=budget, optimizer="sgd", rate=0.05, **extra), dev=[]
        )
        ends.append((losses(facts), [fact.gradient_norm for fact in facts], weights(training.model)))
    for found in ends[1:]:
        np.testing.assert_allclose(found[0], ends[0][0], rtol=1e-5)
        np.testing.assert_allclose(found[1], ends[0][1], rtol=1e-4)
        assert greatest_gap(found[2], ends[0][2]) < 1e-5


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ("adamw", "linear"),
        ("adamw", "plateau"),
        ("sgd:momentum=0.9", "cosine"),
        ("rmsprop", "inverse_sqrt"),
        ("adam", "constant"),
        ("adafactor", "linear"),
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(
    optimizer: str, schedule: str, start: Callable[..., Model], tmp_path: Path
) -> None:
    options = dataclasses.replace(DROPPING, optimizer=optimizer, schedule=schedule, evaluate_every=2, rate=4e-3)
    whole, expected = trained(start(), options)
    for stop in (4, 7):  # at an evaluation, in the second epoch
        training = Training(start(), ROWS, DEV, options)
        begun = []
        for fact in training.steps():
            begun.append(fact)
            if isinstance(fact, Step) and fact.step == stop:
                training.save(tmp_path / str(stop))
                break
        torch.rand(3)  # whatever else the process draws
        again = Training(start(), ROWS, DEV, options)
        assert again.restore(tmp_path / str(stop)) == stop
        rest = list(again.steps())
        assert losses(begun) + losses(rest) == losses(expected)
        seen = [(fact.step, fact.scores, fact.best) for fact in expected if isinstance(fact, Evaluation) and fact.step > stop]
        assert [(fact.step, fact.scores, fact.best) for fact in rest if isinstance(fact, Evaluation)] == seen
        assert greatest_gap(weights(again.model), weights(whole.model)) == 0
        assert again.model.answers == whole.model.answers


def test_lora_resumes_too(start: Callable[..., Model], tmp_path: Path) -> None:
    _, expected = trained(start(method="lora:dropout=0.1"), DROPPING)
    training = Training(start(method="lora:dropout=0.1"), ROWS, DEV, DROPPING)
    for fact in training.steps():
        if fact.step == 3:
            training.save(tmp_path)
            break
    again = Training(start(method="lora:dropout=0.1"), ROWS, DEV, DROPPING)
    again.restore(tmp_path)
    assert losses(list(again.steps())) == losses(expected)[3:]


def test_a_finished_run_resumes_to_its_end(start: Callable[..., Model], tmp_path: Path) -> None:
    training, _ = trained(start(), PLAIN)
    end = weights(training.model)
    for name, item in training.model.trainable().items():
        item.data.copy_(training.best[name] if training.best else item)
    training.save(tmp_path)
    again = Training(start(), ROWS, DEV, PLAIN)
    assert again.restore(tmp_path) == 10
    assert list(again.steps()) == []
    assert greatest_gap(weights(again.model), end) == 0


def test_a_stop_ends_after_the_step_in_progress_and_can_be_resumed(start: Callable[..., Model], tmp_path: Path) -> None:
    expected = losses(trained(start(), DROPPING)[1])
    training, seen = Training(start(), ROWS, DEV, DROPPING), []
    for fact in training.steps():
        seen.append(fact)
        if fact.step == 4:
            training.request_stop()
    assert [fact.step for fact in seen if isinstance(fact, Step)] == [1, 2, 3, 4]
    training.save(tmp_path)
    again = Training(start(), ROWS, DEV, DROPPING)
    again.restore(tmp_path)
    assert losses(seen) + losses(list(again.steps())) == expected


def test_checkpoints_are_whole_and_only_the_newest_is_kept(start: Callable[..., Model], tmp_path: Path) -> None:
    training = Training(start(), ROWS, DEV, PLAIN)
    assert training.restore(tmp_path / "none") == 0
    for _ in training.steps():
        training.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000010"]
    (tmp_path / ".writing-1").mkdir()  # what a killed process leaves
    assert Training(start(), ROWS, DEV, PLAIN).restore(tmp_path) == 10


def test_foreign_and_damaged_checkpoints_are_refused(start: Callable[..., Model], tmp_path: Path) -> None:
    training = Training(start(), ROWS, DEV, PLAIN)
    next(training.steps())
    saved = training.save(tmp_path / "good")
    with pytest.raises(IntegrityError, match="belongs to other data or options"):
        Training(start(), ROWS[:30], DEV, PLAIN).restore(tmp_path / "good")
    with pytest.raises(IntegrityError, match="belongs to other data or options"):
        Training(start(), ROWS, DEV, dataclasses.replace(PLAIN, seed=4)).restore(tmp_path / "good")
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        folder = tmp_path / name
        shutil.copytree(saved, folder / saved.name)
        (folder / saved.name / name).write_bytes((saved / name).read_bytes()[:-9])
        with pytest.raises(IntegrityError, match="cannot be read"):
            Training(start(), ROWS, DEV, PLAIN).restore(folder)


# the loss


def test_class_weights_scale_every_examples_loss(start: Callable[..., Model]) -> None:
    rows = sorted(ROWS, key=lambda row: row.target)[:24]  # mostly of the first label
    options = dataclasses.replace(PLAIN, class_weights="balanced", batch_size=24, epochs=1.0)
    model = start(rows=rows)
    logits, targets = torch.from_numpy(model.logits(rows)), model.task.targets(rows)
    counts = np.bincount(targets)
    scale = torch.from_numpy(1 / counts[targets])
    each = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
    first = losses(trained(model, options, rows, [])[1])[0]
    assert first == pytest.approx(float((each * scale).sum() / scale.sum()), rel=1e-5)
    assert first != pytest.approx(float(each.mean()), rel=1e-3)


def test_label_smoothing_is_that_of_torch(start: Callable[..., Model]) -> None:
    model = start()
    logits, targets = torch.from_numpy(model.logits(ROWS)), torch.from_numpy(model.task.targets(ROWS))
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.2)
    found = losses(trained(model, dataclasses.replace(PLAIN, label_smoothing=0.2, batch_size=40, epochs=1.0), dev=[])[1])
    assert found == pytest.approx([float(expected)], rel=1e-5)


def test_r_drop_adds_the_divergence_of_two_passes(start: Callable[..., Model]) -> None:
    model = start()
    model.network.train()
    model.network.dropout.p = 0.5
    batch = {
        name: torch.from_numpy(value) for name, value in model.encoder.pad(model.encoder.encode([row.text for row in ROWS[:6]])).items()
    }
    targets = torch.from_numpy(model.task.targets(ROWS[:6]))
    torch.manual_seed(5)
    found = task_objective(model.task, dataclasses.replace(PLAIN, r_drop=2.0))(model.network, batch, targets, np.arange(len(targets)))
    torch.manual_seed(5)
    one, other = model.network(**{name: torch.cat([value, value]) for name, value in batch.items()}).chunk(2)
    assert not torch.equal(one, other)
    plain = (model.task.losses(one, targets, 0.0) + model.task.losses(other, targets, 0.0)) / 2
    torch.testing.assert_close(found, plain + 2.0 * model.task.divergences(one, other))


def test_an_objective_of_ones_own_takes_the_place_of_the_tasks(start: Callable[..., Model]) -> None:
    seen: list[int] = []

    def objective(network: Any, batch: dict[str, torch.Tensor], targets: torch.Tensor, places: np.ndarray) -> torch.Tensor:
        assert targets.tolist() == training.targets[places].tolist()
        seen.append(len(targets))
        return network(**batch).pow(2).sum(-1)

    training = Training(start(), ROWS, [], dataclasses.replace(PLAIN, epochs=6.0), objective)
    found = losses(list(training.steps()))
    assert sum(seen) == 6 * len(ROWS)
    assert found[-1] < found[0] / 2


def test_clipping_bounds_the_step(start: Callable[..., Model]) -> None:
    ends = {}
    for clip in (0.0, 0.01):
        model = start()
        before = weights(model)
        options = dataclasses.replace(PLAIN, clip=clip, optimizer="sgd", rate=1.0, weight_decay=0.0, epochs=0.2, warmup=0.0)
        (fact,) = trained(model, options, dev=[])[1]
        moved = math.sqrt(sum(float(((item - before[name]) ** 2).sum()) for name, item in weights(model).items()))
        ends[clip] = (fact.gradient_norm, moved)
    assert ends[0.0][0] == pytest.approx(ends[0.01][0])  # what is told is the norm before
    assert ends[0.0][1] == pytest.approx(ends[0.0][0], rel=1e-4)
    assert ends[0.01][1] == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(start: Callable[..., Model]) -> None:
    options = dataclasses.replace(PLAIN, optimizer="sgd", rate=1e30, clip=0.0, warmup=0.0)
    with pytest.raises(InputError, match=r"The loss became (nan|inf) at step \d+. Lower the rate"):
        trained(start(), options)


# when it stops, and what it says then


def test_patience_stops_a_run_that_gets_no_better(start: Callable[..., Model]) -> None:
    options = dataclasses.replace(PLAIN, epochs=30.0, patience=2, rate=1e-9, evaluate_every=1)
    training, facts = trained(start(), options)
    checks = [fact.best for fact in facts if isinstance(fact, Evaluation)]
    assert checks == [True, False, False]
    assert training.step == 3 < training.total


def test_the_plateau_schedule_halves_the_rate_where_nothing_improves(start: Callable[..., Model]) -> None:
    options = dataclasses.replace(PLAIN, schedule="plateau", rate=1e-9, evaluate_every=1, warmup=0.0)
    rates = [fact.rate / 1e-9 for fact in trained(start(), options)[1] if isinstance(fact, Step)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625])


def test_a_run_that_did_not_learn_says_so(start: Callable[..., Model]) -> None:
    training, _ = trained(start(method="head"), dataclasses.replace(PLAIN, rate=1e-9))
    (alarm,) = training.alarms()
    assert "did not learn: dev accuracy" in alarm
    assert "1e-09" in alarm
    assert "more epochs (it was 2)" in alarm
    good, _ = trained(start(), dataclasses.replace(PLAIN, epochs=12.0, rate=4e-3))
    assert good.alarms() == []


@pytest.mark.parametrize(("task", "metric"), [("regress", "mse"), ("regress", None), ("multilabel", None), ("classify", "loss")])
def test_the_alarm_compares_with_the_best_constant_answer_by_any_metric(task: str, metric: str | None, start: Callable[..., Model]) -> None:
    rows = tiny_models.make_rows(60, task)
    training, _ = trained(start(task, "head", rows), dataclasses.replace(PLAIN, rate=1e-9, metric=metric), rows, rows)
    learned, _ = trained(start(task, rows=rows), dataclasses.replace(PLAIN, rate=5e-3, epochs=12.0, metric=metric), rows, rows)
    assert learned.alarms() == []
    if metric:
        assert len(training.alarms()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "acuracy"}, r"Unknown metric 'acuracy'.*Did you mean 'accuracy'\?"),
        ({"optimizer": "adamv"}, r"Unknown optimizer 'adamv'"),
        ({"optimizer": "sgd:momentum=-1"}, r"The optimizer 'sgd:momentum=-1' is not possible: Invalid momentum value"),
        ({"device": "cuda"}, r"device is cuda, but torch sees no CUDA device here"),
        ({"device": "mps"}, r"device is mps, but torch sees no Apple GPU here"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_trained(
    change: dict[str, Any], message: str, start: Callable[..., Model]
) -> None:
    if change.get("device") and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(InputError, match=message):
        Training(start(), ROWS, DEV, dataclasses.replace(PLAIN, **change))


def test_no_rows_are_no_training(start: Callable[..., Model]) -> None:
    with pytest.raises(InputError, match="There are no training examples"):
        Training(start(), [], DEV, PLAIN)


def test_any_metric_can_choose(start: Callable[..., Model]) -> None:
    for metric in ("macro_f1", "loss", "mcc"):
        facts = trained(start(), dataclasses.replace(PLAIN, metric=metric))[1]
        assert {fact.metric for fact in facts if isinstance(fact, Evaluation)} == {metric}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bf16_trains_about_as_fp32_does(method: str, start: Callable[..., Model]) -> None:
    ends = {
        precision: losses(trained(start(method=method), dataclasses.replace(PLAIN, precision=precision))[1])
        for precision in ("fp32", "bf16")
    }
    np.testing.assert_allclose(ends["bf16"], ends["fp32"], rtol=0.05)
    model = start(method=method)
    trained(model, dataclasses.replace(PLAIN, precision="bf16"))
    assert {item.dtype for item in model.network.parameters()} == {torch.float32}


def test_the_precision_is_probed_and_agrees(start: Callable[..., Model]) -> None:
    assert Training(start(), ROWS, DEV, dataclasses.replace(PLAIN, precision="auto")).precision in ("fp32", "bf16")


# which rows go together


def plans(count: int = 1000, size: int = 16) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    lengths = np.random.default_rng(0).integers(3, 200, count)
    for epoch in range(2):
        yield lengths, plan_epoch(lengths, size, 0, epoch)


def test_every_row_is_seen_once_an_epoch_with_rows_of_its_length() -> None:
    for lengths, plan in plans():
        assert sorted(np.concatenate(plan).tolist()) == list(range(1000))
        assert sorted({len(rows) for rows in plan}) == [8, 16]
        assert np.mean([np.ptp(lengths[rows]) for rows in plan]) < 12
        firsts = [int(lengths[rows].mean()) for rows in plan]
        assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.3  # the order of steps is random
    (_, one), (_, two) = plans()
    assert not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(one, next(plans())[1], strict=True))


def test_pieces_hold_the_budget_and_long_rows_go_alone() -> None:
    lengths = np.array([5, 300, 7, 7, 90, 4])
    pieces = cut_step(np.arange(6), lengths, 100)
    assert sorted(np.concatenate(pieces).tolist()) == list(range(6))
    assert all(len(piece) == 1 or len(piece) * lengths[piece].max() <= 100 for piece in pieces)
    assert [piece.tolist() for piece in pieces] == [[5, 0, 2, 3], [4], [1]]


def test_short_data_get_more_epochs() -> None:
    assert [default_epochs(steps) for steps in (1, 60, 200, 10_000)] == [30.0, 10.0, 3.0, 3.0]


def test_whether_bf16_is_faster_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = training.bf16_is_faster(torch.device("cpu"), 130)
    monkeypatch.setattr(training, "time", None)  # whatever measures again has no clock
    assert training.bf16_is_faster(torch.device("cpu"), 130) == first
