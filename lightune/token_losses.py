"""Losses over a large vocabulary without ever holding its logits: chunk by chunk, and only where a token is learned.

For m supervised tokens and v words the logits would take m · v numbers, several times; here it is CHUNK · v at a time. The gradient of a
token's own vector is worked out together with its loss, so that nothing is computed twice while the head is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

CHUNK = 256  # tokens whose logits exist at once

# What is made of the logits float32 [c, v] of the tokens in a slice: the loss of each [c], and its slope for every logit [c, v]. The logits may
# be overwritten; the slopes are read only after the losses.
Judge = Callable[[Tensor, slice], tuple[Tensor, Callable[[], Tensor]]]


def token_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Negative log-likelihood of every label, in nats: float32 [m].

    hidden: [m, d], the vectors from which the labels int64 [m] are predicted. weight: [v, d]. bias: [v] or None.
    """
    return judged_losses(hidden, weight, bias, partial(_judge_labels, labels))


def judged_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, judge: Judge) -> Tensor:
    """What a judge makes of every token's logits: float32 [m]; see `token_losses`."""
    return _JudgedLosses.apply(hidden, weight, bias, judge)


class _JudgedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, judge: Judge) -> Tensor:
        kind = torch.bfloat16 if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
        matrix, vectors = weight.detach().to(kind), hidden.detach().to(kind)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if hidden.requires_grad else None
        for begin in range(0, len(hidden), CHUNK):
            part = slice(begin, begin + CHUNK)
            losses[part], slope = judge(_logits(vectors[part], matrix, bias), part)
            if slopes is not None:
                slopes[part] = (slope().to(kind) @ matrix).to(slopes.dtype)
        ctx.save_for_backward(hidden, weight, bias, slopes)
        ctx.kind, ctx.judge = kind, judge
        return losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        hidden, weight, bias, slopes = ctx.saved_tensors
        for_hidden = slopes * gradient[:, None].to(slopes.dtype) if slopes is not None else None
        wants_weight, wants_bias = ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        if not (wants_weight or wants_bias):
            return for_hidden, None, None, None
        for_weight, for_bias = torch.zeros_like(weight), torch.zeros_like(bias) if wants_bias else None
        matrix, vectors = weight.detach().to(ctx.kind), hidden.detach().to(ctx.kind)
        for begin in range(0, len(hidden), CHUNK):
            part = slice(begin, begin + CHUNK)
            _, slope = ctx.judge(_logits(vectors[part], matrix, bias), part)
            errors = slope() * gradient[part, None]
            for_weight += errors.to(ctx.kind).T @ vectors[part]
            if for_bias is not None:
                for_bias += errors.sum(0)
        return for_hidden, for_weight if wants_weight else None, for_bias, None


def _logits(vectors: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    logits = (vectors @ matrix.T).float()
    return logits if bias is None else logits.add_(bias.detach())


def _judge_labels(labels: Tensor, logits: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
    """Cross entropy with the labels."""
    chances = normalise(logits)
    return -chances.gather(1, labels[part, None])[:, 0], partial(errors, chances, labels[part])


def normalise(logits: Tensor) -> Tensor:
    """Log-probabilities in the place of logits [c, v]."""
    return logits.sub_(logits.logsumexp(1, keepdim=True))


def errors(chances: Tensor, labels: Tensor) -> Tensor:
    """The slope of cross entropy for every logit, from log-probabilities [c, v], which are overwritten: the probability, less 1 for the label."""
    found = chances.exp_()
    found[torch.arange(len(labels), device=labels.device), labels] -= 1
    return found
