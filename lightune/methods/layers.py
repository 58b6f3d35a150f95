"""What methods put around a weight matrix of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError


class Around(nn.Module):
    """A layer in the place of a weight matrix, `base`, whose weight and bias it shows: some models look at them."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        """The matrix inside."""
        inner: Any = self.base
        return inner.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias inside."""
        inner: Any = self.base
        return inner.bias


def surround(backbone: nn.Module, new: Mapping[nn.Module, Around]) -> None:
    """Put every one of these in the place of its matrix.

    Raises:
        InputError: a matrix that another method has surrounded: the two could not be folded one after the other.
    """
    inside = {part.base for part in backbone.modules() if isinstance(part, Around)}
    if not inside.isdisjoint(new):
        raise InputError("The model carries another method's parts around the same matrices. Merge it first, or start from its base.")
    architectures.exchange(backbone, new)
