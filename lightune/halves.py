"""Training in bf16 with weights kept in fp32 (Micikevicius et al. 2018, section 3.1).

The forward and backward passes go through bf16 copies of the weight matrices; their gradients are added to the fp32 weights, which the
optimizer moves. Compared with autocast alone no matrix is cast in every use, and the stream between the blocks is bf16 too, so that it
is not cast before every product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.errors import InputError


class Halves:
    """The bf16 copies of a network's weight matrices and their biases.

    Tables stay as they are, since only their rows are read, and so does a matrix that shares one. What is not known to be a plain matrix
    is left to autocast.
    """

    def __init__(self, network: nn.Module) -> None:
        tables = {id(part.weight) for part in network.modules() if isinstance(part, nn.Embedding)}
        self.places: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        copies: dict[int, nn.Parameter] = {}
        for part in network.modules():
            if not isinstance(part, (nn.Linear, Conv1D)):
                continue
            for name, item in part.named_parameters(recurse=False):
                if item.dtype == torch.float32 and id(item) not in tables:
                    if id(item) not in copies:
                        copies[id(item)] = nn.Parameter(item.detach().to(torch.bfloat16), item.requires_grad)
                    self.places.append((part, name, item, copies[id(item)]))
        pairs = {id(whole): (whole, half) for _, _, whole, half in self.places if whole.requires_grad}
        self.wholes, self.copies = ([pair[side] for pair in pairs.values()] for side in (0, 1))
        self.gradients = [torch.empty_like(whole) for whole in self.wholes]  # used again: to ask for fresh memory in every step is slow
        self.first = _first_block(network)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Put the copies, brought up to date, in the place of the weights; their gradients are the weights' afterwards."""
        if self.wholes:
            with torch.no_grad():
                torch._foreach_copy_(self.copies, self.wholes)  # type: ignore[arg-type]
        for part, name, _, half in self.places:
            part._parameters[name] = half
        hook = self.first.register_forward_pre_hook(_halve_stream, with_kwargs=True) if self.first else None
        try:
            yield
        finally:
            if hook:
                hook.remove()
            for part, name, whole, _ in self.places:
                part._parameters[name] = whole

    def collect(self) -> None:
        """Add the copies' gradients to the weights' own, in fp32."""
        for whole, half, kept in zip(self.wholes, self.copies, self.gradients, strict=True):
            if half.grad is None:
                continue
            if whole.grad is None:
                whole.grad = kept.copy_(half.grad)
            else:
                whole.grad += half.grad
            half.grad = None


def _first_block(network: nn.Module) -> nn.Module | None:
    """Where the stream between the blocks begins; None in a network without blocks, such as a static student."""
    try:
        return architectures.blocks(network.backbone)[0]  # type: ignore[arg-type]
    except InputError:
        return None


def _halve_stream(block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What enters the first block, in bf16: all blocks after it add to it."""
    if given:
        return (_half(given[0]), *given[1:]), named
    return given, {name: _half(value) if name == "hidden_states" else value for name, value in named.items()}


def _half(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.dtype == torch.float32 else value
