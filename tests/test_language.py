"""Models that generate: what is learned, what judges it, and the whole way through fit on a tiny decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_conversations import QUICK, write_base, write_echoes
from torch.nn import functional

import lightune
from lightune import language, models, predictors
from lightune.cli import main
from lightune.errors import InputError
from lightune.recipes import resolve
from lightune.runtime.generation import GenerationOptions, Message


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echoes(tmp_path_factory.mktemp("data") / "echo.jsonl")


def prepared(data: Path, base: Path, **options: Any) -> language.Supervision:
    recipe = resolve({}, {**QUICK, "train": str(data), "model": str(base), **options})
    return language.prepare(recipe, str(data))


def test_the_loss_is_that_of_the_answers_tokens_alone(data: Path, base: Path) -> None:
    found = prepared(data, base, method="full")
    rows = found.rows["train"][:6]
    network = found.model.network.eval()
    ids = torch.from_numpy(found.model.encoder.pad(language.encode_rows(rows).encoded)["input_ids"])
    each = language.answer_objective(rows)(network, {"input_ids": ids}, torch.zeros(6), np.arange(6))
    logits = network(ids)
    for place, row in enumerate(rows):
        targets = torch.from_numpy(row.ids[1:].astype(np.int64))
        losses = functional.cross_entropy(logits[place, : len(row.ids) - 1], targets, reduction="none")
        assert torch.allclose(each[place], losses[torch.from_numpy(row.trained[1:])].mean(), atol=1e-5)
        assert row.trained.any()
        assert not row.trained.all()


def test_a_step_is_the_same_however_it_is_cut(data: Path, base: Path) -> None:
    gradients = []
    for budget in (10_000, 60):
        found = prepared(data, base, method="full", batch_tokens=budget)
        training = language.open_training(found, resolve({}, {**QUICK, "batch_tokens": budget, "head_dropout": 0.0}).train)
        training._gradient(np.arange(8))
        gradients.append(torch.cat([item.grad.to_dense().flatten() for item in found.model.trainable().values() if item.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-6)


def test_no_development_rows_are_needed(data: Path, base: Path) -> None:
    training = language.open_training(prepared(data, base, method="lora", dev_share=0.0), resolve({}, {**QUICK, "epochs": 0.25}).train)
    assert {fact.kind for fact in training.steps()} == {"step"}
    assert training.alarms() == []


def test_gradient_checkpointing_changes_no_loss(data: Path, base: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        found = prepared(data, base, method="lora", gradient_checkpointing=checkpointing)
        recipe = resolve({}, {**QUICK, "epochs": 0.5, "gradient_checkpointing": checkpointing})
        losses.append([fact.loss for fact in language.open_training(found, recipe.train).steps() if fact.kind == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "label-smoothing has no meaning for generate"),
        ({"max_mb": 4.0, "task": "translate"}, "A budget"),
        ({"metrics": ("pass@1",)}, "pass@1 needs data of its own"),
        ({"metrics": ("blue",)}, "Did you mean 'bleu'"),
        ({"method": "head"}, "trains nothing"),
        ({"max_length": 6}, "longer than max-length"),
        ({"template": "/nowhere.jinja"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_training(data: Path, base: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(data, base, **options)


def test_an_encoder_cannot_be_taught_to_generate(data: Path, tiny_source: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be (loaded|taught)"):
        prepared(data, tiny_source("bert").folder)


@pytest.fixture(scope="module")
def run(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lightune.fit(str(data), tmp_path_factory.mktemp("runs") / "echo", model=str(base), method="full", to=("hf",), **QUICK)


def test_a_run_learns_and_its_export_writes_as_the_model_does(run: Any) -> None:
    record = run.record
    assert record["task"] == "generate"
    assert record["learned"]
    assert record["scores"]["perplexity"]["value"] < np.exp(record["loss_before"])
    assert record["scores"]["exact_match"]["value"] > 0.5
    (entry,) = record["artifacts"]
    assert entry["parity"]["agree"] == 1.0
    assert abs(entry["parity"]["change"]) < 0.005
    assert entry["tokens_per_second"]["generation"] > 0
    assert (run.folder / "report.html").is_file()
    assert (run.folder / "card.md").is_file()
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(samples) == 12
    assert set(samples[0]["rows"][0]) == {"question", "answer", "reference"}


def test_a_saved_model_answers_as_before(run: Any) -> None:
    model = models.load(run.model)
    written = predictors.open_generator(run.folder / "artifacts" / "hf")
    assert written is not None
    prompts = [(Message("user", "7 lower"),), (Message("user", "8 film"),)]
    options = GenerationOptions(max_tokens=8)
    ours = language.generator_of(model).generate(prompts, options)
    assert [one.text for one in ours] == [one.text for one in written.generator.generate(prompts, options)]


def test_lora_saves_little_and_loads_on_its_base(data: Path, base: Path, tmp_path: Path) -> None:
    run = lightune.fit(str(data), tmp_path / "lora", model=str(base), method="lora", to=("none",), **(QUICK | {"epochs": 2.0}))
    model = models.load(run.model)
    fresh = language.generator_of(model)
    before = [one.text for one in fresh.generate(["7 lower"], GenerationOptions(max_tokens=8))]
    merged = language.generator_of(model.merge()).generate(["7 lower"], GenerationOptions(max_tokens=8))
    assert [one.text for one in merged] == before
    assert run.record["weights_bytes"] < sum(item.numel() * 4 for item in model.network.parameters()) / 2


def test_the_command_line_predicts_with_it(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run.folder), "7 lower", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", "prompt_tokens", "tokens", "finish"}


def test_resumed_equals_uninterrupted(data: Path, base: Path) -> None:
    recipe = resolve({}, {**QUICK, "epochs": 2.0})
    whole = [fact.loss for fact in language.open_training(prepared(data, base, method="lora"), recipe.train).steps() if fact.kind == "step"]
    first = language.open_training(prepared(data, base, method="lora"), recipe.train)
    steps, losses = first.steps(), []
    while first.step < 7:
        fact = next(steps)
        losses += [fact.loss] if fact.kind == "step" else []
    folder = data.parent / "checkpoints"
    first.save(folder)
    again = language.open_training(prepared(data, base, method="lora"), recipe.train)
    assert again.restore(folder) == 7
    losses += [fact.loss for fact in again.steps() if fact.kind == "step"]
    assert losses == pytest.approx(whole, abs=1e-6)
