"""Arithmetic of what was learned: several models of one base become one, by what each of them changed.

A model's change is what training added to the weights of the base (Ilharco et al. 2023, section 2: task vectors), whatever method added it:
LoRA and the like are folded in first. Changes can be added, scaled and subtracted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightune.errors import InputError, unknown
from lightune.exporting import fold
from lightune.models import Merged, Model, load_base

Combine = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]


def add_up(changes: Tensor, weights: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """The weighted sum of changes [m, ...]."""
    return torch.tensordot(weights, changes, dims=1)


def trim_and_elect(changes: Tensor, weights: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """TIES (Yadav et al. 2023, algorithm 1): of each change the largest entries stay; where they differ in sign, the heavier side's mean counts."""
    weighted = changes * weights.view(-1, *[1] * (changes.ndim - 1))
    kept = torch.stack([_largest(change, density) for change in weighted])
    agrees = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return (kept * agrees).sum(0) / agrees.sum(0).clamp(min=1) * len(weights)


def drop_and_rescale(changes: Tensor, weights: Tensor, density: float, draw: torch.Generator) -> Tensor:
    """DARE (Yu et al. 2024, section 3.1): entries are dropped at random and the others made larger, then the changes are added."""
    kept = torch.rand(changes.shape, generator=draw) < density
    return add_up(changes * kept / density, weights, density, draw)


WAYS: dict[str, Combine] = {"linear": add_up, "ties": trim_and_elect, "dare": drop_and_rescale}


def blend(models: Sequence[Model], *, weights: Sequence[float] = (), how: str = "linear", density: float = 0.2, seed: int = 0) -> Model:
    """One model from several of the same base and the same labels; its head is the mean of theirs.

    Args:
        weights: how much each change counts; the same for all, together one, by default. A negative one takes a change away.
        how: linear, ties or dare. density: share of the entries that ties and dare keep.

    Raises:
        InputError: fewer than two models, other bases, labels or shapes, or weights that do not fit.
    """
    factors = _check(models, weights, how, density)
    whole = [fold(model) for model in models]
    base = load_base(models[0].base)
    draw = torch.Generator().manual_seed(seed)
    network: Any = copy.deepcopy(whole[0].network)
    plain = base.state_dict()
    states = [model.network.backbone.state_dict() for model in whole]
    if any(
        {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in plain.items()} for state in states
    ):
        raise InputError("These models no longer have the shape of their base: what shrinking or added parts changed cannot be blended.")
    with torch.no_grad():
        for name, value in network.backbone.state_dict().items():
            if value.is_floating_point():
                changes = torch.stack([state[name] - plain[name] for state in states])
                value.copy_(plain[name] + WAYS[how](changes, factors, density, draw))
        shares = factors / factors.sum() if float(factors.sum()) > 0 else torch.full_like(factors, 1 / len(factors))
        for name, value in network.head.state_dict().items():
            value.copy_(torch.tensordot(shares, torch.stack([model.network.head.state_dict()[name] for model in whole]), dims=1))
    names = tuple(f"{how}({factor:.4g})" for factor in factors.tolist())
    return Model(network.requires_grad_(True).eval(), models[0].task, models[0].encoder, models[0].base, (Merged(names),))


def _check(models: Sequence[Model], weights: Sequence[float], how: str, density: float) -> Tensor:
    """The weight of each model, float32 [m]."""
    if len(models) < 2:
        raise InputError(f"{len(models)} model was given to blend, expected two or more of one base.")
    if how not in WAYS:
        raise unknown("way to blend", how, WAYS)
    if weights and len(weights) != len(models):
        raise InputError(f"{len(weights)} weights were given for {len(models)} models. Give one for each.")
    if not 0 < density <= 1:
        raise InputError(f"density is {density!r}, expected a share above 0, at most 1.")
    first = models[0]
    for model in models[1:]:
        if model.base.sha256 != first.base.sha256:
            raise InputError(f"The models stand on different bases: {first.base.name} and {model.base.name}. Blend models of one base.")
        if (model.answers.kind, model.answers.labels) != (first.answers.kind, first.answers.labels):
            raise InputError(
                "The models have different labels. Train them on the same labels, and blend what they learned from different data."
            )
    return torch.tensor(list(weights) or [1 / len(models)] * len(models), dtype=torch.float32)


def _largest(change: Tensor, density: float) -> Tensor:
    """A change with all but its largest entries set to zero."""
    count = max(1, round(density * change.numel()))
    least = change.abs().flatten().kthvalue(change.numel() - count + 1).values
    return change * (change.abs() >= least)
