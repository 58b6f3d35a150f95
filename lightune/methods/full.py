"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True)
class Full:
    """Every weight of the base is trained."""

    rate: ClassVar[float] = 1e-4

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Unfreeze everything."""
        return backbone.requires_grad_(True)
