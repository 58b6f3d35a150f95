from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional

import lightune
from lightune import models
from lightune.contrast import compare, draw_pairs, fit_head, read_vectors, suggest_partners, warm_up
from lightune.errors import InputError
from lightune.models import Model
from lightune.networks import tensors
from lightune.recipes import TrainOptions
from lightune.sources import Source
from lightune.training import Rows, Step

ROWS, DEV = tiny_models.make_rows(24), tiny_models.make_rows(60, seed=1)
OPTIONS = TrainOptions(contrast=4, batch_size=8, precision="fp32", device="cpu", threads=1, rate=3e-3)


@pytest.fixture
def start(tiny_source: Callable[[str], Source]) -> Callable[..., Model]:
    return lambda method="full", task="classify", rows=ROWS: tiny_models.start(tiny_source("bert"), rows, task, method)


def test_every_row_gets_partners_of_both_kinds() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    pairs = draw_pairs(labels, 5, seed=3)
    assert len(pairs) == 2 * 5 * len(labels)
    np.testing.assert_array_equal(pairs.same, labels[pairs.left] == labels[pairs.right])
    for row in range(len(labels)):
        alike = pairs.right[(pairs.left == row) & (pairs.same == 1)]
        other = pairs.right[(pairs.left == row) & (pairs.same == 0)]
        assert len(alike) == len(other) == 5
        assert set(other) == set(np.flatnonzero(labels != labels[row])) or len(set(other)) == 5  # none again before all have come
        assert row not in alike or row == 5  # which is alone with its label
    again, another = draw_pairs(labels, 5, seed=3), draw_pairs(labels, 5, seed=4)
    np.testing.assert_array_equal(pairs.right, again.right)
    assert (pairs.right != another.right).any()
    with pytest.raises(InputError, match="same label"):
        draw_pairs(np.zeros(4, dtype=np.int64), 2)


@pytest.mark.parametrize(("labels", "partners"), [(2, 10), (6, 10), (15, 4), (77, 2)])
def test_many_labels_need_few_partners(labels: int, partners: int) -> None:
    assert suggest_partners(labels) == partners


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [5]])
def test_the_loss_is_the_squared_distance_over_all_pairs_of_a_batch(places: list[int], start: Callable[..., Model]) -> None:
    model = start()
    rows = Rows.of(model, ROWS)
    pairs = draw_pairs(rows.targets, 2)
    found = compare(model.encoder, rows.encoded, rows.targets, pairs)(model.network.eval(), {}, torch.zeros(1), np.array(places))
    texts = sorted({*pairs.left[places], *pairs.right[places]})
    distances: dict[bool, list[float]] = {True: [], False: []}
    vectors = torch.from_numpy(read_vectors(model, rows.encoded))
    for one in texts:
        for other in texts:
            if one != other:
                same = bool(rows.targets[one] == rows.targets[other])
                alike = float(functional.cosine_similarity(vectors[one], vectors[other], dim=0))
                distances[same].append((alike - same) ** 2)
    expected = sum(float(np.mean(values)) for values in distances.values() if values) / 2
    assert found.shape == (len(places),)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora:rank=2", "bitfit"])
def test_the_warm_up_brings_labels_apart(method: str, start: Callable[..., Model]) -> None:
    model = start(method)
    rows = Rows.of(model, DEV)

    def gap() -> float:
        unit = functional.normalize(torch.from_numpy(read_vectors(model, rows.encoded)), dim=1)
        alike, same = (unit @ unit.T).numpy(), rows.targets[:, None] == rows.targets[None]
        return float(alike[same].mean() - alike[~same].mean())

    before = gap()
    training = warm_up(model, ROWS, dataclasses.replace(OPTIONS, epochs=4.0, rate=1e-2))
    losses = [fact.loss for fact in training.steps() if isinstance(fact, Step)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert gap() > before + 0.05


@pytest.mark.parametrize("task", ["classify", "pair"])
def test_the_head_answers_as_the_logistic_regression_does(task: str, start: Callable[..., Model]) -> None:
    from sklearn.linear_model import LogisticRegression

    rows = tiny_models.make_rows(40, task)  # pair has two labels
    model = start(task=task, rows=rows)
    fit_head(model, rows, [])
    encoded = Rows.of(model, rows)
    vectors = read_vectors(model, encoded.encoded)
    vectors = vectors / np.linalg.norm(vectors, axis=1).mean()
    expected = LogisticRegression(C=len(model.answers.labels) / 2, max_iter=1000).fit(vectors, encoded.targets).predict_proba(vectors)
    np.testing.assert_allclose(model.predict_proba(rows), expected, atol=1e-4)


def test_a_warm_up_goes_on_after_a_stop(start: Callable[..., Model], tmp_path: Path) -> None:
    whole = [fact.loss for fact in warm_up(start(), ROWS, OPTIONS).steps()]
    first = warm_up(start(), ROWS, OPTIONS)
    for fact in first.steps():
        if fact.step == 7:
            first.save(tmp_path)
            break
    second = warm_up(start(), ROWS, OPTIONS)
    assert second.restore(tmp_path) == 7
    assert [fact.loss for fact in second.steps()] == whole[7:]


def test_what_contrast_cannot_do_is_refused(start: Callable[..., Model]) -> None:
    with pytest.raises(InputError, match="the method leaves all of it frozen"):
        warm_up(start("head"), ROWS, OPTIONS)
    with pytest.raises(InputError, match="but the task is regress"):
        warm_up(start(task="regress", rows=tiny_models.make_rows(20, "regress")), ROWS, OPTIONS)
    with pytest.raises(InputError, match="patience, r_drop cannot go with contrast"):
        warm_up(start(), ROWS, dataclasses.replace(OPTIONS, patience=2, r_drop=1.0))


def test_fit_warms_up_and_fits_the_head(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    data = [{"text": row.text, "label": row.target} for row in tiny_models.make_rows(120)]
    options: dict[str, Any] = {
        "model": str(tiny_source("bert").folder),
        "to": ("none",),
        "contrast": 6,
        "device": "cpu",
        "precision": "fp32",
    }
    with pytest.raises(InputError, match="leaves all of it frozen"):
        lightune.fit(data, tmp_path / "run", method="head", **options)
    assert not (tmp_path / "run").exists()
    run = lightune.fit(data, tmp_path / "run", method="lora", rate=1e-2, epochs=2.0, threads=1, **options)
    assert run.record["scores"]["accuracy"]["value"] > 0.8
    model = models.load(run.model)
    batch = tensors(model.encoder.pad(model.encoder.encode(["a good film"])))
    assert model.network(**batch).argmax() == model.answers.labels.index("happy")
