"""A method is chosen by what short trials say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from lightune import caching, choosing, fitting
from lightune.choosing import Trial, candidates, decide
from lightune.errors import InputError
from lightune.recipes import TrainOptions, read_recipe
from lightune.sources import Source


def trial(method: str, value: float, half: float, parameters: int) -> Trial:
    return Trial(method, 0, value, value - half, value + half, parameters, 1.0)


def test_the_cheapest_within_the_interval_of_the_best_wins() -> None:
    tried = [trial("full", 0.90, 0.02, 1000), trial("lora", 0.89, 0.02, 100), trial("head", 0.70, 0.02, 10)]
    best, reason = decide(tried, "accuracy")
    assert best.method == "lora"
    assert "lies within the interval of the best (full, 0.900)" in reason
    assert decide([trial("full", 0.95, 0.01, 1000), *tried[1:]], "accuracy")[0].method == "full"
    assert decide(tried, "loss")[0].method == "head"


def test_what_is_tried_follows_from_the_rows() -> None:
    train = TrainOptions()
    assert candidates(100_000, 5, train) == [("full", 0), ("lora", 0), ("bitfit", 0)]
    assert candidates(80, 10, train)[0][1] > 0
    assert candidates(80, 10, train)[-1] == ("head", 0)
    assert candidates(80, 0, train)[0] == ("full", 0)  # numbers have no labels to learn apart


def write_rows(path: Path, count: int, seed: int) -> str:
    rows = tiny_models.make_rows(count, seed=seed)
    path.write_text("".join(json.dumps({"text": row.text, "label": row.target}) + "\n" for row in rows))
    return str(path)


def test_a_run_tells_its_choice_and_repeats_without_trials(
    tiny_source: Callable[[str], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(choosing, "keep_frozen", lambda *given, **named: kept.append(caching.keep_frozen(*given, **named)))
    data = write_rows(tmp_path / "train.jsonl", 150, 0)
    how = {"model": str(tiny_source("bert").folder), "epochs": 2.0, "to": ("none",), "max_length": 24, "dev_share": 0.2}
    run = fitting.fit(data, tmp_path / "run", method="auto:seconds=60", **how)
    choice = json.loads((run.folder / "choice.json").read_text())
    assert run.record["choice"] == choice
    assert {item["method"] for item in choice["trials"]} == {"full", "lora", "bitfit", "head"}
    assert kept == [0, 0, 0, 1]  # the head alone is tried on what the base said once
    recipe = read_recipe(run.folder / "recipe.toml")
    assert recipe["method"] in choice["reason"]
    assert recipe["method"] == run.record["changes"][0]["name"]


def test_trials_need_development_rows(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", 60, 0)
    with pytest.raises(InputError, match="tells methods apart on development rows, of which there are 6"):
        fitting.fit(data, tmp_path / "run", model=str(tiny_source("bert").folder), method="auto", to=("none",))
    assert not (tmp_path / "run").exists()
