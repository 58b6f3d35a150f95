"""Methods side by side: what is refused before any work, what the folder holds, and that a stop loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import lightune
from lightune import comparing, models
from lightune.cli import main
from lightune.comparing import check_methods, compare, resume, split_specs
from lightune.errors import InputError
from lightune.evaluation import evaluate
from lightune.preparation import Interrupted, read_all
from lightune.recipes import read_recipe, resolve
from lightune.sources import Source
from lightune.training import Step

QUICK = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 16, "rate": 0.01, "checkpoint_seconds": 0.0}
NOTHING: dict[str, Any] = {"watch": lambda fact: None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "moods.jsonl"
    rows = [{"text": row.text, "label": row.target} for row in tiny_models.make_rows(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_specs_are_told_from_their_options() -> None:
    assert split_specs("full,lora:rank=16,alpha=32, head") == ("full", "lora:rank=16,alpha=32", "head")
    assert split_specs("") == ()
    assert check_methods(["lora:rank=8", "head"]) == ("lora", "head")


def test_wrong_methods_are_told_all_at_once() -> None:
    with pytest.raises(InputError, match=r"'loar'. Did you mean 'lora'\? 'hed'. Did you mean 'head'\? Known: full, "):
        check_methods(["loar", "full", "hed"])
    with pytest.raises(InputError, match=r"lora:rnk=3: .*'rank'.* lora:rank=0: rank is 0, expected at least 1"):
        check_methods(["lora:rnk=3", "lora:rank=0"])
    with pytest.raises(InputError, match="lora is named twice"):
        check_methods(["lora", "lora:rank=8"])
    with pytest.raises(InputError, match="No methods were given"):
        check_methods([])


def test_nothing_is_left_behind_where_nothing_was_done(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No data were given"):
        compare(out=tmp_path / "out")
    with pytest.raises(InputError, match="no-such"):
        compare(data, tmp_path / "out", model=str(tmp_path / "no-such"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is no comparison"):
        resume(tmp_path)


def test_the_command_line_compares(data: Path, tmp_path: Path, tiny_source: Callable[[str], Source], capsys: Any) -> None:
    """From the file to the page; what the record tells is what the saved models do."""
    base, out = str(tiny_source("albert").folder), tmp_path / "out"
    command = ["compare", str(data), "--methods", "lora:rank=2,head,freeze", "--time", "9s", "--model", base, "--out", str(out), "--json"]
    flags = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*command, *flags, "--epochs", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "compare.json").read_text())
    lora, head, freeze = record["methods"]
    assert "its layers share one block" in freeze["refused"]
    assert not (out / "freeze").exists()
    assert (record["metric"], record["part"], record["share"]) == ("accuracy", "test", 3.0)
    recipe = resolve(read_recipe(out / "head" / "recipe.toml"), {})
    test = read_all(recipe, str(data)).parts["test"]
    for row in (lora, head):
        model = models.load(out / row["folder"] / "model")
        assert evaluate(model, test, resamples=0)["accuracy"] == pytest.approx(row["score"]["value"], abs=1e-6)
        assert row["weights_bytes"] == (out / row["folder"] / "model" / "weights.safetensors").stat().st_size
        assert row["trainable_parameters"] == sum(item.numel() for item in model.trainable().values())
        assert 0 < row["epochs"] <= 2
        assert row["peak_resident_bytes"] > 1e8
        assert row["milliseconds"]["p50"] > 0
    assert lora["trainable_parameters"] > head["trainable_parameters"]
    assert record["best"] in ("lora:rank=2", "head")
    page = (out / "compare.html").read_text()
    assert "Test accuracy and trained parameters" in page
    assert ">lora:rank=2<" in page
    assert main(["compare", "--resume", str(out)]) == 0
    assert "is finished already" in capsys.readouterr().err


def test_a_stopped_comparison_goes_on_without_repeating(data: Path, tmp_path: Path, tiny_source: Callable[[str], Source]) -> None:
    """The first method is done, the second is stopped in its middle: the first is not trained again, the second ends as if never stopped."""
    options = {**QUICK, "model": str(tiny_source("bert").folder), "epochs": 4.0}
    racing: list[comparing.Race] = []
    init = comparing.Race.__init__

    class Watched(comparing.Race):
        def __init__(self, *arguments: Any) -> None:
            init(self, *arguments)
            racing.append(self)

    def stop(fact: Any) -> None:
        if isinstance(fact, Step) and len(racing[-1].record["methods"]) == 1 and fact.step == 5:
            racing[-1].request_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "Race", Watched)
        with pytest.raises(Interrupted, match=r"Go on: lightune compare --resume"):
            compare(data, tmp_path / "out", methods=("head", "bitfit"), time="10min", watch=stop, **options)
    first = (tmp_path / "out" / "head" / "run.json").stat().st_mtime_ns
    assert list((tmp_path / "out" / "bitfit" / "checkpoints").glob("step-*"))
    told: list[Any] = []
    found = resume(tmp_path / "out", watch=told.append)
    assert (tmp_path / "out" / "head" / "run.json").stat().st_mtime_ns == first
    assert min(fact.step for fact in told if isinstance(fact, Step)) > 5
    whole = lightune.fit(str(data), tmp_path / "whole", method="bitfit", to=("none",), **options)
    np.testing.assert_array_equal(
        models.load(found.runs[1] / "model").logits(["a good film"]), models.load(whole.model).logits(["a good film"])
    )


def test_too_little_time_is_told(data: Path, tmp_path: Path, tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match=r"head: .* s are too short to train: a step of 16 examples"):
        compare(data, tmp_path / "out", methods=("head",), time="0.0001s", model=str(tiny_source("bert").folder), **QUICK)
