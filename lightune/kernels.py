"""Two places where a faster kernel pays on CPUs: attention over short sequences, and dropout.

`register_attention` and `replace_dropout` put them into a transformers backbone; on other devices they step aside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "lightune"
SHORT = 192  # tokens: below it plain matrix products beat the fused kernel's backward on CPUs


def keep_mask(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """A boolean mask of the shape of `like` and the scale 1 / P(keep); `rate` is rounded to a 256th.

    One 64-bit draw serves eight elements, eight times cheaper than a Bernoulli draw for each.
    """
    cut = round(rate * 256)
    count = like.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    mask = words.view(torch.uint8)[:count].view(like.shape) >= cut
    return mask, 256 / (256 - cut)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        mask, ctx.scale = keep_mask(x, rate)
        ctx.save_for_backward(mask)
        return torch.ops.aten.native_dropout_backward(x, mask, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return torch.ops.aten.native_dropout_backward(gradient.contiguous(), ctx.saved_tensors[0], ctx.scale), None


def drop(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout whose mask is drawn in bytes on CPUs; elsewhere torch's own."""
    if not training or rate <= 0:
        return x
    return _Drop.apply(x, rate) if x.device.type == "cpu" else nn.functional.dropout(x, rate, True)


class Dropout(nn.Dropout):
    """nn.Dropout with `drop`."""

    def forward(self, input: Tensor) -> Tensor:
        return drop(input, self.p, self.training)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' interface; query, key, value are [b, h, s, d], the answer is [b, s, h, d].

    Short bidirectional sequences on a CPU take plain matrix products; everything else goes to scaled_dot_product_attention.
    """
    is_causal = rest.get("is_causal")
    causal = attention_mask is None and (getattr(module, "is_causal", False) if is_causal is None else is_causal)
    grouped = key.shape[1] != query.shape[1]
    plain = query.device.type == "cpu" and query.shape[2] <= SHORT and not (causal or grouped or rest.get("position_bias") is not None)
    if not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    if attention_mask is not None:
        fill = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~attention_mask, fill) if attention_mask.dtype == torch.bool else scores + attention_mask
    weights = drop(torch.softmax(scores, -1), dropout, dropout > 0)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def register_attention() -> str:
    """Make `attend` known to transformers under a name, once, and return the name."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return ATTENTION


def replace_dropout(backbone: nn.Module, rate: float) -> None:
    """Exchange every nn.Dropout of a backbone for ours with this rate, in place; attention modules that keep the rate as a number get it too."""
    for parent in backbone.modules():
        for name in ("attention_dropout", "attention_probs_dropout_prob", "dropout"):
            if isinstance(getattr(parent, name, None), float) and not isinstance(parent, nn.RNNBase):  # no part of a base
                setattr(parent, name, rate)
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout) and not getattr(parent, "own_dropout", False):
                setattr(parent, name, Dropout(rate))
