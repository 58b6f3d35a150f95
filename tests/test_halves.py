"""bf16 copies of the matrices: what they compute, what they leave as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tiny_models
import torch

from lightune.halves import Halves
from lightune.networks import tensors
from lightune.recipes import TrainOptions
from lightune.sources import Source
from lightune.training import Training

FAMILIES = ("bert", "albert", "gpt2", "llama")


def first_batch(model: object, rows: list[object]) -> dict[str, torch.Tensor]:
    encoded = model.encoder.encode([row.text for row in rows])  # type: ignore[attr-defined]
    return tensors(model.encoder.pad(encoded))  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_through_the_copies_is_near_fp32_and_leaves_the_weights(tiny_source: Callable[[str], Source], family: str) -> None:
    rows = tiny_models.make_rows(8)
    model = tiny_models.start(tiny_source(family), rows)
    batch = first_batch(model, rows)
    before = {name: item.detach().clone() for name, item in model.network.named_parameters()}
    model.network.eval()
    plain = model.network(**batch)
    halves = Halves(model.network)
    with halves.used(), torch.autocast("cpu", torch.bfloat16):
        coarse = model.network(**batch)
        coarse.sum().backward()
    halves.collect()
    assert torch.allclose(plain, coarse, atol=0.1)
    assert not torch.equal(plain, coarse)
    for name, item in model.network.named_parameters():
        assert item.dtype == torch.float32
        assert torch.equal(item, before[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_near_those_of_fp32(tiny_source: Callable[[str], Source], family: str) -> None:
    rows = tiny_models.make_rows(8)
    model = tiny_models.start(tiny_source(family), rows)
    batch = first_batch(model, rows)
    model.network.eval()
    model.network(**batch).square().sum().backward()
    plain = {name: item.grad.to_dense() for name, item in model.network.named_parameters() if item.grad is not None}
    model.network.zero_grad()
    halves = Halves(model.network)
    for _ in range(2):  # two pieces of one step add up
        with halves.used(), torch.autocast("cpu", torch.bfloat16):
            model.network(**batch).square().sum().backward()
        halves.collect()
    found = {name: item.grad.to_dense() for name, item in model.network.named_parameters() if item.grad is not None}
    assert plain.keys() == found.keys()
    whole, other = (torch.cat([part[name].flatten() for name in sorted(plain)]) for part in (plain, found))
    assert torch.cosine_similarity(whole, other / 2, dim=0) > 0.98
    assert float(other.norm() / 2 / whole.norm()) == pytest.approx(1, abs=0.1)


def test_frozen_weights_receive_no_gradient_and_training_in_bf16_learns(tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(64)
    model = tiny_models.start(tiny_source("bert"), rows, method="freeze:blocks=1")
    frozen = {name: item.detach().clone() for name, item in model.network.named_parameters() if not item.requires_grad}
    training = Training(model, rows, [], TrainOptions(precision="bf16", epochs=20.0, batch_size=16, rate=3e-3))
    losses = [fact.loss for fact in training.steps()]
    assert training.halves is not None
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert all(torch.equal(item.cpu(), frozen[name]) for name, item in model.network.named_parameters() if name in frozen)
