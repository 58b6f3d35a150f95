"""Rows in one sequence: each has the loss that it has alone, in every family; what packing would spare; what cannot be packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_conversations import QUICK, write_base, write_echoes
from tiny_generators import make_language

from lightune import fitting, language, models, sources
from lightune.errors import InputError
from lightune.exports import find_generative
from lightune.recipes import resolve
from lightune.runtime.answers import Answers
from lightune.supervision import Supervised, measure_room
from lightune.tasks.generate import Generate

LENGTHS = (5, 23, 3, 11, 9, 17, 2)
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "gpt2": {}, "mistral": {"sliding_window": 4}}


def rows_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Supervised]:
    draw = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths, 1):
        trained = draw.random(length) < 0.5
        trained[0], trained[-1] = False, True
        rows.append(Supervised(draw.integers(3, 300, length).astype(np.int32), trained, number))
    return rows


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    """A tiny decoder, loaded as `fit` does it."""
    folder = tmp_path_factory.mktemp("base") / request.param
    find_generative("hf").write(make_language(request.param, **FAMILIES[request.param]), folder)
    return models.start_language(sources.resolve_model(str(folder)), Generate(Answers("generate", ())), max_length=64)


def losses(model: models.Model, rows: list[Supervised], packed: bool) -> torch.Tensor:
    ids = torch.from_numpy(model.encoder.pad(language.encode_rows(rows).encoded)["input_ids"])
    objective = language.answer_objective(rows, packed)
    return objective(model.network, {"input_ids": ids}, torch.zeros(len(rows)), np.arange(len(rows)))


def test_packed_losses_and_gradients_are_those_of_each_row_alone(model: models.Model) -> None:
    rows = rows_of()
    network = model.network.eval().requires_grad_(True)
    found = []
    for packed in (False, True):
        network.zero_grad()
        each = losses(model, rows, packed)
        each.sum().backward()
        gradient = torch.cat([item.grad.to_dense().flatten() for item in network.parameters() if item.grad is not None])
        found.append((each.detach(), gradient))
    (alone, slopes), (together, others) = found
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(others, slopes, atol=1e-4 * float(slopes.abs().max()), rtol=1e-3)
    single = torch.stack([losses(model, [row], False)[0] for row in rows])
    torch.testing.assert_close(together, single.detach(), atol=1e-4, rtol=1e-4)
    assert language.packs(model, rows)


def test_rows_that_see_each_other_are_noticed(model: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read = model.network.read
    monkeypatch.setattr(model.network, "read", lambda ids, **options: read(ids))  # as if positions were not looked at
    assert not language.packs(model, rows_of())


def test_what_packing_spares_is_counted() -> None:
    lengths = np.array([10, 2, 3, 5, 10])
    room = measure_room(lengths, 5, 1000, 0)  # one piece: five rows of 10, or three sequences of 10
    assert (room.tokens, room.padded, room.packed) == (30, 50, 30)
    assert (room.wasted, room.spared) == (pytest.approx(0.4), pytest.approx(0.4))
    alone = measure_room(lengths, 5, 10, 0)  # so few tokens at once that rows of like length go together
    assert (alone.tokens, alone.padded) == (30, 31)
    assert measure_room(np.full(64, 7), 8, 1000, 0).spared == 0


def open_prepared(data: Path, base: Path, **options: Any) -> tuple[language.Supervision, list[str]]:
    told: list[str] = []
    recipe = resolve({}, {**QUICK, "train": str(data), "model": str(base), "method": "lora", **options})
    return language.prepare(recipe, str(data), lambda fact: told.append(fact.text)), told


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echoes(tmp_path_factory.mktemp("data") / "echo.jsonl")


def test_auto_leaves_rows_of_like_length_apart_and_says_why(data: Path, base: Path) -> None:
    found, told = open_prepared(data, base)
    assert not found.packed
    assert any(
        sentence.startswith("Rows are not packed: ") and f"from {language.PACKING_PAYS:.0%} on it pays" in sentence for sentence in told
    )
    assert not any("packed" in sentence for sentence in open_prepared(data, base, packing="off")[1])


def test_auto_packs_where_it_spares_much(data: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "PACKING_PAYS", 0.0)
    found, told = open_prepared(data, base)
    assert found.packed
    assert any(sentence.startswith("Rows are packed: ") for sentence in told)
    found, told = open_prepared(data, base, method="prompt")
    assert not found.packed
    assert any("they would see each other" in sentence for sentence in told)


def test_a_packed_run_takes_the_steps_of_one_that_is_not(data: Path, base: Path) -> None:
    taken = []
    for packing in ("off", "on"):
        found, _ = open_prepared(data, base, packing=packing)
        training = language.open_training(found, resolve({}, {**QUICK, "epochs": 1.0, "dropout": 0.0}).train)
        taken.append([fact.loss for fact in training.steps() if fact.kind == "step"])
    assert taken[0] == pytest.approx(taken[1], abs=1e-4)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_what_cannot_be_packed_is_refused(data: Path, base: Path, method: str) -> None:
    with pytest.raises(InputError, match=rf"with the method {method} cannot be packed"):
        open_prepared(data, base, method=method, packing="on")


def test_packing_belongs_to_models_that_generate(tmp_path: Path) -> None:
    rows = [{"text": f"a {number}", "label": "x" if number % 2 else "y"} for number in range(20)]
    with pytest.raises(InputError, match="packing"):
        fitting.fit(rows, tmp_path / "run", packing="on")
