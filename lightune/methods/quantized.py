"""Frozen weight matrices in 8 or 4 bits, made whole again for every product and never kept so (QLoRA, Dettmers et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

BLOCK = 64  # weights of 4 bits that share a scale
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# the quantiles of a normal distribution (appendix E there)


class Quantized(nn.Module):
    """A frozen matrix of 8 bits with one scale a row, or of 4 bits (NF4) with one scale for every 64 weights."""

    codes: Tensor
    scales: Tensor
    levels: Tensor

    def __init__(self, base: nn.Linear | Conv1D, bits: int) -> None:
        super().__init__()
        self.bits, self.transposed = bits, isinstance(base, Conv1D)
        weight = base.weight.detach().float()
        weight = weight.T.contiguous() if self.transposed else weight
        self.shape = weight.shape  # [m, n], whatever the base's order
        self.packed = weight.numel()  # parameters that are here, though not as such
        codes, scales = quantize_rows(weight) if bits == 8 else quantize_blocks(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("levels", torch.tensor(NF4 if bits == 4 else ()), persistent=False)
        self.bias = base.bias

    def rows(self) -> Tensor:
        """The weight, float32 [m, n]."""
        if self.bits == 8:
            return self.codes * self.scales
        places = torch.stack([self.codes >> 4, self.codes & 15], 1).flatten().int()
        blocks = self.levels[places].view(-1, BLOCK) * self.scales
        return blocks.flatten()[: self.packed].view(self.shape)

    @property
    def weight(self) -> Tensor:
        """The weight as the base held it."""
        return self.rows().T if self.transposed else self.rows()

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        product = _Product.apply(x, self)
        return product if self.bias is None else product + self.bias

    def restore(self) -> nn.Module:
        """A plain layer with this weight."""
        rows, columns = self.shape
        plain: Any = Conv1D(rows, columns) if self.transposed else nn.Linear(columns, rows, bias=self.bias is not None)
        plain.weight, plain.bias = nn.Parameter(self.weight.contiguous()), self.bias
        return plain.to(self.scales.device)


class _Product(torch.autograd.Function):
    """x Wᵀ, whose backward makes the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantized) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return nn.functional.linear(x, layer.rows().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (gradient @ ctx.layer.rows().to(gradient.dtype)).to(ctx.dtype), None


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 [m, n] and the scale of every row [m, 1]."""
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scales).round().to(torch.int8), scales


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes of 4 bits in each byte, uint8 [⌈m·n/64⌉·32], and the scale of every block of 64 [⌈m·n/64⌉, 1]."""
    flat = nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1, keepdim=True).clamp(min=1e-12)
    levels = torch.tensor(NF4)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(flat / scales, between).to(torch.uint8).flatten()
    return codes[0::2] << 4 | codes[1::2], scales
