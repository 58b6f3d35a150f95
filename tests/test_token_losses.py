"""The chunked loss equals torch's own cross entropy, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightune import token_losses as module
from lightune.token_losses import token_losses


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_losses_and_gradients_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, bias: bool, frozen: bool) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    torch.manual_seed(0)
    hidden = torch.randn(11, 6, requires_grad=True)
    weight, shift = torch.randn(23, 6, requires_grad=not frozen), torch.randn(23, requires_grad=not frozen) if bias else None
    labels, importance = torch.randint(0, 23, (11,)), torch.rand(11)
    found = []
    for own in (True, False):
        if own:
            losses = token_losses(hidden, weight, shift, labels)
        else:
            losses = functional.cross_entropy(functional.linear(hidden, weight, shift), labels, reduction="none")
        (losses * importance).sum().backward()
        parts = [item for item in (hidden, weight, shift) if item is not None and item.requires_grad]
        found.append([losses.detach(), *(item.grad.clone() for item in parts)])
        for item in parts:
            item.grad = None
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_no_supervised_token_gives_no_loss() -> None:
    hidden, weight = torch.zeros(0, 6, requires_grad=True), torch.randn(23, 6)
    losses = token_losses(hidden, weight, None, torch.zeros(0, dtype=torch.int64))
    losses.sum().backward()
    assert losses.shape == (0,)
    assert hidden.grad is not None


def test_under_autocast_it_computes_in_bf16() -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(5, 64, requires_grad=True), torch.randn(40, 64), torch.randint(0, 40, (5,))
    plain = token_losses(hidden, weight, None, labels)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = token_losses(hidden, weight, None, labels)
    assert coarse.dtype == torch.float32
    assert not torch.equal(plain, coarse)
    assert torch.allclose(plain, coarse, atol=0.3)
