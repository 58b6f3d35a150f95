"""Depth: whole layers go. What stays is chosen by what each layer changes, or by what the task loses without it, and of encoders evenly spread.

A layer that goes leaves its work to those that stay. Students that train all their weights learn it best where it stood between layers that
stay: every second layer made a better start than the three that the task missed most (docs/shrinking.md), as in DistilBERT (Sanh et al. 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from lightune.architectures import is_decoder, stacks
from lightune.errors import InputError
from lightune.networks import Network
from lightune.options import check, option
from lightune.steps import kept_count, scores_for, strongest

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # lists in configurations with one entry per layer
TABLE = "relative_attention_bias"


@dataclass(frozen=True)
class Depth:
    """Fewer layers."""

    keep: float = option(0.5, "layers that stay: a count, or a share below 1; of an encoder-decoder, in each stack", above=0)
    by: str = option(
        "auto",
        "what chooses them: how much a layer changes its input (influence), how much the task loses without it (task), or the same with no more "
        "neighbours gone than must (spread); auto is spread for encoders, else task where that was measured",
        choices=("auto", "spread", "influence", "task"),
    )
    layers: tuple[Any, ...] = option((), "numbers of the layers that stay, as in 0+2+4; one tuple for each stack of an encoder-decoder")

    def __post_init__(self) -> None:
        if isinstance(self.layers, (str, int)) or any(isinstance(layer, str) for layer in self.layers):
            object.__setattr__(self, "layers", _numbers(self.layers))
        check(self)

    def plan(self, model: Any, importance: Any) -> Depth:
        """Choose the layers that stay.

        Raises:
            InputError: no importance, one of another model, or a count that the model does not have.
        """
        if self.layers:
            return self
        if self.by == "task" and importance is not None and importance.without is None:
            raise InputError("depth by task needs the loss without each layer. Measure the importance with leave_out=True.")
        found = stacks(model.network.backbone)
        sizes = [_length(stack, model.network.backbone.config) for stack in found]
        by_task = self.by == "task" or (self.by != "influence" and getattr(importance, "without", None) is not None)
        spread = self.by == "spread" or (self.by == "auto" and len(found) == 1 and not is_decoder(model.network.backbone))
        (scores,) = scores_for("depth", importance, "without" if by_task else "blocks", [sum(sizes)])
        kept = []
        for stack, size, part in zip(found, sizes, np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
            count = kept_count(self.keep, size, "depth:keep")
            part = np.where(np.arange(size) == 0, 1 + np.abs(part).sum(), part) if _needs_first(stack) else part
            kept.append((strongest_spread if spread else strongest)(part.tolist(), count))
        return dataclasses.replace(self, layers=kept[0] if len(kept) == 1 else tuple(kept))

    def apply(self, network: Network) -> Network:
        """Drop every other layer; the numbers inside the rest and the configuration follow.

        Raises:
            InputError: a layer that is not there, or a model whose layers cannot change their places.
        """
        backbone: Any = network.backbone
        found = stacks(backbone)
        wanted = self.layers if isinstance(self.layers[0], tuple) else (self.layers,) * len(found)
        if len(wanted) != len(found):
            raise InputError(f"depth:layers has {len(wanted)} lists for {len(found)} stacks of layers. Give one list for each stack.")
        halves = [backbone] if len(found) == 1 else [backbone.encoder, backbone.decoder]
        for half, stack, layers in zip(halves, found, wanted, strict=True):
            _check(layers, _length(stack, half.config), half.config)
        for half, stack, layers in zip(halves, found, wanted, strict=True):
            _tell(half, layers, _length(stack, half.config))
            if not _is_shared(half.config):
                _shorten(stack, layers)
        if len(found) == 2:
            backbone.config.num_hidden_layers, backbone.config.num_decoder_layers = map(len, wanted)
        return network

    def narrow(self, importance: Any) -> Any:
        """The importance of what this explicit step leaves."""
        layers = list(self.layers)
        count = len(importance.blocks)
        lists = {name: getattr(importance, name) for name in ("heads", "ffn")}
        inside = {name: tuple(scores[layer] for layer in layers) for name, scores in lists.items() if len(scores) == count}
        without = None if importance.without is None else importance.without[layers]
        return dataclasses.replace(importance, blocks=importance.blocks[layers], without=without, **inside)


def strongest_spread(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` places with the highest sum of scores among those that leave the shortest gaps, as every second of six; of equal sums the last."""
    reach = -(-(len(scores) - count) // (count + 1)) + 1  # from one that stays to the next
    best: dict[int, tuple[float, tuple[int, ...]]] = {-1: (0.0, ())}  # the last that stays → sum and places
    for _ in range(count):
        ways = {place: [best[before] for before in best if 0 < place - before <= reach] for place in range(len(scores))}
        best = {place: max((total + scores[place], (*kept, place)) for total, kept in found) for place, found in ways.items() if found}
    return max(found for last, found in best.items() if last + reach >= len(scores))[1]


def _numbers(given: Any) -> tuple[int, ...]:
    """``0+2+4`` as it stands in a spec, whole or in parts."""
    text = "+".join(map(str, given)) if isinstance(given, tuple) else str(given)
    if not all(part.isdigit() for part in text.split("+")):
        raise InputError(f"depth:layers is {text!r}, expected numbers of layers from 0, as in 0+2+4.")
    return tuple(int(part) for part in text.split("+"))


def _is_shared(config: Any) -> bool:
    """Whether one block runs for every layer (ALBERT)."""
    return hasattr(config, "num_hidden_groups")


def _length(stack: nn.ModuleList, config: Any) -> int:
    return config.num_hidden_layers if _is_shared(config) else len(stack)


def _needs_first(stack: nn.ModuleList) -> bool:
    """Whether the first layer lacks what the others have, such as ModernBERT's norm: the configuration expects it to be the first."""
    first, *others = ({name for name, _ in block.named_parameters()} for block in stack)
    return bool(others) and bool(others[0] - first)


def _check(layers: Sequence[int], size: int, config: Any) -> None:
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= size:
        raise InputError(f"depth:layers is {list(layers)}, expected different numbers from 0 to {size - 1}, lowest first.")
    if len(layers) < size and getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise InputError("depth cannot cut a model that scales its attention by the layer's number. Choose another base, or cut ffn.")
    if getattr(config, "num_hidden_groups", 1) > 1:
        raise InputError(f"depth cannot cut a model whose layers share {config.num_hidden_groups} blocks. Choose another base, or cut ffn.")


def _tell(half: Any, layers: Sequence[int], size: int) -> None:
    """Everything that counts a stack's layers or has a list with one entry for each."""
    for part in half.modules():
        if getattr(part, "n_layers", None) == size:
            part.n_layers = len(layers)
    half.config.num_hidden_layers = len(layers)
    for name in PER_LAYER:
        if isinstance(entries := getattr(half.config, name, None), list) and len(entries) == size:
            setattr(half.config, name, [entries[layer] for layer in layers])


def _shorten(stack: nn.ModuleList, layers: Sequence[int]) -> None:
    """Keep some blocks of a list, in place, each with its new number."""
    kept: list[Any] = [stack[layer] for layer in layers]
    _move_tables(stack[0], kept[0])
    del stack[:]
    stack.extend(kept)
    for number, block in enumerate(kept):
        for part in block.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = number


def _move_tables(old: nn.Module, new: nn.Module) -> None:
    """T5's first block holds the table of relative positions for all: it goes to the block that is now the first."""
    for name, table in list(old.named_modules()):
        where, _, last = name.rpartition(".")
        if last == TABLE and not hasattr(owner := new.get_submodule(where), TABLE):
            setattr(owner, TABLE, table)
            owner.has_relative_attention_bias = True  # type: ignore[assignment]
