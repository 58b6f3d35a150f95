"""What a model can spare, found out in one pass over labelled rows: how much its loss would change without each part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightune import architectures, dimensions
from lightune.data import Example
from lightune.errors import InputError
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.recipes import TrainOptions
from lightune.runtime.tokenization import batches
from lightune.steps.pool import read_by
from lightune.training import Objective, Rows, task_objective

BATCH, TOKENS = 32, 2048  # rows and tokens of one pass with gradients


@dataclass(frozen=True, eq=False)
class Importance:
    """How much each part of a model matters to its task. Larger matters more.

    Attributes:
        blocks: [L] influence of every layer: 1 - cosine of what enters and leaves it, mean over tokens (Men et al. 2024, equation 1).
        heads: for each of `Dimensions.heads`, [query heads]: |sum over a row of activation · gradient of the row's loss|, mean over rows
            (Michel et al. 2019, equation 2).
        ffn: for each of `Dimensions.ffn`, [neurons]: the same of the neurons (Molchanov et al. 2019, first order, with a gate on every neuron).
        hidden: [d] the same of the residual stream, summed over the inputs of all layers and what the backbone gives.
        tokens: int64 [V] how often each token occurs in the rows.
        rows: how many rows were read.
        queries: how many query heads go together: those of one key/value head.
        without: [L] by how much the mean loss rises when a layer is skipped with all those of lower values; None where that was not
            measured. Layers go in greedy order, each time the one without which the loss is lowest.
    """

    blocks: np.ndarray
    heads: tuple[np.ndarray, ...]
    ffn: tuple[np.ndarray, ...]
    hidden: np.ndarray
    tokens: np.ndarray
    rows: int
    queries: int = 1
    without: np.ndarray | None = None


def measure(
    model: Model, examples: Sequence[Example] | Rows, *, rows: int = 256, leave_out: bool = False, objective: Objective | None = None
) -> Importance:
    """The importance of every part, from one pass forward and backward over at most `rows` examples, spread evenly over those given.

    No parameter receives a gradient, and the model is left as it was.

    Args:
        examples: labelled examples, or rows that are encoded already.
        leave_out: also skip layers one after another (`Importance.without`), for some forward passes per layer.
        objective: gives the loss of each example, see `Training`; the task's own by default.

    Raises:
        InputError: no examples, or a backbone whose structure is not known.
    """
    count = len(examples.encoded) if isinstance(examples, Rows) else len(examples)
    if not count or rows < 1:
        raise InputError(f"Importance needs labelled rows, but {min(count, rows)} were given. Give it some of the development data.")
    places = np.unique(np.linspace(0, count - 1, min(rows, count)).round().astype(int))
    if not isinstance(examples, Rows):
        examples, places = Rows.of(model, [examples[place] for place in places]), np.arange(len(places))
    sample = _Sample(model, examples, places, objective or task_objective(model.task, TrainOptions()))
    found = dimensions.describe(model.network.backbone)
    with _still(model.network):
        meter = _Meter(model.network, found)
        loss = meter.read(sample)
        without = _skip_layers(sample, loss, len(meter.similar)) if leave_out else None
    read = np.concatenate([np.asarray(examples.encoded.ids[place], dtype=np.int64) for place in places])
    tokens = np.bincount(read, minlength=found.tokens.size)
    heads, ffn = ([total.double().cpu().numpy() / len(places) for total in totals] for totals in (meter.heads, meter.ffn))
    hidden = meter.hidden.double().cpu().numpy() / len(places)
    return Importance(1 - meter.similar / meter.tokens, tuple(heads), tuple(ffn), hidden, tokens, len(places), found.queries, without)


def shares(
    importance: Importance, *, layers: int | None = None, heads: int | None = None, ffn: int | None = None, hidden: int | None = None
) -> dict[str, float]:
    """The share of the importance that a shape takes away, from 0 to 1 by knob; what is None stays whole.

    A shape says how many layers, query heads of a block, neurons of a block and hidden dimensions remain: the most important ones. What
    layers take away is the rise of the loss where that was measured, as a share of the rise without any layer, else their influence.
    """
    ranks = importance.blocks if importance.without is None else importance.without
    kept = np.sort(np.argsort(-ranks, kind="stable")[:layers])
    per_block = {"heads": importance.heads, "ffn": importance.ffn}
    inside = {
        name: [scores[place] for place in kept] if len(scores) == len(importance.blocks) else list(scores)
        for name, scores in per_block.items()
    }
    groups = [scores.reshape(-1, importance.queries).sum(1) for scores in inside["heads"]]
    units = None if heads is None else heads // importance.queries
    return {
        "layers": _removed([importance.blocks], layers) if importance.without is None else _risen(importance.without, layers),
        "heads": _removed(groups, units),
        "ffn": _removed(inside["ffn"], ffn),
        "hidden": _removed([importance.hidden], hidden),
    }


def damage(
    importance: Importance, *, layers: int | None = None, heads: int | None = None, ffn: int | None = None, hidden: int | None = None
) -> float:
    """The sum of `shares`: by it candidates of about equal cost are ranked."""
    return sum(shares(importance, layers=layers, heads=heads, ffn=ffn, hidden=hidden).values())


def _removed(groups: Sequence[np.ndarray], keep: int | None) -> float:
    """The share of all scores that falls when each group keeps its `keep` highest."""
    if keep is None:
        return 0.0
    whole = sum(float(scores.sum()) for scores in groups)
    return sum(float(np.sort(scores)[: max(0, len(scores) - keep)].sum()) for scores in groups) / whole if whole > 0 else 0.0


def _risen(without: np.ndarray, layers: int | None) -> float:
    """The rise of the loss with so many layers, as a share of that without any."""
    gone = np.sort(without)[: 0 if layers is None else max(0, len(without) - layers)]
    return max(0.0, float(gone[-1] / without.max())) if len(gone) and without.max() > 0 else 0.0


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some rows that a model reads, and what it loses on each."""

    model: Model
    rows: Rows
    places: np.ndarray
    objective: Objective

    def batches(self) -> Iterator[tuple[dict[str, Tensor], Callable[[], Tensor]]]:
        """Padded batches of rows of like length, each with what gives the losses [b] of its rows."""
        model, encoded = self.model, self.rows.encoded
        for group in batches([len(encoded.ids[place]) for place in self.places], BATCH, TOKENS):
            chosen = self.places[group]
            batch = tensors(model.encoder.pad(encoded, chosen), model.device)
            targets = torch.from_numpy(self.rows.targets[chosen]).to(model.device)
            yield batch, partial(self.objective, model.network, batch, targets, chosen)


class _Meter:
    """Adds up, while a network reads, what flows through its blocks and how much the loss depends on it."""

    def __init__(self, network: Network, found: dimensions.Dimensions) -> None:
        backbone: Any = network.backbone
        self.network = network
        self.found = found
        self.device = next(backbone.parameters()).device
        self.hidden = self._zeros(found.hidden.size)
        self.heads = [self._zeros(dimension.size * found.queries) for dimension in found.heads]
        self.ffn = [self._zeros(dimension.size) for dimension in found.ffn]
        self.similar, self.tokens = (np.zeros(backbone.config.num_hidden_layers) for _ in range(2))
        self.layer = 0  # which layer runs next: a shared block runs for all
        self.mask: Tensor | None = None
        self.before = self.hidden

    def read(self, sample: _Sample) -> float:
        """Every row once, forward and backward; gives the mean loss."""
        total = 0.0
        with architectures.hooked(self._hooks()):
            for batch, losses in sample.batches():
                self.layer, self.mask = 0, batch.get("attention_mask")
                loss = losses().sum()
                loss.backward()
                total += float(loss.detach())
        return total / len(sample.places)

    def _hooks(self) -> Iterator[Any]:
        for dimension, total in zip((*self.found.heads, *self.found.ffn), (*self.heads, *self.ffn), strict=True):
            for outlet in dimension.outlets:
                yield outlet.register_forward_pre_hook(lambda module, inputs, total=total: _watch(inputs[0], total))
        for block in architectures.blocks(self.network.backbone):
            yield block.register_forward_pre_hook(self._enter)
            yield block.register_forward_hook(self._leave)
        yield self.network.backbone.register_forward_hook(lambda module, inputs, output: _watch(output.last_hidden_state, self.hidden))

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The first layer's input is where the backward pass ends, so that no parameter needs a gradient."""
        stream = inputs[0] if self.layer else inputs[0].detach().requires_grad_()
        _watch(stream, self.hidden)
        self.before = stream.detach()
        return stream, *inputs[1:]

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        cosine = torch.cosine_similarity(self.before, architectures.stream_of(output).detach(), -1)
        inside = torch.ones_like(cosine) if self.mask is None else read_by(self.network.backbone, self.layer, self.mask)
        self.similar[self.layer] += float((cosine * inside).sum())
        self.tokens[self.layer] += float(inside.sum())
        self.layer += 1

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, device=self.device)


def _watch(values: Tensor, total: Tensor) -> None:
    """When the gradient of values [b, s, units · n] is known, add every row's |sum of values · gradient| to the total [units]."""
    seen = values.detach()

    def add(gradient: Tensor) -> None:
        rows = (seen * gradient).sum(1)
        total.add_(rows.unflatten(-1, (len(total), -1)).sum(-1).abs().sum(0))

    values.register_hook(add)


def _skip_layers(sample: _Sample, loss: float, count: int) -> np.ndarray:
    """The rise of the loss, [count], as one layer after another is skipped.

    What a layer added to the loss when it was last tried is taken for the least that it adds now, so that few are tried again in each
    round (Minoux 1978, the accelerated greedy algorithm).
    """
    rises, adds, gone = np.zeros(count), dict.fromkeys(range(count), -np.inf), set[int]()
    total, highest = 0.0, -np.inf
    while adds:
        tried = set[int]()
        while (layer := min(adds, key=lambda layer: adds[layer])) not in tried:
            adds[layer] = _loss_without(sample, gone | {layer}) - loss - total
            tried.add(layer)
        total += adds.pop(layer)
        gone.add(layer)
        rises[layer] = highest = max(total, np.nextafter(highest, np.inf))  # so that the values keep the order
    return rises


def _loss_without(sample: _Sample, skipped: set[int]) -> float:
    """The mean loss when some layers give back what they take."""
    layer = -1

    def skip(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        nonlocal layer
        layer += 1
        if layer not in skipped:
            return None
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    total = 0.0
    hooks = (block.register_forward_hook(skip) for block in architectures.blocks(sample.model.network.backbone))
    with torch.no_grad(), architectures.hooked(hooks):
        for _, losses in sample.batches():
            layer = -1
            total += float(losses().sum())
    return total / len(sample.places)


@contextmanager
def _still(network: Network) -> Iterator[None]:
    """In evaluation mode and with all parameters frozen; both as before afterwards."""
    mode, trained = network.training, [item for item in network.parameters() if item.requires_grad]
    network.eval().requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        network.train(mode)
        for item in trained:
            item.requires_grad_(True)
