"""From a finished run and a budget to a proven file: named steps, a search, what it leaves, how it stops and goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import time
import types
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_models

from lightune import fitting, journal, models, planning, probes, shrinking, students, training
from lightune.costs import CostTable, Probe, Shape
from lightune.errors import CheckFailed, InputError
from lightune.evaluation import evaluate
from lightune.grids import fit_grid
from lightune.preparation import Interrupted
from lightune.recipes import parse_seconds, read_recipe, resolve
from lightune.runs import open_run
from lightune.runtime import load as load_artifact
from lightune.training import Step
from lightune.vocabularies import Vocabulary

if TYPE_CHECKING:
    from lightune.runs import Run
    from lightune.sources import Source

FAST: dict[str, Any] = {"augment": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train, dev and test rows."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 300, 0), ("dev", 60, 1), ("test", 60, 2)):
        rows = tiny_models.make_rows(count, seed=seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": row.text, "label": row.target}) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def finished(tiny_source: Callable[[str], Source], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny model that has learned its rows."""
    return fit(tiny_source, data, tmp_path_factory.mktemp("finished") / "run")


def fit(tiny_source: Callable[[str], Source], data: Path, folder: Path, **options: Any) -> Run:
    return fitting.fit(
        str(data / "train.jsonl"), folder, dev=str(data / "dev.jsonl"), test=str(data / "test.jsonl"),
        model=str(tiny_source("bert").folder), epochs=8.0, rate=3e-3, to=("none",), max_length=24, threads=1, **options,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def priced(finished: Run) -> Iterator[None]:
    """A cost table of the tiny model by plain formulas, in place of one that is measured (see test_costs.py), which takes minutes."""
    base = Shape.of(models.load(finished.model))
    sizes = product((0, 1, 2), (1, 2, 4), (8, 24, 48), (40, 64), (8, 4))
    shapes = [
        dataclasses.replace(base, layers=layers, heads=heads, hidden=8 * heads, ffn=ffn, vocabulary=tokens, weights=8, tables=bits)
        for layers, heads, ffn, tokens, bits in sizes
    ]
    seen = [
        Probe(
            shape,
            round(4000 + shape.layers * (2000 + shape.block_weights) + shape.vocabulary * shape.hidden * shape.tables / 8),
            *[0.05 + shape.layers * (0.02 + shape.block_weights * 1e-6)] * 2,
            resident=60_000_000 + shape.hidden,
        )
        for shape in shapes
    ]
    table = CostTable({}, 1, 1, 10, tuple(seen), ((0, 1000), (64, 4000)), 900, 0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "measure_table", lambda *given, **options: table)
        patch.setattr(shrinking, "OVERHEAD_SECONDS", 2.0)
        yield


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock of what this process computes alone, which the search then goes by: what else runs on the machine does not count."""
    clock = types.SimpleNamespace(monotonic=time.process_time, perf_counter=time.process_time)
    for module in (shrinking, journal, students, training):
        monkeypatch.setattr(module, "time", clock)
    return time.process_time


def test_a_vocabulary_is_judged_by_how_far_it_moves_the_answers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = shrinking.survey(open_run(run), resolve(read_recipe(run / "recipe.toml"), {}), lambda fact: None)
    counts = shrinking.count_tokens(ground.model, ground.train)
    least = len(Vocabulary.of(ground.model.encoder.tokenizer).essential)
    monkeypatch.setattr(shrinking, "vocabulary_sizes", lambda model, counts: [len(counts), least + 1])
    lost = shrinking.Search(ground, lambda fact: None)._lost_answers(counts)
    assert lost[len(counts)] == 0
    assert 0.2 < lost[least + 1] <= 1  # hardly any word can be told from another


def test_of_tied_students_the_one_that_answers_like_the_model_is_chosen(run: Path) -> None:
    recipe = resolve({**read_recipe(run / "recipe.toml"), "budget": {}, "distill": {}}, {"max_mb": 1.0})
    search = shrinking.Search(shrinking.survey(open_run(run), recipe, lambda fact: None), lambda fact: None)
    reference = search.ground.reference["score"]

    def order(*scores: float, layers: int = 2, nearest: int = 1) -> list[int]:
        search.state["points"] = [
            {
                "id": number, "score": score, "kept": score / reference, "holds": {"mb": score < 1}, "bytes": 10**6 * (1 + 9 * (score >= 1)),
                "milliseconds": 1.0, "resident_bytes": None, "shape": {"layers": layers}, "distance": 0.1 + 0.1 * (number != nearest),
            }
            for number, score in enumerate(scores)
        ]  # fmt: skip
        return [point["id"] for point in search.order()]

    error = planning.standard_error(0.9, len(search.ground.dev))
    near, far = 0.9 - error, 0.9 - 4 * error
    assert order(0.9, near, far) == [1, 0, 2], "a standard error is chance"
    assert order(0.9, far, near) == [0, 2, 1], "four are not"
    assert order(0.9, near, far, layers=0) == [0, 1, 2], "a static student that is as good is far smaller"
    assert order(1.0, near, far) == [1, 2, 0], "what does not hold the limits is tied with nothing"


def test_a_lesson_is_no_longer_than_a_first_rung_can_read(run: Path) -> None:
    recipe = resolve({**read_recipe(run / "recipe.toml"), "budget": {}, "distill": {}}, {"max_mb": 1.0})
    search = shrinking.Search(shrinking.survey(open_run(run), recipe, lambda fact: None), lambda fact: None)
    search.seconds, base = 1200.0, Shape.of(search.ground.model)

    def read(**less: int) -> float:
        small = planning.Candidate(dataclasses.replace(base, **less), (), "onnx", 0, 0.0, 0, 0.0)
        still = dataclasses.replace(small, shape=dataclasses.replace(base, layers=0))
        search.state["candidates"] = [dataclasses.asdict(item) for item in (small, still)]
        search.rungs = planning.plan_rungs(1, 4)
        return search._lesson_seconds()

    assert 15 < read() < 30, "a rung of about 70 s, in which a model of this size learns from what it reads in a third"
    assert read(layers=1, hidden=1, ffn=8) == 144, "of what a small one could go over the teacher reads a share of the search"


@pytest.mark.parametrize(("milliseconds", "expected"), [(1.09, [0, 1]), (1.11, [1, 0])])
def test_a_time_that_chance_put_beyond_the_limit_ends_no_candidate(run: Path, milliseconds: float, expected: list[int]) -> None:
    recipe = resolve({**read_recipe(run / "recipe.toml"), "budget": {}, "distill": {}}, {"max_ms": 1.0})
    search = shrinking.Search(shrinking.survey(open_run(run), recipe, lambda fact: None), lambda fact: None)
    search.state["points"] = [
        {
            "id": number, "score": score, "kept": score, "holds": {"ms": time <= 1}, "bytes": 1, "milliseconds": time, "resident_bytes": None,
            "distance": number / 10,
        }
        for number, (score, time) in enumerate([(0.9, milliseconds), (0.5, 0.9)])
    ]  # fmt: skip
    assert search._best([0, 1], 2) == expected


def test_a_time_that_nearly_holds_is_taken_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve({**read_recipe(run / "recipe.toml"), "budget": {}, "distill": {}}, {"max_ms": 1.0})
    search = shrinking.Search(shrinking.survey(open_run(run), recipe, lambda fact: None), lambda fact: None)
    base, timed = Shape.of(search.ground.model), []
    planned = planning.Candidate(base, (), "onnx", 0, 0.9, 0, 0.0)
    search.state["candidates"] = [dataclasses.asdict(planned)] * 4
    search.state["points"] = [
        {
            "id": number, "milliseconds": time, "bytes": 1, "resident_bytes": None, "artifact": f"candidates/{number}/artifact", "steps": [f"ffn={ffn}"],
            "target": "onnx",
        }
        for number, (time, ffn) in enumerate([(1.2, 8), (1.08, 7), (0.95, 6), (1.05, 6)])
    ]  # fmt: skip
    monkeypatch.setattr(shrinking, "load_artifact", lambda folder, threads: timed.append(folder.parent.name))
    monkeypatch.setattr(shrinking.benchmarking, "latency", lambda artifact, rows: types.SimpleNamespace(p50=0.97))
    search.retake_times()
    assert timed == ["1"], (
        "the first is too slow whatever else runs, the third holds the limit already, and so does the fourth, which is like it"
    )
    assert [point["milliseconds"] for point in search.state["points"]] == [1.2, 0.97, 0.95, 0.95]
    assert [point["holds"] for point in search.state["points"]] == [{"ms": False}, *[{"ms": True}] * 3]


@pytest.mark.parametrize(
    ("lost", "strayed", "suffers"), [(0.0, 0.0, False), (0.004, 0.0, True), (-0.01, 0.004, True), (0.002, 0.002, False)]
)
def test_a_file_suffers_that_scores_less_or_strays(run: Path, lost: float, strayed: float, suffers: bool) -> None:
    recipe = resolve({**read_recipe(run / "recipe.toml"), "budget": {}, "distill": {}}, {"max_mb": 1.0})
    search = shrinking.Search(shrinking.survey(open_run(run), recipe, lambda fact: None), lambda fact: None)
    search.state["points"] = [{"id": 7, "lost": lost, "strayed": strayed}]
    assert search._suffers(7) is suffers


def test_a_rung_that_went_wrong_leaves_the_earlier_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**FAST, "reconstruct": False}  # so that the first rung leaves something to learn
    recipe = resolve({**read_recipe(run / "recipe.toml"), "budget": {}, "distill": {}}, options)
    search = shrinking.Search(shrinking.survey(open_run(run), recipe, lambda fact: None), lambda fact: None, ["depth=1"], 4.0)
    search._plan()
    (candidate,) = search._known()
    search._train(0, candidate, "first")
    before = models.load(run / "candidates" / "0" / "model").network.head.weight
    (point,) = search.points

    def score(student: models.Model) -> float:
        return evaluate(student, search.ground.dev, resamples=0)[student.task.primary]

    # what the course says of the best weights is what these score
    assert point["score"] + point["lost"] == pytest.approx(score(models.load(run / "candidates" / "0" / "model")), abs=1e-6)

    def spoil(name: str, student: models.Model, *given: Any) -> tuple[float, float]:
        student.network.head.weight.data.neg_()
        return 0.0, score(student)

    monkeypatch.setattr(search, "_take_course", spoil)
    search._train(0, candidate, "second")
    assert (models.load(run / "candidates" / "0" / "model").network.head.weight == before).all()
    assert search.points == [point]
    assert search.state["done"] == ["0/first", "0/second"]
    assert search._least(1) == -math.inf

    def change(name: str, student: models.Model, *given: Any) -> tuple[float, float]:
        for item in student.network.head.parameters():
            item.data.mul_(2)  # the answers stay
        return 0.0, score(student)

    point["score"] += 0.3 / len(search.ground.dev)  # by less than chance
    assert 0 < point["score"] + point["lost"] < 1
    monkeypatch.setattr(search, "_take_course", change)
    search._train(0, candidate, "winner")
    assert (models.load(run / "candidates" / "0" / "model").network.head.weight == 2 * before).all()


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


def test_a_file_keeps_the_grids_on_which_its_model_learned(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking.Search, "_suffers", lambda search, number: True)
    base = tiny_models.save_base("bert", tmp_path / "bert", hidden_size=64, intermediate_size=96)  # smaller matrices keep all their bits
    made = fitting.fit(
        str(data / "train.jsonl"), tmp_path / "run", dev=str(data / "dev.jsonl"), test=str(data / "test.jsonl"), model=str(base), epochs=2.0,
        rate=3e-3, to=("none",), max_length=24, threads=1,
    )  # fmt: skip
    shrinking.shrink(made.folder, steps=["depth=1"], epochs=1.0, to="onnx:weights=4,activations=32", **FAST)
    rows, folder = tiny_models.make_rows(30, seed=9), made.folder / "candidates" / "1"
    np.testing.assert_allclose(load_artifact(folder / "artifact").logits(rows), models.load(folder / "model").logits(rows), atol=1e-3)


@pytest.fixture(scope="module")
def searched(finished: Run, priced: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after a search whose size limit can be held and whose score need not be."""
    folder = Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("searched") / "run"))
    shrinking.shrink(folder, max_mb=10.0, keep=0.3, time="90s", **FAST)
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


def test_any_point_can_be_taken_without_the_data(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    front = json.loads((run / "front.json").read_text())
    other = next(point for point in front["points"] if point["id"] != front["chosen"])
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("train.jsonl", "gone.jsonl").replace("test.jsonl", "gone.jsonl"))
    found = shrinking.shrink(run, take=other["id"])
    entry = found.record["artifacts"][-1]
    assert found.record["budget"]["candidate"] == other["id"] == json.loads((run / "front.json").read_text())["chosen"]
    assert entry["sha256"] == other["sha256"]
    artifact, rows = load_artifact(run / "artifacts" / "small"), tiny_models.make_rows(60, seed=2)  # the test rows
    assert entry["scores"]["accuracy"]["value"] == pytest.approx(evaluate(artifact, rows, resamples=0)["accuracy"], abs=1e-6)
    assert other["test"] == pytest.approx(entry["scores"]["accuracy"]["value"], abs=1e-6)
    with pytest.raises(InputError, match="no point 99"):
        shrinking.shrink(run, take=99)
    state = json.loads((run / "search.json").read_text())
    for point in state["points"]:
        del point["proof"]
    (run / "search.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="not come to its end"):
        shrinking.shrink(run, take=other["id"])


def test_a_search_ends_in_its_time(run: Path, own_clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "OVERHEAD_SECONDS", 10.0)  # the first export loads the exporter
    begin = own_clock()
    shrinking.shrink(run, max_mb=10.0, time="40s", **FAST)
    assert 10 < own_clock() - begin < 40 * 1.05
    state = json.loads((run / "search.json").read_text())
    assert {name.partition("/")[2] for name in state["done"]} >= {"static", "winner"}


def test_a_student_in_stages_comes_by_way_of_a_larger_one(run: Path) -> None:
    told: list[str] = []
    shrinking.shrink(
        run,
        steps=["depth=1", "ffn:keep=1/4,multiple=8"],
        epochs=3.0,
        stages=2,
        watch=lambda fact: told.append(getattr(fact, "text", "")),
        **FAST,
    )
    middle, last = (models.load(run / "candidates" / "0" / name).network.backbone.config for name in ("middle-1", "model"))
    assert (middle.num_hidden_layers, last.num_hidden_layers) == (2, 1)  # nothing lies between two layers and one
    assert last.intermediate_size < middle.intermediate_size < 48
    assert json.loads((run / "search.json").read_text())["done"] == ["0/middle 1", "0/winner"]
    assert any("by way of ffn=24" in text for text in told)


@pytest.mark.slow
def test_a_twin_in_stages_is_tried_where_the_cut_is_large(
    run: Path, own_clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "LEAST_SECONDS", 0.2)  # on a slow machine the twin's share is about a second
    with contextlib.suppress(CheckFailed):  # whether the limit is held does not matter here
        shrinking.shrink(run, max_mb=0.013, stages=2, time="60s", **FAST)
    state = json.loads((run / "search.json").read_text())
    twins = [number for number, item in enumerate(state["candidates"]) if item["stages"] == 2]
    (twin,) = twins
    shapes = [item["shape"] for item in state["candidates"]]
    original = shapes.index(shapes[twin])
    assert original < twin
    assert f"{original}/first" in state["done"]
    assert [name for name in state["done"] if name.endswith("/gradual")] == [f"{twin}/gradual"]
    assert f"{original}/winner" in state["done"] or f"{twin}/winner" in state["done"]


def test_a_search_with_other_settings_is_refused_until_it_is_overwritten(searched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(searched, tmp_path / "run"))
    with pytest.raises(InputError, match="other settings"):
        shrinking.shrink(run, max_mb=1.0)
    journal.forget(shrinking.open_run(run))
    assert not (run / "front.json").exists()


def test_an_impossible_budget_ends_with_the_nearest_model_and_what_to_relax(run: Path) -> None:
    with pytest.raises(CheckFailed, match=r"max-mb 0.001.*nearest model is saved.*--max-mb"):
        shrinking.shrink(run, max_mb=0.001, keep=0.999, time="2s", **FAST)
    record = json.loads((run / "run.json").read_text())
    assert record["met"] is False
    assert len(load_artifact(run / "artifacts" / "small").predict(["a bad film"])) == 1


def test_a_search_that_is_killed_and_stopped_goes_on_to_the_same_student(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    options: dict[str, Any] = {"steps": ["depth=1"], "epochs": 4.0, **FAST}
    shrinking.shrink(whole, **options)
    searches: list[shrinking.Search] = []
    made = shrinking.Search.__init__

    def remember(self: shrinking.Search, *given: Any) -> None:
        made(self, *given)
        searches.append(self)

    monkeypatch.setattr(shrinking.Search, "__init__", remember)

    def kill(fact: Any) -> None:
        if isinstance(fact, Step) and fact.step == 3:
            raise KeyboardInterrupt

    def stop(fact: Any) -> None:
        if isinstance(fact, Step) and fact.step == 5:
            searches[-1].request_stop()

    with pytest.raises(KeyboardInterrupt):
        shrinking.shrink(run, watch=kill, **options)
    with pytest.raises(Interrupted, match="same command"):
        shrinking.shrink(run, watch=stop, **options)
    assert any((run / "candidates" / "0" / "checkpoints").glob("step-*"))
    shrinking.shrink(run, **options)
    rows = tiny_models.make_rows(20, seed=4)
    one, other = (models.load(folder / "candidates" / "0" / "model").logits(rows) for folder in (whole, run))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert (run / "artifacts" / "small").is_dir()


def test_fit_with_a_limit_searches_in_the_same_run(tiny_source: Callable[[str], Source], data: Path, tmp_path: Path) -> None:
    found = fit(tiny_source, data, tmp_path / "run", max_mb=10.0, time="2s")
    assert found.record["met"] is True
    assert (found.folder / "front.json").exists()


def test_files_are_timed_on_the_texts_of_the_test(tiny_source: Callable[[str], Source], data: Path, tmp_path: Path) -> None:
    for name in ("train.jsonl", "dev.jsonl"):
        shutil.copy(data / name, tmp_path / name)
    longer = [json.dumps({"text": f"{row.text} and then again there", "label": row.target}) for row in tiny_models.make_rows(60, seed=2)]
    (tmp_path / "test.jsonl").write_text("\n".join(longer))
    run = fit(tiny_source, tmp_path, tmp_path / "run", max_mb=10.0, time="2s")
    encoder = models.load(run.model).encoder
    length = int(np.median(encoder.encode([json.loads(line)["text"] for line in longer]).lengths))
    (small,), (point, *_) = run.record["artifacts"], run.read("front.json")["points"]
    assert small["milliseconds"]["length"] == point["measured"]["milliseconds"]["length"] == length


def test_a_step_that_does_not_exist_is_refused_before_anything_is_read(run: Path) -> None:
    with pytest.raises(InputError, match="depht"):
        shrinking.shrink(run, steps=["depht=3"])


def test_healing_is_refused_where_all_weights_are_trained(run: Path) -> None:
    with pytest.raises(InputError, match="healing lora has no meaning"):
        shrinking.shrink(run, steps=["depth=1"], healing="lora")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), ("30", 30), ("2 m", 120)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "3 days", "1.2.3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="20min"):
        parse_seconds(text)
