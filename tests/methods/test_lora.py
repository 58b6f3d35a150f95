"""LoRA's options: scales, starts, rates, ranks shared by importance, a quantized base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightune import models
from lightune.architectures import share_of
from lightune.errors import InputError
from lightune.methods import make_method
from lightune.methods.allocation import share_ranks
from lightune.methods.lowrank import LowRank
from lightune.methods.quantized import NF4, Quantized
from lightune.optimizers import Optimizer
from lightune.preparation import prepare
from lightune.recipes import resolve
from lightune.sources import Source

ROWS = tiny_models.make_rows(12)


def start(source: Source, spec: str) -> models.Model:
    return tiny_models.start(source, ROWS, method=spec, max_length=16)


def test_it_scales_its_change_as_its_papers_say() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])

    assert make_method("lora:rank=4,alpha=8").apply(Base()).layers[0][0].scale == 2.0
    assert make_method("lora:rank=4,alpha=8,rslora=true").apply(Base()).layers[0][0].scale == 4.0


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa"])
def test_every_start_is_where_the_base_is(init: str, family: str, tiny_source: Callable[[str], Source]) -> None:
    plain, model = start(tiny_source(family), "head"), start(tiny_source(family), f"lora:rank=4,init={init}")
    np.testing.assert_allclose(model.logits(ROWS), plain.logits(ROWS), atol=1e-5)
    layers = [part for part in model.network.modules() if isinstance(part, LowRank)]
    assert all(layer.product().abs().max() > 1e-4 for layer in layers) is (init == "pissa")
    assert all(layer.up.abs().max() > 1e-4 for layer in layers) is (init != "gaussian")


def test_pissa_takes_the_largest_part_of_the_weight(tiny_source: Callable[[str], Source]) -> None:
    before = start(tiny_source("bert"), "head").network.backbone.encoder.layer[0].attention.self.query.weight.detach()
    layer = start(tiny_source("bert"), "lora:rank=3,init=pissa").network.backbone.encoder.layer[0].attention.self.query
    values = torch.linalg.svdvals(before)
    torch.testing.assert_close(torch.linalg.svdvals(layer.product().float())[:3], values[:3])
    torch.testing.assert_close(torch.linalg.svdvals(layer.base.weight.detach())[0], values[3])


def test_pissa_is_saved_whole(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = start(tiny_source("bert"), "lora:rank=2,init=pissa")
    again = models.load(model.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.logits(ROWS), model.logits(ROWS))
    small = start(tiny_source("bert"), "lora:rank=2").save(tmp_path / "small")
    assert (small / "weights.safetensors").stat().st_size < (tmp_path / "model" / "weights.safetensors").stat().st_size / 3


def test_what_does_not_fit_is_refused(tiny_source: Callable[[str], Source]) -> None:
    for spec, told in (
        ("lora:rank=3,init=orthogonal", "halves the rank, which is 3. Give an even one"),
        ("lora:rank=99,init=pissa", "cannot take 99 of the 32 singular values"),
        ("lora:ranks=1+2", "ranks has 2 numbers for 12 layers"),
        ("lora:allocate=true", "allocate must see the data first"),
    ):
        with pytest.raises(InputError, match=told):
            start(tiny_source("bert"), spec)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rprop"])
def test_the_second_matrix_has_its_own_rate(optimizer: str, tiny_source: Callable[[str], Source]) -> None:
    model = start(tiny_source("bert"), "lora:up_rate=16")
    made = Optimizer(optimizer, model.network, 1e-3, 0.01, model.changes[-1].rate_multiple)
    names = {id(item): name for name, item in model.network.named_parameters()}
    for rate in (1e-3, 4e-4):
        made.set_rate(rate)
        rates = {names[id(item)]: group["lr"] for part in made.parts for group in part.param_groups for item in group["params"]}
        assert set(rates) == set(model.trainable())
        for name, value in rates.items():
            assert value == pytest.approx(16 * rate if name.endswith(".up") else rate)


def test_ranks_go_to_the_largest_values() -> None:
    values = [torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([5.0, 0.3, 0.2, 0.1]), torch.tensor([1.0, 0.5, 0.4])]
    assert share_ranks(values, 2) == (4, 1, 1)
    assert share_ranks(values, 3) == (4, 2, 3)
    assert share_ranks([torch.arange(40.0).flip(0), torch.zeros(40)], 2) == (3, 1)


def test_shared_ranks_are_planned_on_the_data_and_replayed_without(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    rows = [{"text": row.text, "label": row.target} for row in tiny_models.make_rows(60)]
    recipe = resolve({}, {"model": str(tiny_source("bert").folder), "method": "lora:rank=3,allocate=true", "max_length": 16})
    model = prepare(recipe, rows).model
    ranks = model.changes[-1].ranks
    assert (len(ranks), sum(ranks)) == (12, 36)
    assert min(ranks) >= 1
    assert len(set(ranks)) > 1
    assert tuple(len(part.down) for part in model.network.modules() if isinstance(part, LowRank)) == ranks
    assert all(item.grad is None for item in model.network.parameters())
    assert prepare(recipe, rows).model.changes == model.changes
    again = models.load(model.save(tmp_path / "model"))
    assert again.changes == model.changes
    np.testing.assert_array_equal(again.logits(ROWS), model.logits(ROWS))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_a_quantized_matrix_is_the_nearest_and_gives_the_same_gradient(kind: Any, bits: int) -> None:
    torch.manual_seed(0)
    layer = kind(33, 48) if kind is nn.Linear else kind(48, 33)
    small = Quantized(layer, bits)
    error, weight = (small.weight - layer.weight).abs(), layer.weight
    rows = weight.T if kind is Conv1D else weight
    if bits == 8:
        assert (small.rows() - rows).abs().le(small.scales / 2 * 1.001).all()
    else:
        gaps = torch.tensor(NF4).diff()
        assert error.max() <= small.scales.max() * gaps.max() / 2 * 1.001
        assert small.codes.numel() == -(-rows.numel() // 64) * 32
    x = torch.randn(2, 5, 33, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda item: kept.append(item) or item, lambda item: item):
        given = small(x)
    assert all(item.numel() < weight.numel() for item in kept)
    plain = small.restore()
    torch.testing.assert_close(given, plain(x))
    (ours,) = torch.autograd.grad(given.square().sum(), x)
    (theirs,) = torch.autograd.grad(plain(x).square().sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("base", ["int8", "int4"])
def test_a_quantized_base_is_small_and_counts_whole(base: str, tiny_source: Callable[[str], Source]) -> None:
    plain, model = start(tiny_source("bert"), "lora"), start(tiny_source("bert"), f"lora:base={base}")
    assert share_of(model.network) == share_of(plain.network)
    held = [
        sum(item.numel() * item.element_size() for item in found.network.backbone.encoder.state_dict().values()) for found in (plain, model)
    ]
    assert held[1] < 0.65 * held[0]  # the thin matrices are a third of so small a model
    assert 0 < np.abs(model.logits(ROWS) - plain.logits(ROWS)).max() < (0.02 if base == "int8" else 0.3)
