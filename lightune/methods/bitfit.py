"""BitFit: only the bias terms are trained (Ben Zaken et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lightune.errors import InputError


@dataclass(frozen=True)
class BitFit:
    """Every bias of the base is trained, norms' biases included."""

    rate: ClassVar[float] = 3e-3

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Unfreeze the biases.

        Raises:
            InputError: the base has no bias at all (Llama-like models).
        """
        biases = [item for name, item in backbone.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
        if not biases:
            raise InputError(f"{type(backbone).__name__} has no bias terms, so bitfit has nothing to train. Use lora.")
        for item in biases:
            item.requires_grad_(True)
        return backbone
