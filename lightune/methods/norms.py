"""Norms: only the scales and biases of normalisation layers are trained (Zhao et al. 2024, "Tuning LayerNorm in attention")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lightune import architectures


@dataclass(frozen=True)
class Norms:
    """The scales and biases of every norm are trained."""

    rate: ClassVar[float] = 3e-3

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Unfreeze the parameters of every norm."""
        for part in architectures.norms(backbone):
            part.requires_grad_(True)
        return backbone
