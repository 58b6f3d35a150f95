"""Quantization-aware training: while a network learns, its matrices are seen as they will be exported.

Every forward pass reads weights that were rounded to their grid; gradients pass the rounding as if it were not there (Jacob et al. 2018,
section 3; straight-through, Bengio et al. 2013). Afterwards the weights lie on the grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.grids import WEIGHT_LEVELS, Grid, Rounded, fit_grid
from lightune.networks import Network
from lightune.precision import Precision


class RoundedByRow(nn.Module):
    """A weight with one scale for each output, 8 bits: the scale follows the row's largest value, as an export chooses it."""

    def __init__(self, across: int) -> None:
        super().__init__()
        self.across = across  # the dimension of a row's values

    def forward(self, weight: Tensor) -> Tensor:
        """[m, n] → [m, n]."""
        with torch.no_grad():
            scale = weight.abs().amax(self.across, keepdim=True).clamp(min=1e-12) / WEIGHT_LEVELS
            away = (weight / scale).round() * scale - weight
        return weight + away


class RoundedToGrid(nn.Module):
    """A weight on a grid of 4 bits that stays as it was when training began."""

    steps: Tensor

    def __init__(self, weight: Tensor, across: int, grid: Grid) -> None:
        super().__init__()
        steps = torch.from_numpy(grid.steps(weight.shape[across])).to(weight.device)
        self.low, self.high = grid.low, grid.high
        self.register_buffer("steps", steps if across == 1 else steps.T, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """[m, n] → [m, n]."""
        with torch.no_grad():
            away = (weight / self.steps).round().clamp(self.low, self.high) * self.steps - weight
        return weight + away


@contextmanager
def simulated(network: Network, precision: Precision, known: Mapping[str, Rounded] | None = None) -> Iterator[dict[str, Grid]]:
    """The network with the matrices inside its blocks rounded as a precision rounds them; at the end they hold the rounded values.

    Parameters have other names meanwhile, so what trains the network must be made and end inside.

    Args:
        known: where matrices of 4 bits begin, by the name of the weight; the others on the grid that is best for them.

    Yields:
        The grids of the matrices of 4 bits, by the name of the weight: an export that knows them changes nothing more.
    """
    if precision.weights == 32:
        yield {}
        return
    names = {id(layer): f"backbone.{name}" for name, layer in architectures.linears(network.backbone)}
    layers: dict[int, Any] = {
        id(layer): layer for block in architectures.blocks(network.backbone) for _, layer in architectures.linears(block)
    }
    changed, grids = [], {}
    for key, layer in layers.items():
        name, across = f"{names[key]}.weight", 0 if isinstance(layer, Conv1D) else 1
        bits = precision.bits(name)
        if bits == 4:
            grids[name] = _begin(layer.weight, across, (known or {}).get(name))
        if bits < 32:
            rounding = RoundedByRow(across) if bits == 8 else RoundedToGrid(layer.weight, across, grids[name])
            parametrize.register_parametrization(layer, "weight", rounding)
            changed.append(layer)
    try:
        yield grids
    finally:
        for layer in changed:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _begin(weight: Tensor, across: int, known: Rounded | None) -> Grid:
    """The grid of a matrix of 4 bits, which gets the values that are known for it."""
    if known is None:
        rows = weight if across == 1 else weight.T
        return fit_grid(rows.detach().cpu().float().numpy(), 4)
    restored = torch.from_numpy(known.grid.restore(known.values))
    with torch.no_grad():
        weight.copy_(restored if across == 1 else restored.T)
    return known.grid
