"""Magnitude: single weights become zero. No runtime here runs zeros faster, and a file is smaller only once it is compressed.

The smallest weights of every matrix inside the blocks go (Han et al. 2015, section 3), or the smallest of every few (Mishra et al. 2021:
2 of 4), which some accelerators can skip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightune import architectures
from lightune.errors import InputError
from lightune.networks import Network
from lightune.options import check, option

PATTERNS = ("any", "2of4", "4of8")


@dataclass(frozen=True)
class Magnitude:
    """Zeros among the weights; no faster here."""

    keep: float = option(0.5, "share of the weights that stay", above=0, high=1)
    pattern: str = option(
        "any", "any: the largest of a matrix; 2of4, 4of8: as many of every few inputs, whatever keep says", choices=PATTERNS
    )

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Magnitude:
        """Itself: what goes is decided by the weights alone."""
        return self

    def narrow(self, importance: Any) -> Any:
        """The importance itself: no unit goes."""
        return importance

    def apply(self, network: Network) -> Network:
        """Set weights of every matrix inside the blocks to zero.

        Raises:
            InputError: a matrix whose width the pattern does not divide.
        """
        layers = {id(layer): layer for block in architectures.blocks(network.backbone) for _, layer in architectures.linears(block)}
        with torch.no_grad():
            for layer in layers.values():
                weight: Any = layer.weight
                weight.mul_(self._mask(weight))
        return network

    def _mask(self, weight: Tensor) -> Tensor:
        """Which weights stay: bool, as the weight."""
        if self.pattern == "any":
            count = max(1, round(self.keep * weight.numel()))
            return weight.abs() >= weight.abs().flatten().kthvalue(weight.numel() - count + 1).values
        stay, group = (int(number) for number in self.pattern.split("of"))
        if weight.shape[1] % group:
            raise InputError(f"magnitude:pattern {self.pattern} does not divide a matrix of width {weight.shape[1]}. Use pattern=any.")
        groups = weight.abs().unflatten(1, (-1, group))
        chosen = groups.topk(stay, dim=-1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, chosen, True).flatten(1)
