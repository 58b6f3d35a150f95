"""Attention in the exported graph: one operator that knows masks and heads, where every token may see every other.

Traced as transformers writes it, attention is a dozen small operators for each layer, and as many more for the mask; onnxruntime has one for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, eager_mask

from lightune.architectures import is_plain_encoder

NAME = "lightune-export"


def choose_attention(backbone: PreTrainedModel) -> str:
    """The name of the attention with which a backbone is traced: ours for the encoders that take one, else transformers' plainest."""
    if not is_plain_encoder(backbone.config):
        return "eager"
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def _mask(*sizes: Any, mask_function: Callable[..., Any], attention_mask: Tensor | None = None, **rest: Any) -> Tensor:
    """Int32 [b, s], 1 where there is a token: all that the operator needs where nothing but padding is hidden."""
    if mask_function is bidirectional_mask_function and attention_mask is not None:
        return attention_mask.to(torch.int32)
    return eager_mask(*sizes, **{"mask_function": mask_function, "attention_mask": attention_mask, **rest})


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **rest: Any
) -> tuple[Tensor, None]:
    """Query, key and value are [b, h, s, d], the answer is [b, s, h, d]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None or attention_mask.ndim == 2:
        flat = [item.transpose(1, 2).flatten(2) for item in (query, key, value)]
        given = [*flat, None, attention_mask]
        options: dict[str, Any] = {"num_heads": query.shape[1], "scale": float(scale)}
        name = "com.microsoft::MultiHeadAttention"
        mixed = torch.onnx.ops.symbolic(name, given, options, dtype=query.dtype, shape=flat[2].shape, version=1)
        return mixed.unflatten(-1, (query.shape[1], -1)), None
    weights = torch.softmax(query @ key.transpose(-1, -2) * scale + attention_mask, -1)
    return (weights @ value).transpose(1, 2), None
