"""Pool: the upper layers read the mean of every two neighbouring tokens, so that each of them has half as much to do.

As in the Funnel-Transformer (Dai et al. 2020, section 2.2), in models that were trained without: below, every token is read; at the end every
token gets what its pair was changed by (their equation 3, with the pair's change in place of its vector). So there is a vector for every token as
before, and the mean over a text's tokens is that of what the last layer gave.
"""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError
from lightune.networks import Network
from lightune.options import check, option
from lightune.steps import kept_count


@dataclass(frozen=True)
class Pool:
    """Fewer tokens in the upper layers."""

    keep: float = option(0.5, "layers that read every token, the lowest: a count, or a share below 1; those above read pairs", above=0)

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Pool:
        """Settle the count; importance is not asked.

        Raises:
            InputError: a count that leaves no layer to read pairs, or a base whose layers are told where tokens stand.
        """
        backbone = model.network.backbone
        if not can_pool(backbone):
            raise InputError(
                f"pool cannot shorten what {type(backbone).__name__} reads: it does so for encoders that add positions to token vectors, "
                f"such as {', '.join(architectures.PLAIN_POSITIONS[:3])}. Use depth, ffn, heads or hidden."
            )
        layers = backbone.config.num_hidden_layers
        count = kept_count(self.keep, layers, "pool:keep")
        if count == layers:
            raise InputError(f"pool:keep is {self.keep:g}, which leaves none of {layers} layers to read pairs. Expected fewer.")
        return dataclasses.replace(self, keep=count)

    def apply(self, network: Network) -> Network:
        """Make the layers above the first `keep` read pairs; no tensor changes."""
        backbone: Any = network.backbone
        backbone.pooled_layers = backbone.config.num_hidden_layers - int(self.keep)
        _Pooling(int(self.keep)).attach(backbone)
        return network

    def narrow(self, importance: Any) -> Any:
        """The importance itself: no unit goes."""
        return importance


def can_pool(backbone: nn.Module) -> bool:
    """Whether upper layers can read pairs: an encoder whose layers learn nothing of a token's place but from its vector."""
    return architectures.is_plain_encoder(backbone.config)


def pool_pairs(stream: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of every two neighbours among token vectors [b, s, d], the first two being the first pair: [b, ⌈s/2⌉, d].

    mask: bool [b, s], which tokens are no padding, which stands on the right; a token whose neighbour is padding, or missing, stays as it is.
    """
    first, second = _sides(stream)
    if mask is None:
        return (first + second) / 2
    share = _sides(mask.to(stream.dtype))[1][..., None] / 2
    return first + share * (second - first)


def read_by(backbone: nn.Module, number: int, mask: Tensor) -> Tensor:
    """Which tokens, or pairs, layer `number` reads, of the mask of all tokens: [b, s] the same, or [b, ⌈s/2⌉]."""
    layers = backbone.config.num_hidden_layers  # type: ignore[union-attr]
    return mask[:, ::2] if number >= layers - architectures.pooled_layers(backbone) else mask  # type: ignore[operator]


def _sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """The first and second members of all pairs along axis 1; a last one without a neighbour is its own."""
    even = torch.cat([values, values[:, -1:]], 1)
    return even[:, :-1:2], even[:, 1::2]


@dataclass
class _Pass:
    """One reading of a text: the layer that runs next where one block is shared by all, and the stream before and behind pooling."""

    layer: int = 0
    pooled: tuple[Tensor, Tensor] | None = None


class _Pooling:
    """Hooks on a backbone and its blocks. keep: layers that read every token."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.passes: dict[int, _Pass] = {}  # by thread

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pooling:
        return _Pooling(self.keep)  # without what a reading that was broken off has left, which may not be copied

    def attach(self, backbone: Any) -> None:
        """Pool before block `keep`, and give every token its share at the end."""
        blocks = architectures.blocks(backbone)
        shared = len(blocks) < backbone.config.num_hidden_layers
        backbone.register_forward_pre_hook(self._begin)
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(_Entry(self, number, shared))
        backbone.register_forward_hook(self._end)

    @property
    def now(self) -> _Pass:
        """What this thread is reading."""
        return self.passes.setdefault(threading.get_ident(), _Pass())

    def _begin(self, backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.passes[threading.get_ident()] = _Pass()

    def enter(self, layer: int, stream: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What a layer is given in place of a stream and a mask."""
        if layer < self.keep:
            return stream, mask
        if layer == self.keep:
            pairs = pool_pairs(stream, _inside(mask))
            self.now.pooled, stream = (stream, pairs), pairs
        return stream, None if mask is None else mask[:, ::2] if mask.ndim == 2 else mask[:, :, :1, ::2]

    def _end(self, backbone: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        done = self.passes.pop(threading.get_ident()).pooled
        assert done is not None  # every pass comes by the layer that pools
        stream, pairs = done
        change = output.last_hidden_state - pairs
        output.last_hidden_state = stream + torch.stack([change, change], 2).flatten(1, 2)[:, : stream.shape[1]]
        return output


@dataclass(eq=False)
class _Entry:
    """The hook before one block, which hands it what its layer is to read. shared: whether the block runs for every layer."""

    pooling: _Pooling
    number: int
    shared: bool

    def __call__(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        number = self.number
        if self.shared:
            number, self.pooling.now.layer = self.pooling.now.layer, self.pooling.now.layer + 1
        return *self.pooling.enter(number, inputs[0], inputs[1]), *inputs[2:]


def _inside(mask: Tensor | None) -> Tensor | None:
    """Bool [b, s] from what a layer is given as its mask: of that form already, or [b, 1, s, s], bool or to be added to scores."""
    if mask is None:
        return None
    row = mask if mask.ndim == 2 else mask[:, 0, 0]
    return row >= 0 if row.is_floating_point() else row.bool()
