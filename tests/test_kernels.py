from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch
from torch import nn
from torch.nn import functional

from lightune.kernels import SHORT, Dropout, attend, drop, keep_mask, replace_dropout
from lightune.models import load_backbone
from lightune.sources import Source


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mask_keeps_the_share_that_its_scale_says(rate: float) -> None:
    torch.manual_seed(0)
    mask, scale = keep_mask(torch.empty(317, 1001), rate)
    assert mask.shape == (317, 1001)
    assert mask.dtype == torch.bool
    assert 1 / scale == pytest.approx(1 - rate, abs=1 / 512)
    assert mask.float().mean().item() == pytest.approx(1 / scale, abs=0.004)
    assert abs(torch.corrcoef(torch.stack([mask[:, :-1].flatten(), mask[:, 1:].flatten()]).float())[0, 1]) < 0.01


def test_dropout_keeps_the_mean_and_drops_the_gradient_with_the_value() -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 400, requires_grad=True)
    y = drop(x, 0.25, True)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    (y * 3).sum().backward()
    torch.testing.assert_close(x.grad, y.detach() * 3)


def test_dropout_repeats_with_the_seed_and_rests_outside_training() -> None:
    x = made(8, 9)
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("masked", [None, "bool", "float"])
@pytest.mark.parametrize("length", [7, SHORT, SHORT + 1])
def test_attention_equals_torchs_own(length: int, masked: str | None) -> None:
    query, key, value = (made(2, 3, length, 8, seed=seed).requires_grad_() for seed in range(3))
    mask = None
    if masked:
        mask = torch.ones(2, 1, length, length, dtype=torch.bool)
        mask[1, :, :, length // 2 :] = False
        mask = mask if masked == "bool" else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    module = nn.Module()
    module.is_causal = False
    found, _ = attend(module, query, key, value, mask, scaling=0.3)
    expected = functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = made(2, length, 3, 8, seed=9)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (query, key, value)),
        torch.autograd.grad((expected * weight).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_causal_and_grouped_attention_are_left_to_torch() -> None:
    module = nn.Module()
    module.is_causal = True
    query, key, value = (made(1, 2, 5, 4, seed=seed) for seed in range(3))
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(attend(module, query, key, value, None)[0], expected)
    module.is_causal, module.num_key_value_groups = False, 2
    shared = functional.scaled_dot_product_attention(query, key[:, :1].expand_as(key), value[:, :1].expand_as(value)).transpose(1, 2)
    torch.testing.assert_close(attend(module, query, key[:, :1], value[:, :1], None)[0], shared)


def test_attention_drops_weights_in_training_alone() -> None:
    module = nn.Module()
    query, key, value = (made(1, 2, 6, 4, seed=seed) for seed in range(3))
    assert torch.equal(attend(module, query, key, value, None, dropout=0.0)[0], attend(module, query, key, value, None)[0])
    torch.manual_seed(0)
    means = torch.stack([attend(module, query, key, value, None, dropout=0.5)[0] for _ in range(1000)]).mean(0)
    torch.testing.assert_close(means, attend(module, query, key, value, None)[0], atol=0.2, rtol=0)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_dropout_can_be_set_in_every_family(family: str, tiny_source: Callable[[str], Source]) -> None:
    backbone = load_backbone(tiny_source(family)).train()
    ids = torch.full((2, 8), 9)
    run = lambda: backbone(input_ids=ids).last_hidden_state
    replace_dropout(backbone, 0.0)
    with torch.no_grad():
        assert torch.equal(run(), run())
        replace_dropout(backbone, 0.4)
        assert not torch.equal(run(), run())
        backbone.eval()
        assert torch.equal(run(), run())


def test_a_methods_own_dropout_is_left_alone(tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(4)
    model = tiny_models.start(tiny_source("bert"), rows, method="lora:dropout=0.3")
    replace_dropout(model.network.backbone, 0.1)
    rates = {name.rsplit(".", 1)[-1]: part.p for name, part in model.network.backbone.named_modules() if isinstance(part, nn.Dropout)}
    assert rates == {"drop": 0.3, "dropout": 0.1}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_a_base_with_our_attention_answers_as_with_torchs(family: str, tiny_source: Callable[[str], Source]) -> None:
    backbone = load_backbone(tiny_source(family)).eval()
    ids, mask = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(0)), torch.ones(3, 12, dtype=torch.int64)
    mask[0, 5:] = 0
    with torch.no_grad():
        ours = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        assert backbone.config._attn_implementation == "lightune"
        backbone.set_attn_implementation("sdpa")
        theirs = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=1e-4)
