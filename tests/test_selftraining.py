"""A model teaches another what it is sure of, and the better one is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from lightune import selftraining
from lightune.errors import InputError
from lightune.preparation import prepare
from lightune.recipes import TrainOptions, resolve
from lightune.selftraining import answer, choose_confidence, teach, weigh
from lightune.sources import Source
from lightune.training import Training

FEW = tiny_models.make_rows(24)
DEV = tiny_models.make_rows(60, seed=1)
MORE = [dataclasses.replace(row, target=None) for row in tiny_models.make_rows(300, seed=2)]
OPTIONS = TrainOptions(epochs=12, batch_size=16, rate=3e-3, device="cpu", precision="fp32", threads=1)


def learned(source: Source) -> tuple[Any, Any]:
    fresh = tiny_models.start(source, FEW)
    teacher = fresh.copy()
    for _ in Training(teacher, FEW, DEV, OPTIONS).steps():
        pass
    return teacher, fresh


def test_a_round_is_kept_only_where_it_helps(tiny_source: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, fresh = learned(tiny_source("bert"))
    before = {name: item.clone() for name, item in fresh.network.named_parameters()}
    taught = teach(teacher, fresh, FEW, DEV, MORE, OPTIONS, rounds=2)
    assert taught.rounds
    first = taught.rounds[0]
    assert first.before == selftraining.score(teacher, DEV)
    assert first.kept == (first.after > first.before)
    assert selftraining.score(taught.model, DEV) == max(first.before, *(entry.after for entry in taught.rounds))
    assert all(item.equal(before[name]) for name, item in fresh.network.named_parameters())
    monkeypatch.setattr(selftraining, "score", lambda model, dev: 1.0 if model is teacher else 0.0)
    worse = teach(teacher, fresh, FEW, DEV, MORE, OPTIONS, rounds=2)
    assert worse.model is teacher
    assert worse.training is None
    assert [entry.kept for entry in worse.rounds] == [False]


def test_only_sure_answers_are_taken_and_count_as_much_as_they_are_sure(tiny_source: Callable[[str], Source]) -> None:
    teacher, _ = learned(tiny_source("bert"))
    confidence = choose_confidence(teacher, DEV)
    assert confidence is not None
    chances = teacher.predict_proba(DEV)
    right = chances.argmax(1) == teacher.task.targets(DEV)
    sure = chances.max(1) >= confidence
    assert sure.sum() >= selftraining.LEAST_SURE
    assert right[sure].mean() >= (1 + right.mean()) / 2
    rows, weights = answer(teacher, MORE, confidence)
    assert 0 < len(rows) < len(MORE)
    assert {row.text for row in rows} <= {row.text for row in MORE}
    assert [row.target for row in rows] == [entry["label"] for entry in teacher.predict([row.text for row in rows])]
    weighed = weigh(teacher, FEW, rows, weights, OPTIONS)
    np.testing.assert_array_equal(weighed.weights, [*[1.0] * len(FEW), *weights])


def test_a_model_that_is_never_surer_where_it_is_right_teaches_nothing(tiny_source: Callable[[str], Source]) -> None:
    fresh = tiny_models.start(tiny_source("bert"), FEW)
    same = [dataclasses.replace(row, text="a film") for row in DEV]
    assert choose_confidence(fresh, same) is None
    assert teach(fresh, fresh, FEW, same, MORE, OPTIONS).rounds == ()


def test_what_it_cannot_do_is_refused(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20, "multilabel"), "multilabel")
    with pytest.raises(InputError, match=r"needs one label a row \(task classify or pair\), but the task is multilabel"):
        teach(model, model, FEW, DEV, MORE, OPTIONS)
    plain = tiny_models.start(tiny_source("bert"), FEW)
    with pytest.raises(InputError, match="of which there are 5; it needs 20"):
        teach(plain, plain, FEW, DEV[:5], MORE, OPTIONS)
    with pytest.raises(InputError, match="needs rows without labels, of which there are none"):
        teach(plain, plain, FEW, DEV, [], OPTIONS)


def test_unlabelled_rows_come_from_the_data_and_from_a_file(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    rows = [{"text": row.text, "label": row.target} for row in tiny_models.make_rows(60)]
    rows += [{"text": row.text, "label": None} for row in MORE[:7]]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": row.text}) + "\n" for row in MORE[7:12]))
    recipe = {"model": str(tiny_source("bert").folder), "max_length": 24, "unlabelled": str(tmp_path / "more.jsonl")}
    found = prepare(resolve({}, recipe), rows).unlabelled
    assert [row.text for row in found] == [row.text for row in MORE[:12]]
    assert {row.target for row in found} == {None}
