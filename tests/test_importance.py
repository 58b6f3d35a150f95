from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from lightune import importance
from lightune.dimensions import describe
from lightune.errors import InputError
from lightune.importance import Importance, damage, measure, shares
from lightune.models import Model
from lightune.networks import tensors
from lightune.sources import Source
from lightune.steps import make_step

ROWS = tiny_models.make_rows(10)
FAMILIES = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)


@pytest.fixture
def start(tiny_source: Callable[[str], Source]) -> Callable[[str], Model]:
    return lambda family: tiny_models.start(tiny_source(family), ROWS)


def loss_of(model: Model, row: Any) -> torch.Tensor:
    batch = tensors(model.encoder.pad(model.encoder.encode([row.text])))
    return model.task.losses(model.network(**batch), torch.from_numpy(model.task.targets([row])), 0.0)[0]


def gated(model: Model, layer: nn.Module, units: int, row: Any) -> torch.Tensor:
    """|d loss / d gate| of a gate of 1 on every unit of a matrix's input, [units]."""
    gates = torch.ones(units, requires_grad=True)

    def gate(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return (inputs[0].unflatten(-1, (units, -1)) * gates[:, None]).flatten(-2)

    handle = layer.register_forward_pre_hook(gate)
    (gradient,) = torch.autograd.grad(loss_of(model, row), gates)
    handle.remove()
    return gradient.abs()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "t5"])
def test_a_score_is_the_gradient_of_a_gate(family: str, start: Callable[[str], Model]) -> None:
    model = start(family)
    model.network.eval()
    found, dims = measure(model, ROWS), describe(model.network.backbone)
    assert found.rows == len(ROWS)
    for scores, parts in ((found.heads, dims.heads), (found.ffn, dims.ffn)):
        queries = dims.queries if scores is found.heads else 1
        assert [len(part) for part in scores] == [part.size * queries for part in parts]
        if family != "albert":  # whose shared block is measured in every layer apart
            expected = sum(gated(model, parts[-1].outlets[0], len(scores[-1]), row) for row in ROWS) / len(ROWS)
            torch.testing.assert_close(torch.from_numpy(scores[-1]).float(), expected, atol=1e-6, rtol=1e-3)
    assert found.hidden.shape == (32,)
    assert (found.hidden > 0).all()


def test_a_shared_block_counts_in_each_of_its_layers(start: Callable[[str], Model]) -> None:
    model = start("albert")
    model.network.eval()
    found = measure(model, ROWS)
    assert (len(found.ffn), len(found.heads), len(found.blocks)) == (1, 1, 2)
    writer, seen = describe(model.network.backbone).ffn[0].outlets[0], np.zeros((len(ROWS), 2, 48))
    for number, row in enumerate(ROWS):
        inputs: list[torch.Tensor] = []
        handle = writer.register_forward_pre_hook(lambda module, given, inputs=inputs: inputs.append(given[0]))
        gradients = torch.autograd.grad(loss_of(model, row), inputs)
        handle.remove()
        for layer, (value, gradient) in enumerate(zip(inputs, gradients, strict=True)):
            seen[number, layer] = (value * gradient).sum((0, 1)).abs().detach().numpy()
    np.testing.assert_allclose(found.ffn[0], seen.sum(1).mean(0), atol=1e-6, rtol=1e-3)


def test_heads_that_share_positions_are_added_up(start: Callable[[str], Model]) -> None:
    model = start("t5")
    model.network.eval()
    found, dims = measure(model, ROWS), describe(model.network.backbone)
    assert len(found.heads) == 1
    each = [sum(gated(model, outlet, 4, row) for row in ROWS) / len(ROWS) for outlet in dims.heads[0].outlets]
    torch.testing.assert_close(torch.from_numpy(found.heads[0]).float(), each[0] + each[1], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was(family: str, start: Callable[[str], Model]) -> None:
    model = start(family)
    frozen = next(model.network.backbone.parameters()).requires_grad_(False)
    model.network.train()
    before = model.logits(ROWS)
    measure(model, ROWS, leave_out=True)
    assert model.network.training
    assert not frozen.requires_grad
    assert all(item.requires_grad for item in model.network.parameters() if item is not frozen)
    assert all(item.grad is None for item in model.network.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, name) for module in model.network.modules() for name in hooks)
    np.testing.assert_array_equal(model.logits(ROWS), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_without_a_layer_is_that_of_the_model_cut(family: str, start: Callable[[str], Model]) -> None:
    model = start(family)
    without = measure(model, ROWS, leave_out=True).without
    assert without is not None
    rises = [mean_loss(start(family).shrink(make_step(f"depth:layers={1 - layer}"))) - mean_loss(model) for layer in range(2)]
    assert without.argmin() == int(np.argmin(rises))
    assert without.min() == pytest.approx(min(rises), abs=1e-5)


def test_layers_go_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 1 and 3 do the same: the second of them to go costs much more than the first."""
    costs = {0: 0.5, 1: 0.1, 2: 0.3, 3: 0.15}
    tried = []

    def loss(sample: Any, skipped: set[int]) -> float:
        tried.append(skipped)
        return 1.0 + sum(costs[layer] for layer in skipped) + 2.0 * (skipped >= {1, 3})

    monkeypatch.setattr(importance, "_loss_without", loss)
    without = importance._skip_layers(None, 1.0, 4)
    np.testing.assert_allclose(without, [0.9, 0.1, 0.4, 3.05])
    assert len(tried) < 4 + 3 + 2 + 1
    monkeypatch.setattr(importance, "_loss_without", lambda sample, skipped: 1.0 - len(skipped))
    gaining = importance._skip_layers(None, 1.0, 3)
    assert len(set(gaining.tolist())) == 3  # each layer has its own place though every loss falls
    assert gaining.max() < 0


def mean_loss(model: Model) -> float:
    model.network.eval()
    with torch.no_grad():
        return float(torch.stack([loss_of(model, row) for row in ROWS]).mean())


@pytest.mark.parametrize("family", ["gpt2", "llama", "modernbert", "t5"])
def test_a_block_that_writes_nothing_has_no_influence(family: str, start: Callable[[str], Model]) -> None:
    model = start(family)
    dims = describe(model.network.backbone)
    for writer in (dims.ffn[1].outlets[0], [outlet for part in dims.heads for outlet in part.outlets][1]):
        for item in writer.parameters():
            nn.init.zeros_(item)
    found = measure(model, ROWS, leave_out=True)
    assert found.blocks[0] > 1e-3
    assert found.blocks[1] == pytest.approx(0, abs=1e-6)
    assert found.without is not None
    assert found.without.argmin() == 1 or found.without.min() < 0


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "llama"])
def test_padding_and_batches_do_not_count(family: str, start: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(family)
    together = measure(model, ROWS)
    monkeypatch.setattr(importance, "BATCH", 1)
    alone = measure(model, ROWS)
    for name in ("blocks", "hidden"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(np.stack(together.ffn), np.stack(alone.ffn), atol=1e-6, rtol=1e-3)
    np.testing.assert_array_equal(together.tokens, alone.tokens)


def test_tokens_are_counted_in_the_rows_that_are_read(start: Callable[[str], Model]) -> None:
    model = start("bert")
    found = measure(model, ROWS, rows=3)
    read = [ROWS[0], ROWS[4], ROWS[9]]  # spread evenly
    encoded = model.encoder.encode([row.text for row in read])
    assert found.rows == 3
    assert found.tokens.tolist() == np.bincount([token for ids in encoded.ids for token in ids], minlength=64).tolist()
    assert found.tokens.dtype == np.int64


@pytest.mark.parametrize("task", ["pair", "multilabel", "regress"])
def test_every_task(task: str, tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(8, task)
    model = tiny_models.start(tiny_source("bert"), rows, task)
    assert all((scores > 0).any() for scores in measure(model, rows).ffn)


def test_no_rows(start: Callable[[str], Model]) -> None:
    for rows, most in ([], 5), (ROWS, 0):
        with pytest.raises(InputError, match="Importance needs labelled rows, but 0 were given"):
            measure(start("bert"), rows, rows=most)


MADE = Importance(
    blocks=np.array([0.1, 0.6, 0.3]), heads=tuple(np.array([0.5, 0.5, 2.0, 1.0]) for _ in range(3)), ffn=tuple(np.arange(4.0) * part for part in (1, 2, 3)),
    hidden=np.array([1.0, 1, 2]), tokens=np.zeros(5, dtype=np.int64), rows=1, queries=2,
)  # fmt: skip


def test_damage_is_the_share_that_goes() -> None:
    assert damage(MADE) == damage(MADE, layers=3, heads=4, ffn=4, hidden=3) == 0
    assert shares(MADE, layers=2) == pytest.approx({"layers": 0.1, "heads": 0, "ffn": 0, "hidden": 0})
    assert damage(MADE, heads=2) == pytest.approx(1 / 4)  # two query heads of each unit
    assert damage(MADE, ffn=2) == pytest.approx(1 / 6)
    assert damage(MADE, hidden=1) == pytest.approx(1 / 2)
    assert damage(MADE, layers=2, ffn=2, heads=2, hidden=2) == pytest.approx(0.1 + 1 / 6 + 1 / 4 + 1 / 4)
    measured = dataclasses.replace(MADE, without=np.array([3.0, 4.0, 1.0]))
    assert [damage(measured, layers=layers) for layers in (3, 2, 1)] == [0, 0.25, 0.75]
    assert shares(measured, layers=1, ffn=3)["ffn"] == pytest.approx(0 / 12)
    assert shares(measured, layers=1, ffn=2)["ffn"] == pytest.approx(2 / 12)  # of the layer that stays, the second
    steps = [damage(MADE, layers=layers, ffn=ffn) for layers, ffn in ((3, 3), (2, 3), (2, 2), (1, 1))]
    assert steps == sorted(steps)


def test_damage_of_a_shared_block_and_of_what_never_matters() -> None:
    shared = dataclasses.replace(MADE, ffn=(np.array([1.0, 3.0]),), heads=(np.zeros(4),))
    assert shares(shared, layers=1, ffn=1, heads=2) == pytest.approx({"layers": 0.4, "heads": 0, "ffn": 0.25, "hidden": 0})
