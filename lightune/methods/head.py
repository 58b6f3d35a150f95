"""Head only: the base stays as it is, a linear head is trained on its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True)
class Head:
    """Nothing of the base is trained."""

    rate: ClassVar[float] = 5e-3

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Leave the base frozen."""
        return backbone
