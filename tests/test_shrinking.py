"""From a finished run and a budget to a proven file: named steps, a search, what it leaves, how it stops and goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_models

from lightune import fitting, models, shrinking
from lightune.errors import CheckFailed, InputError
from lightune.grids import fit_grid
from lightune.preparation import Interrupted
from lightune.recipes import parse_seconds
from lightune.runtime import load as load_artifact
from lightune.training import Step

if TYPE_CHECKING:
    from lightune.runs import Run
    from lightune.sources import Source

FAST: dict[str, Any] = {"augment": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tiny_source: Callable[[str], Source], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny model that has learned its rows, with development and test rows in files."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 300, 0), ("dev", 60, 1), ("test", 60, 2)):
        rows = tiny_models.make_rows(count, seed=seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": row.text, "label": row.target}) + "\n" for row in rows))
    return fitting.fit(
        str(folder / "train.jsonl"), folder / "run", dev=str(folder / "dev.jsonl"), test=str(folder / "test.jsonl"),
        model=str(tiny_source("bert").folder), epochs=8.0, rate=3e-3, to=("none",), max_length=24,
    )  # fmt: skip


@pytest.fixture
def run(finished: Run, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run."""
    monkeypatch.setenv("LIGHTUNE_CACHE", str(cache))
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def test_named_steps_give_a_smaller_proven_file(run: Path) -> None:
    found = shrinking.shrink(run, steps=["depth=1", "ffn=1/2"], epochs=4.0, **FAST)
    (entry,) = found.record["artifacts"]
    student = models.load(run / "candidates" / "0" / "model")
    assert student.network.backbone.config.num_hidden_layers == 1
    assert entry["path"] == "artifacts/small"
    assert entry["bytes"] < sum(path.stat().st_size for path in (run / "model").iterdir())
    rows = tiny_models.make_rows(30, seed=9)
    artifact = load_artifact(run / "artifacts" / "small")
    agreed = (artifact.logits(rows).argmax(1) == student.logits(rows).argmax(1)).mean()
    assert agreed >= 0.95
    assert found.record["budget"]["kept"]["value"] > 0.8
    assert found.record["met"] is None  # nothing was asked


def test_a_student_that_suffers_from_few_bits_goes_on_with_rounded_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "ALLOWED_LOSS", -1.0)  # whatever is lost is too much
    shrinking.shrink(run, steps=["depth=1"], epochs=1.0, **FAST)
    state = json.loads((run / "search.json").read_text())
    assert [item["follows"] for item in state["candidates"]] == [None, 0]
    assert state["done"] == ["0/winner", "1/rounded"]
    plain, rounded = (models.load(run / "candidates" / name / "model").network for name in "01")
    name = "backbone.encoder.layer.0.output.dense.weight"
    assert not np.array_equal(plain.get_parameter(name).detach(), rounded.get_parameter(name).detach())
    weight = rounded.get_parameter(name).detach().numpy()
    grid = fit_grid(weight, 8)
    np.testing.assert_allclose(grid.restore(grid.round(weight)), weight, atol=1e-6)
    shrinking.shrink(run, steps=["depth=1"], epochs=1.0, **FAST)  # everything is done: nothing is trained again
    assert json.loads((run / "search.json").read_text())["done"] == state["done"]


@pytest.fixture(scope="module")
def searched(finished: Run, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run after a search whose size limit can be held and whose score need not be."""
    folder = Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("searched") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTUNE_CACHE", str(cache))
        shrinking.shrink(folder, max_mb=10.0, keep=0.3, time="25s", **FAST)
    return folder


def test_a_search_writes_a_front_whose_points_are_real_files(searched: Path) -> None:
    front, record = (json.loads((searched / name).read_text()) for name in ("front.json", "run.json"))
    assert record["met"] is True
    assert set(record["budget"]["held"]) == {"max_mb", "keep"}
    assert front["chosen"] in [point["id"] for point in front["points"]]
    assert any(point["on_front"] for point in front["points"])
    for point in front["points"]:
        artifact = searched / point["artifact"]
        assert sum(path.stat().st_size for path in artifact.iterdir()) == point["bytes"]
        assert len(load_artifact(artifact).predict(["it was a good film"])) == 1
    assert (searched / "front.csv").read_text().count("\n") == len(front["points"]) + 1
    assert not (searched / "candidates" / "lessons").exists()


def test_any_point_can_be_taken(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    front = json.loads((run / "front.json").read_text())
    other = next(point for point in front["points"] if point["id"] != front["chosen"])
    found = shrinking.shrink(run, take=other["id"])
    assert found.record["budget"]["candidate"] == other["id"]
    assert found.record["artifacts"][-1]["sha256"] == other["sha256"]
    with pytest.raises(InputError, match="no point 99"):
        shrinking.shrink(run, take=99)


def test_a_search_with_other_settings_is_refused_until_it_is_overwritten(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    with pytest.raises(InputError, match="other settings"):
        shrinking.shrink(run, max_mb=1.0)
    shrinking.forget(shrinking.open_run(run))
    assert not (run / "front.json").exists()


def test_an_impossible_budget_ends_with_the_nearest_model_and_what_to_relax(run: Path) -> None:
    with pytest.raises(CheckFailed, match=r"max-mb 0.001.*nearest model is saved.*--max-mb"):
        shrinking.shrink(run, max_mb=0.001, keep=0.999, time="12s", **FAST)
    record = json.loads((run / "run.json").read_text())
    assert record["met"] is False
    assert len(load_artifact(run / "artifacts" / "small").predict(["a bad film"])) == 1


def test_a_stopped_search_goes_on_to_the_same_student(run: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    options: dict[str, Any] = {"steps": ["depth=1"], "epochs": 4.0, **FAST}
    shrinking.shrink(whole, **options)

    def stop(fact: Any) -> None:
        if isinstance(fact, Step) and fact.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrinking.shrink(run, watch=stop, **options)
    shrinking.shrink(run, **options)
    rows = tiny_models.make_rows(20, seed=4)
    one, other = (models.load(folder / "candidates" / "0" / "model").logits(rows) for folder in (whole, run))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_stop_that_is_asked_for_is_told_with_how_to_go_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[shrinking.Search] = []
    made = shrinking.Search.__init__

    def remember(self: shrinking.Search, *given: Any) -> None:
        made(self, *given)
        searches.append(self)

    monkeypatch.setattr(shrinking.Search, "__init__", remember)

    def stop(fact: Any) -> None:
        if isinstance(fact, Step) and fact.step == 5:
            searches[0].request_stop()

    with pytest.raises(Interrupted, match="same command"):
        shrinking.shrink(run, watch=stop, steps=["depth=1"], epochs=4.0, **FAST)
    assert any((run / "candidates" / "0" / "checkpoints").glob("step-*"))
    shrinking.shrink(run, steps=["depth=1"], epochs=4.0, **FAST)
    assert (run / "artifacts" / "small").is_dir()


def test_fit_with_a_limit_searches_in_the_same_run(
    tiny_source: Callable[[str], Source], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTUNE_CACHE", str(cache))
    rows = [{"text": row.text, "label": row.target} for row in tiny_models.make_rows(200)]
    base = str(tiny_source("bert").folder)
    found = fitting.fit(rows, tmp_path / "run", model=base, epochs=4.0, rate=3e-3, to=("none",), max_length=24, max_mb=10.0, time="15s")
    assert found.record["met"] is True
    assert (found.folder / "front.json").exists()


def test_a_step_that_does_not_exist_is_refused_before_anything_is_read(run: Path) -> None:
    with pytest.raises(InputError, match="depht"):
        shrinking.shrink(run, steps=["depht=3"])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), ("30", 30), ("2 m", 120)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "3 days", "1.2.3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="20min"):
        parse_seconds(text)
