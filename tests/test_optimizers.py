from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import tiny_models
import torch
from torch import nn

from lightune.errors import InputError
from lightune.networks import Network
from lightune.optimizers import LAZY, OPTIMIZERS, Optimizer, rate_share
from lightune.sources import Source

ROWS = tiny_models.make_rows(16)


@pytest.fixture
def network(tiny_source: Callable[[str], Source]) -> Network:
    torch.set_num_threads(1)
    return tiny_models.start(tiny_source("bert"), ROWS).network.eval()


def loss_of(network: Network) -> torch.Tensor:
    ids = torch.arange(5, 45).view(4, 10)
    return nn.functional.cross_entropy(network(input_ids=ids), torch.tensor([0, 1, 2, 0]))


def changed(network: Network, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, item in network.named_parameters() if not torch.equal(item, before[name])}


def copied(network: Network) -> dict[str, torch.Tensor]:
    return {name: item.detach().clone() for name, item in network.named_parameters()}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_torch_takes_steps_downhill_and_goes_on_from_its_state(name: str, network: Network) -> None:
    optimizer = Optimizer(name, network, 1e-3, 0.01)
    first = loss_of(network)
    for _ in range(3):
        loss_of(network).backward()
        optimizer.step()
    assert loss_of(network) < first
    assert all(item.grad is None for item in network.parameters())
    kept, weights = {key: value.clone() for key, value in optimizer.state().items()}, copied(network)
    ends = []
    for _ in range(2):
        with torch.no_grad():
            for title, item in network.named_parameters():
                item.copy_(weights[title])
        again = Optimizer(name, network, 1e-3, 0.01)
        again.restore({key: value.clone() for key, value in kept.items()})
        loss_of(network).backward()
        again.step()
        ends.append(copied(network))
    with torch.no_grad():
        for title, item in network.named_parameters():
            item.copy_(weights[title])
    loss_of(network).backward()
    optimizer.step()
    assert changed(network, ends[0]) == changed(network, ends[1]) == set()


@pytest.mark.parametrize("name", sorted(LAZY))
def test_lazy_rows_equal_the_whole_table_on_rows_that_every_step_touches(name: str, network: Network) -> None:
    table = network.backbone.embeddings.word_embeddings
    start, ends = copied(network), {}
    for lazy in (False, True):
        with torch.no_grad():
            for title, item in network.named_parameters():
                item.copy_(start[title])
        table.sparse = False
        optimizer = Optimizer(name if lazy else f"{name}:eps=1e-08", network, 1e-3, 0.1)  # one with options of its own moves whole tables
        assert table.sparse == lazy
        for _ in range(4):
            loss_of(network).backward()
            optimizer.clip(1.0)
            optimizer.step()
        ends[lazy] = copied(network)
    for title, item in ends[False].items():
        if not title.endswith("key.bias"):  # whose gradient is nothing but rounding
            torch.testing.assert_close(ends[True][title], item, atol=5e-5, rtol=0, msg=title)  # of steps of 1e-3; the ε differs
    rows = (ends[True]["backbone.embeddings.word_embeddings.weight"] != start["backbone.embeddings.word_embeddings.weight"]).any(1)
    assert rows.nonzero()[:, 0].tolist() == list(range(5, 45))  # and no other row


def test_lazy_rows_stand_aside_for_frozen_shared_and_tuned_tables(network: Network) -> None:
    table = network.backbone.embeddings.word_embeddings
    assert len(Optimizer("sgd", network, 1e-3, 0.0).parts) == 1
    assert len(Optimizer("adamw:eps=1e-6", network, 1e-3, 0.0).parts) == 1
    table.weight.requires_grad_(False)
    assert len(Optimizer("adamw", network, 1e-3, 0.0).parts) == 1
    table.weight.requires_grad_(True)
    network.tied = nn.Linear(32, 64, bias=False)
    network.tied.weight = table.weight
    assert len(Optimizer("adamw", network, 1e-3, 0.0).parts) == 1
    assert not table.sparse


def test_decay_spares_norms_biases_and_embeddings(network: Network) -> None:
    optimizer = Optimizer("adamw", network, 1e-3, 0.3)
    decays = {id(item): group["weight_decay"] for group in optimizer.parts[0].param_groups for item in group["params"]}
    decayed = {name for name, item in network.named_parameters() if decays.get(id(item)) == 0.3}
    matrices = {name for name, item in network.named_parameters() if item.ndim == 2 and "embeddings" not in name}
    assert decayed == matrices
    assert "head.weight" in decayed
    assert set(decays.values()) == {0.3, 0.0}


@pytest.mark.parametrize("lazy", [False, True])
def test_clipping_scales_the_whole_gradient(lazy: bool, network: Network) -> None:
    optimizer = Optimizer("adamw" if lazy else "sgd", network, 1e-3, 0.0)
    assert len(optimizer.tables) == lazy
    loss_of(network).backward()
    dense = {name: item.grad.to_dense().clone() for name, item in network.named_parameters() if item.grad is not None}
    norm = math.sqrt(sum(float((grad.double() ** 2).sum()) for grad in dense.values()))
    assert optimizer.clip(0.0) == pytest.approx(norm, rel=1e-5)
    assert optimizer.clip(norm * 2) == pytest.approx(norm, rel=1e-5)
    assert optimizer.clip(norm / 4) == pytest.approx(norm, rel=1e-5)
    for name, item in network.named_parameters():
        if item.grad is not None:
            torch.testing.assert_close(item.grad.to_dense(), dense[name] / 4, rtol=1e-5, atol=1e-9)


def test_names_and_options_that_do_not_exist_are_told(network: Network) -> None:
    with pytest.raises(InputError, match=r"Unknown optimizer 'adamm'.*Did you mean"):
        Optimizer("adamm", network, 1e-3, 0.0)
    with pytest.raises(InputError, match=r"The optimizer 'sgd:momentun=0.9' is not possible: .*momentun.*See torch.optim.SGD"):
        Optimizer("sgd:momentun=0.9", network, 1e-3, 0.0)
    with pytest.raises(InputError, match=r"Unknown optimizer 'lbfgs'"):
        Optimizer("lbfgs", network, 1e-3, 0.0)


def test_rates_rise_and_fall_as_their_schedules_say() -> None:
    shares = {
        name: [rate_share(name, step, 100, 10) for step in range(100)]
        for name in ("linear", "cosine", "constant", "inverse_sqrt", "plateau")
    }
    for values in shares.values():
        assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert values[10] == pytest.approx(1, abs=0.05)
    assert shares["linear"][55] == pytest.approx(0.5)
    assert shares["cosine"][55] == pytest.approx(0.5)
    assert shares["cosine"][32] == pytest.approx(0.5 * (1 + math.cos(math.pi * 22 / 90)))
    assert shares["inverse_sqrt"][39] == pytest.approx(math.sqrt(10 / 40))
    assert set(shares["constant"][10:]) == set(shares["plateau"][10:]) == {1.0}
    assert shares["linear"][99] > 0 < shares["cosine"][99]
    assert rate_share("linear", 0, 1, 0) == 1.0
    assert rate_share("linear", 5, 5, 0) == 0.0
