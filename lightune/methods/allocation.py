"""Ranks by importance: the layers share a sum of ranks by what their gradients on the data say.

AdaLoRA (Zhang et al. 2023) ranks the singular directions of all layers together while it trains and drops the least. Here the directions are those
of the gradient before training, known from one pass, so that the structure is fixed from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROWS, BATCH = 256, 32  # examples that are looked at, and how many at once
MOST = 4  # times the mean rank that one layer may get


def singular_values(model: Any, examples: Sequence[Any], layers: Sequence[nn.Module]) -> list[Tensor]:
    """Of every layer the singular values, largest first, of the loss's gradient by its weight, over the first examples."""
    rows = list(examples[:ROWS])
    network: Any = model.network
    weights: list[Any] = [layer.weight for layer in layers]
    training, free = network.training, [item.requires_grad for item in network.parameters()]
    network.eval().requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    encoded, targets = model.encoder.encode([row.text for row in rows], [row.pair for row in rows]), model.task.targets(rows)
    total = [torch.zeros_like(weight) for weight in weights]
    for begin in range(0, len(rows), BATCH):
        places = list(range(begin, min(begin + BATCH, len(rows))))
        batch = {name: torch.from_numpy(value).to(weights[0].device) for name, value in model.encoder.pad(encoded, places).items()}
        losses = model.task.losses(network(**batch), torch.from_numpy(targets[places]).to(weights[0].device), 0.0)
        for sum_, gradient in zip(total, torch.autograd.grad(losses.sum(), weights), strict=True):
            sum_ += gradient
    network.train(training)
    for item, was in zip(network.parameters(), free, strict=True):
        item.requires_grad_(was)
    return [torch.linalg.svdvals(gradient) for gradient in total]


def share_ranks(values: Sequence[Tensor], mean: int) -> tuple[int, ...]:
    """Every layer's rank: at least one, the others go to the largest singular values of all; their mean is `mean`."""
    most = [min(MOST * mean, len(found)) for found in values]
    ranks = [1] * len(values)
    order = sorted(((float(value), layer) for layer, found in enumerate(values) for value in found[1 : most[layer]]), reverse=True)
    for _, layer in order[: (mean - 1) * len(values)]:
        ranks[layer] += 1
    return tuple(ranks)
