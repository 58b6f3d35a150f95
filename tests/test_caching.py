"""What frozen parts say is kept, and training on it is the training without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from lightune import caching
from lightune.caching import find_frozen, keep_frozen
from lightune.networks import tensors
from lightune.recipes import TrainOptions
from lightune.sources import Source
from lightune.training import Training

ROWS = tiny_models.make_rows(40)
DEV = tiny_models.make_rows(20, seed=1)


def open_training(source: Source, method: str, **options: Any) -> Training:
    model = tiny_models.start(source, ROWS, method=method)
    how = {"epochs": 3.0, "batch_size": 8, "device": "cpu", "precision": "fp32", "threads": 1, "rate": 1e-2, "head_dropout": 0.0}
    return Training(model, ROWS, DEV, TrainOptions(**{**how, **options}))


def learn(training: Training) -> tuple[list[float], np.ndarray]:
    """Every loss of the training and of its evaluations, and what the model answers at the end."""
    losses = [fact.loss for fact in training.steps()]
    return losses, training.model.logits(DEV)


WHOLE = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert", "deberta-v2", "gpt2", "llama", "t5")
FIRST = ("bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama")


@pytest.mark.parametrize(
    ("family", "method", "kept"),
    [*((family, "head", 1) for family in WHOLE), *((family, "freeze:blocks=1", 1) for family in FIRST)],
)
def test_training_on_what_is_kept_is_the_same_training(family: str, method: str, kept: int, tiny_source: Callable[[str], Source]) -> None:
    expected, answers = learn(open_training(tiny_source(family), method))
    training = open_training(tiny_source(family), method)
    assert keep_frozen(training) == kept
    first = training.network.backbone if method == "head" else caching.architectures.blocks(training.network.backbone)[0]
    runs = []
    first.register_forward_hook(lambda *_: runs.append(1))
    losses = [fact.loss for fact in training.steps()]
    assert runs == []
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(training.model.logits(DEV), answers, rtol=1e-3, atol=1e-4)
    assert runs  # the network is whole again


@pytest.mark.parametrize("method", ["lora:rank=2", "pfeiffer:drop_first=1", "reft:layers=1", "houlsby:drop_first=1"])
def test_what_a_method_leaves_alone_at_the_bottom_is_kept(method: str, tiny_source: Callable[[str], Source]) -> None:
    training = open_training(tiny_source("bert"), method)
    expected, _ = learn(open_training(tiny_source("bert"), method))
    assert keep_frozen(training) == (0 if method == "lora:rank=2" else 1)
    np.testing.assert_allclose(learn(training)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("albert", "pfeiffer"),  # its layers share a block
        ("albert", "full"),
        ("bert", "prompt:tokens=4"),  # trained below all blocks
        ("bert", "norms"),
        ("deberta-v2", "freeze:blocks=1"),  # trains a table that the first block reads too
        ("t5", "freeze:blocks=1"),  # the first block makes what later ones add to their attention
    ],
)
def test_what_a_gradient_reaches_is_never_kept(family: str, method: str, tiny_source: Callable[[str], Source]) -> None:
    assert keep_frozen(open_training(tiny_source(family), method)) == 0


def test_nothing_is_kept_where_it_would_not_be_the_same_or_not_pay(tiny_source: Callable[[str], Source], monkeypatch: Any) -> None:
    source = tiny_source("bert")
    assert keep_frozen(open_training(source, "freeze:blocks=1", dropout=0.1)) == 0
    assert keep_frozen(open_training(source, "head", epochs=1.0)) == 0
    assert keep_frozen(open_training(source, "head"), seconds=1e-6) == 0
    monkeypatch.setattr(caching, "MEMORY", 100)
    assert keep_frozen(open_training(source, "head")) == 0


def test_two_passes_through_a_doubled_batch_are_recalled(tiny_source: Callable[[str], Source]) -> None:
    expected, _ = learn(open_training(tiny_source("bert"), "freeze:blocks=1", r_drop=0.5))
    training = open_training(tiny_source("bert"), "freeze:blocks=1", r_drop=0.5)
    assert keep_frozen(training) == 1
    np.testing.assert_allclose(learn(training)[0], expected, rtol=1e-4, atol=1e-5)


def test_what_has_no_room_in_memory_lies_in_a_file_of_16_bits(
    tiny_source: Callable[[str], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = learn(open_training(tiny_source("llama"), "freeze:blocks=1"))
    monkeypatch.setattr(caching, "MEMORY", 100)
    shelves: list[caching.Shelf] = []
    made = caching.Shelf.__init__
    monkeypatch.setattr(caching.Shelf, "__init__", lambda shelf, *given: shelves.append(shelf) or made(shelf, *given))
    training = open_training(tiny_source("llama"), "freeze:blocks=1")
    assert keep_frozen(training, tmp_path) == 1
    assert {shelf.store.dtype for shelf in shelves} == {torch.float16}
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    np.testing.assert_allclose(learn(training)[0], expected, rtol=2e-2, atol=2e-3)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind, not even by a process that is killed


def test_the_time_of_the_first_pass_counts(tiny_source: Callable[[str], Source]) -> None:
    training = open_training(tiny_source("bert"), "head")
    keep_frozen(training)
    before = training.seconds
    assert before > 0
    assert next(training.steps()).seconds >= round(before, 3)


def test_autograd_tells_what_is_frozen(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS, method="full")
    batch = tensors(model.encoder.pad(model.encoder.encode([row.text for row in ROWS[:3]])))
    blocks = caching.architectures.blocks(model.network.backbone)
    assert find_frozen(model.network, batch) == []
    model.network.backbone.requires_grad_(False)
    assert find_frozen(model.network, batch) == [model.network.backbone]
    blocks[1].requires_grad_(True)
    assert find_frozen(model.network, batch) == [blocks[0]]
    assert torch.is_grad_enabled()
