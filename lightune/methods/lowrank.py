"""The layers of LoRA: a frozen weight matrix with a trained product of two thin ones beside it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.errors import InputError
from lightune.kernels import Dropout
from lightune.methods.layers import Around
from lightune.methods.quantized import Quantized


class LowRank(Around):
    """base(x) + scale · up(down(drop(x))), x [..., n], down [r, n], up [m, r]; the product starts at zero (Hu et al. 2022, equation 3)."""

    own_dropout = True  # the dropout inside the base is set apart from the method's

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        columns, rows = architectures.features(base)
        self.scale = scale
        self.drop = Dropout(dropout)
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        return self.base(x) + self.change(x)

    def change(self, x: Tensor) -> Tensor:
        """What the product adds, [..., n] → [..., m]."""
        return nn.functional.linear(nn.functional.linear(self.drop(x), self.down), self.up) * self.scale

    def product(self) -> Tensor:
        """The change of the weight, float64 [m, n]."""
        return self.up.double() @ self.down.double() * self.scale

    def whole(self) -> Tensor:
        """The weight that the layer amounts to, float64 [m, n]."""
        return rows_of(self.base).double() + self.product()

    def fold(self) -> nn.Module:
        """The base layer with the weight that this layer amounts to; a quantized one becomes a plain one."""
        whole = self.whole()
        base: Any = self.base.restore() if isinstance(self.base, Quantized) else self.base
        with torch.no_grad():
            base.weight.copy_(whole.T if isinstance(base, Conv1D) else whole)
        return base


class Decomposed(LowRank):
    """DoRA: the whole weight's rows keep their direction alone, and a trained `magnitude` [m] (Liu et al. 2024, equation 5).

    Their norms count as constants in the gradient (section 4.3 there).
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        self.magnitude = nn.Parameter(self.norms())

    def reset_magnitude(self) -> None:
        """Take the norms of the weights as they are now."""
        with torch.no_grad():
            self.magnitude.copy_(self.norms())

    def norms(self) -> Tensor:
        """The norm of every row of the whole weight, float32 [m]."""
        with torch.no_grad():
            return (rows_of(self.base) + (self.up @ self.down) * self.scale).norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        plain, gain = self.base(x), self.magnitude / self.norms()
        unbiased = plain if self.bias is None else plain - self.bias
        return plain + (gain - 1) * unbiased + gain * self.change(x)

    def whole(self) -> Tensor:
        """The weight that the layer amounts to, float64 [m, n]."""
        return super().whole() * (self.magnitude / self.norms()).double()[:, None]


def rows_of(layer: Any) -> Tensor:
    """The weight [m, n] of a matrix that takes n entries and gives m."""
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) or getattr(layer, "transposed", False) else weight


def start_gaussian(layer: LowRank) -> None:
    """`down` from a normal distribution of deviation 1 / rank, as PEFT draws it."""
    nn.init.normal_(layer.down, std=1 / len(layer.down))


def start_orthogonal(layer: LowRank) -> None:
    """Both matrices are drawn, in subspaces that are orthogonal to each other: both learn at once and the product is zero.

    Raises:
        InputError: an odd rank, which has no two halves.
    """
    rank = len(layer.down)
    if rank % 2:
        raise InputError(f"lora:init=orthogonal halves the rank, which is {rank}. Give an even one.")
    halves = torch.linalg.qr(torch.randn(rank, rank))[0]
    with torch.no_grad():
        layer.down.copy_(halves[0::2].T @ torch.randn(rank // 2, layer.down.shape[1]) / 10)
        layer.up.copy_(torch.randn(layer.up.shape[0], rank // 2) @ halves[1::2] / 10)


def start_pissa(layer: LowRank) -> None:
    """The product is the weight's own largest part, and the frozen weight what is left (Meng et al. 2024, equations 2 to 4)."""
    base: Any = layer.base
    left, values, right = torch.linalg.svd(rows_of(base).double(), full_matrices=False)
    rank = len(layer.down)
    if rank > len(values):
        raise InputError(f"lora:init=pissa cannot take {rank} of the {len(values)} singular values of a weight. Give a smaller rank.")
    share = (values[:rank] / layer.scale).sqrt()
    with torch.no_grad():
        layer.up.copy_(left[:, :rank] * share)
        layer.down.copy_(share[:, None] * right[:rank])
        rest = rows_of(base).double() - layer.product()
        base.weight.copy_(rest.T if isinstance(base, Conv1D) else rest)


STARTS = {"default": lambda layer: None, "gaussian": start_gaussian, "orthogonal": start_orthogonal, "pissa": start_pissa}
