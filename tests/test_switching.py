"""Several models share one base in memory and answer as each does alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch

from lightune.errors import InputError
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
    assert board.predict(TEXTS, names) == [expected[name][place] for place, name in enumerate(names)]
    whole = sum(item.numel() for item in alone["plain"].network.parameters()) * 4
    own = sum(item.numel() for model in alone.values() for item in model.trainable().values()) * 4
    assert board.bytes < whole + own + 4096 < 2 * whole + own


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
