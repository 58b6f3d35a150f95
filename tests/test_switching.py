"""Several models share one base in memory and answer as each does alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch

from lightune import architectures
from lightune.errors import InputError
from lightune.mixtures import kinship
from lightune.models import Model
from lightune.sources import Source
from lightune.switching import Switchboard

ROWS = tiny_models.make_rows(12)
TEXTS = [row.text for row in ROWS]


def moved(source: Source, spec: str, seed: int, task: str = "classify") -> Model:
    model = tiny_models.start(source, tiny_models.make_rows(12, task), task, spec)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for item in model.trainable().values():
            item.add_(torch.randn(item.shape, generator=draw) * 0.3)
    return model


def near(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether answers are equal, and their probabilities up to rounding."""
    chances = [[value for answer in answers for value in answer["probabilities"].values()] for answers in (found, expected)]
    plain = [
        [{**answer, "probability": 0, "probabilities": sorted(answer["probabilities"])} for answer in answers]
        for answers in (found, expected)
    ]
    return plain[0] == plain[1] and chances[0] == pytest.approx(chances[1], abs=1e-5)


def test_a_mixed_batch_is_answered_by_the_models_that_are_named(tiny_source: Callable[[str], Source]) -> None:
    source = tiny_source("bert")
    specs = {
        "thin": ("lora:rank=2", "classify"),
        "other": ("lora:rank=4", "classify"),
        "wide": ("houlsby", "multilabel"),
        "plain": ("head", "classify"),
    }
    alone = {name: moved(source, spec, seed, task) for seed, (name, (spec, task)) in enumerate(specs.items())}
    expected = {name: model.predict(TEXTS) for name, model in alone.items()}
    board = Switchboard(alone)
    names = [list(specs)[place % 4] for place in range(len(TEXTS))]
    assert near(board.predict(TEXTS, names), [expected[name][place] for place, name in enumerate(names)])
    whole = sum(item.numel() for item in alone["plain"].network.parameters()) * 4
    own = sum(item.numel() for model in alone.values() for item in model.trainable().values()) * 4
    assert board.bytes < whole + own + 4096 < 2 * whole + own


@pytest.mark.parametrize("family", [name for name in (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS) if name != "deberta-v2"])
def test_lora_models_answer_in_one_pass_what_each_answers_alone(family: str, tiny_source: Callable[[str], Source]) -> None:
    source = tiny_source(family)
    specs = {"one": "lora:rank=2", "two": "lora:rank=5,alpha=3", "three": "lora:rank=2,rslora=true"}
    alone = {
        name: moved(source, spec, seed, "multilabel" if name == "two" else "classify") for seed, (name, spec) in enumerate(specs.items())
    }
    expected = {name: model.predict(TEXTS) for name, model in alone.items()}
    board = Switchboard(alone)
    passes: list[int] = []
    table = architectures.word_embedding(alone["one"].network.backbone)
    weight = table.weight
    for model in alone.values():
        assert architectures.word_embedding(model.network.backbone).weight.data_ptr() == weight.data_ptr()
        model.network.backbone.register_forward_hook(lambda *_: passes.append(1))
    names = [list(specs)[place % 3] for place in range(len(TEXTS))]
    found = board.predict(TEXTS, names)
    assert near(found, [expected[name][place] for place, name in enumerate(names)])
    assert len(passes) == 1  # through a network that has the first one's hooks
    assert board.predict(TEXTS[:2], ["one", "one"]) == alone["one"].predict(TEXTS[:2])
    board.remove("one")
    assert near(board.predict(TEXTS, ["two", "three"] * 6), [expected[["two", "three"][place % 2]][place] for place in range(12)])


def test_what_cannot_be_mixed_answers_alone(tiny_source: Callable[[str], Source]) -> None:
    specs = ("lora:rank=2", "lora:rank=2,targets=query", "lora:dora=true", "lora:base=int8", "lora:init=pissa", "bitfit")
    models = [moved(tiny_source("bert"), spec, seed) for seed, spec in enumerate(specs)]
    kin = [kinship(model) for model in models]
    assert kinship(moved(tiny_source("deberta-v2"), "lora", 0)) is None
    assert kin[2] is kin[3] is kin[5] is None
    assert len({kin[0], kin[1], kin[4]}) == 3
    alone = {spec: moved(tiny_source("bert"), spec, seed) for seed, spec in enumerate(specs)}
    expected = {name: model.predict(TEXTS) for name, model in alone.items()}
    names = [specs[place % len(specs)] for place in range(len(TEXTS))]
    assert near(Switchboard(alone).predict(TEXTS, names), [expected[name][place] for place, name in enumerate(names)])


def test_models_come_and_go(tiny_source: Callable[[str], Source]) -> None:
    source = tiny_source("bert")
    board = Switchboard({"one": moved(source, "lora:rank=2", 1), "two": moved(source, "lora:rank=2", 2)})
    before, size = board["two"].predict(TEXTS), board.bytes
    removed = board.remove("one")
    assert board.names == ("two",)
    assert board.bytes < size
    assert board["two"].predict(TEXTS) == before
    board.add("back", removed)
    assert board.bytes == size
    with pytest.raises(InputError, match="named 'back' already"):
        board.add("back", removed)
    with pytest.raises(InputError, match=r"Unknown model 'tow'. Known: back, two. Did you mean 'two'\?"):
        board.predict(["a film"], ["tow"])
    with pytest.raises(InputError, match="2 texts came with 1 names"):
        board.predict(["a film", "a room"], ["two"])
