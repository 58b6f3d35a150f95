"""From a finished run that generates to a smaller proven file: steps, healing, what is kept, what is refused, how it stops and goes on."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_conversations import QUICK, write_base, write_echoes

import lightune
from lightune import language, language_planning, language_shrinking, models, shrinking, token_distillation
from lightune.cli import main
from lightune.errors import CheckFailed, InputError
from lightune.exporting import open_written
from lightune.preparation import Interrupted
from lightune.recipes import resolve
from lightune.runs import Run
from lightune.runtime.generation import GenerationOptions, Message
from lightune.training import Step

STEPS = ["vocab=340", "depth=2", "ffn=64"]
LLAMA_CPP = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
FP32 = {"to": "hf", "epochs": 4.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny decoder that has learned to say words again."""
    folder = tmp_path_factory.mktemp("finished")
    base, data = write_base(folder / "llama"), write_echoes(folder / "echo.jsonl")
    return lightune.fit(str(data), folder / "run", model=str(base), method="full", to=("none",), **QUICK)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def shrunk(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run after named steps, and the facts that were told."""
    folder = Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("shrunk") / "run"))
    facts: list[Any] = []
    shrinking.shrink(folder, steps=STEPS, watch=facts.append, **FP32)
    return folder, facts


def test_named_steps_give_a_smaller_proven_file(shrunk: tuple[Path, list[Any]]) -> None:
    folder, _ = shrunk
    record, front = (json.loads((folder / name).read_text()) for name in ("run.json", "front.json"))
    student = models.load(folder / "candidates" / "0" / "model")
    (entry,), (point,) = record["artifacts"], front["points"]
    config = student.network.backbone.config
    assert (config.num_hidden_layers, config.intermediate_size, config.vocab_size) == (2, 64, 340)
    assert entry["path"] == "artifacts/small"
    assert entry["bytes"] == point["bytes"] < 0.8 * front["reference"]["bytes"]
    assert entry["tokens_per_second"]["generation"] > 0
    assert entry["parity"]["agree"] == 1.0
    assert record["budget"]["kept"]["value"] > 0.5
    assert record["budget"]["part"] == "test"
    assert record["met"] is None  # nothing was asked
    assert {"perplexity", "byte_perplexity", entry["scores"]["primary"]} < set(entry["scores"])
    assert list((folder / "candidates" / "lessons").glob("*/ids.npy"))  # for the next students
    assert "depth=2" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_saved_student_and_its_file_answer_alike(shrunk: tuple[Path, list[Any]]) -> None:
    folder, _ = shrunk
    student = models.load(folder / "candidates" / "0" / "model")
    prompts, options = [(Message("user", f"{number} wider"),) for number in range(4)], GenerationOptions(max_tokens=8)
    ours = language.generator_of(student)
    theirs = open_written(folder / "artifacts" / "small")
    assert [one.text for one in ours.generate(prompts, options)] == [one.text for one in theirs.generate(prompts, options)]


def test_learning_from_the_run_lowers_the_loss(shrunk: tuple[Path, list[Any]]) -> None:
    losses = [fact.loss for fact in shrunk[1] if isinstance(fact, Step)]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_another_file_of_the_same_steps_needs_no_training(shrunk: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run = Path(shutil.copytree(shrunk[0], tmp_path / "run"))
    facts: list[Any] = []
    shrinking.shrink(run, steps=STEPS, watch=facts.append, epochs=4.0, to="hf:type=bf16")
    assert not any(isinstance(fact, Step) for fact in facts)
    assert not any("Scoring the run's model" in getattr(fact, "text", "") for fact in facts)
    first, second = json.loads((run / "front.json").read_text())["points"]
    assert second["bytes"] < first["bytes"]
    assert json.loads((run / "run.json").read_text())["budget"]["candidate"] == second["id"] == 1
    shrinking.shrink(run, take=0)
    assert json.loads((run / "run.json").read_text())["artifacts"][-1]["sha256"] == first["sha256"]


def test_the_command_line_tells_the_file(shrunk: tuple[Path, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(shrunk[0], tmp_path / "run"))
    steps = [part for step in STEPS for part in ("--step", step)]
    assert main(["shrink", str(run), *steps, "--to", "hf", "--epochs", "4"]) == 0
    told = capsys.readouterr().out
    assert "small" in told
    assert "answer tokens/s" in told
    assert main(["shrink", str(run), "--take", "7"]) == 2
    assert "no point 7" in capsys.readouterr().err


def test_limits_that_are_missed_are_told_and_the_model_is_kept(run: Path) -> None:
    with pytest.raises(CheckFailed, match=r"max-mb 0.01.*nearest model is saved.*--max-mb"):
        shrinking.shrink(run, steps=["depth=1"], epochs=0.5, to="hf", max_mb=0.01, keep=0.1, healing="lora:rank=2")
    record = json.loads((run / "run.json").read_text())
    assert record["met"] is False
    assert set(record["budget"]["held"]) == {"max_mb", "keep"}
    assert models.load(run / "candidates" / "0" / "model").changes[0].was[-1].startswith("lora:rank=2")
    assert open_written(run / "artifacts" / "small").generate(["7 film"], GenerationOptions(max_tokens=2))


def test_a_student_that_is_killed_and_stopped_goes_on_to_the_same_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    options: dict[str, Any] = {"steps": ["vocab=340", "depth=2"], "epochs": 1.5, "to": "hf", "healing": "lora"}
    shrinking.shrink(whole, **options)
    searches: list[language_shrinking.Search] = []
    made = language_shrinking.Search.__init__

    def remember(self: language_shrinking.Search, *given: Any) -> None:
        made(self, *given)
        searches.append(self)

    monkeypatch.setattr(language_shrinking.Search, "__init__", remember)

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
    one, other = (models.load(folder / "candidates" / "0" / "model").network.state_dict() for folder in (whole, run))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert (run / "artifacts" / "small").is_dir()


@LLAMA_CPP
def test_a_gguf_of_the_student_writes_as_it_does(run: Path) -> None:
    shrinking.shrink(run, steps=["vocab=340", "heads=2"], epochs=1.0, to="gguf:type=f16")
    (entry,) = json.loads((run / "run.json").read_text())["artifacts"]
    assert entry["target"] == "gguf:type=f16"
    assert abs(entry["parity"]["change"]) < 0.02
    assert (run / "artifacts" / "small" / "model.gguf").is_file()


@LLAMA_CPP
def test_a_search_trains_a_few_and_the_best_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_planning, "TYPES", {"f16": 0.0})  # in which tiny models write as they do
    monkeypatch.setattr(language_shrinking, "COUNT", 2)
    options: dict[str, Any] = {"max_mb": 0.27, "keep": 0.01, "time": "20s"}
    shrinking.shrink(run, **options)
    state, record = (json.loads((run / name).read_text()) for name in ("search.json", "run.json"))
    assert state["done"][:2] == ["0/first", "1/first"]
    assert state["done"][2] in ("0/winner", "1/winner")
    assert sorted(point["id"] for point in state["points"]) == [0, 1]
    assert record["met"] is True
    assert record["budget"]["held"]["max_mb"]["value"] <= 0.27
    facts: list[Any] = []
    winner = int(state["done"][2].partition("/")[0])
    for point in state["points"]:  # as where the last stretch left the winner behind the other
        point["kept"], point["bytes"] = (0.1, 200_000) if point["id"] == winner else (0.9, 200_000)
    (run / "search.json").write_text(json.dumps(state))
    shrinking.shrink(run, watch=facts.append, **options)  # everything is done: nothing is trained again
    assert not any(isinstance(fact, Step) for fact in facts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_mb": 1.0, "to": "gguf"}, "goes with named steps"),
        ({"steps": ["static=8"]}, "nothing that could write"),
        ({"steps": ["vocab=300", "vocab=280"]}, "more than once"),
        ({"steps": ["depht=2"]}, "depht"),
        ({"steps": ["depth=2"], "to": "onnx-int8"}, "models that classify or score"),
        ({"steps": ["depth=2"], "relations_weight": 1.0, "stages": 2}, "relations-weight, stages has no meaning for generate"),
        ({"steps": ["depth=2"], "table": "board.json"}, "table"),
        ({"steps": ["depth=2"], "healing": "lroa"}, "lroa"),
        ({"steps": ["depth=2"], "healing": "prompt"}, "prompt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(run: Path, options: dict[str, Any], message: str) -> None:
    told: list[Any] = []
    with pytest.raises(InputError, match=message):
        shrinking.shrink(run, watch=told.append, **options)
    assert not told


def test_other_steps_add_to_the_front_and_other_limits_begin_anew(
    shrunk: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(shrunk[0], tmp_path / "run"))
    monkeypatch.setattr(token_distillation, "_record", lambda *given: pytest.fail("read again"))
    shrinking.shrink(run, steps=["vocab=340", "depth=1"], epochs=0.5, to="hf")
    points = json.loads((run / "front.json").read_text())["points"]
    assert [point["shape"]["layers"] for point in points] == [2, 1]
    with pytest.raises(InputError, match="other settings"):
        shrinking.shrink(run, steps=["depth=1"], max_mb=1.0, **FP32)


def test_a_run_of_translate_is_told_that_it_cannot_be_shrunk() -> None:
    with pytest.raises(InputError, match="translate"):
        language_shrinking.check_options(resolve({}, {"task": "translate"}), ["depth=2"], "gguf")
