"""What a cut took away is made up for by what stays: every matrix of a smaller model is fitted to give what it gave before, in closed form.

From the first block to the last, a matrix gets the weights with which it comes nearest, from what the smaller model hands it, to what it gave in
the model before: least squares over a few thousand tokens (He et al. 2017, Channel Pruning, equation 3, with the inputs of the smaller model), by
ridge regression towards the weights that are there. What lay in dimensions that went is so far restored as those that stay tell it. A matrix that
writes to the residual stream aims at the stream behind it, and the last one before layers that went at what they left there.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.distillation import hurried
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.runtime.tokenization import Encoded
from lightune.steps import pool, step_name

CUTS = ("depth", "ffn", "heads", "hidden", "pool", "factor")  # steps that leave what they do not cut as it was
TOKENS = 16384  # of the padded sample
COMMON = 0.9  # rows longer than this quantile are left out of the sample: all others would be padded for their sake
RIDGE = 0.01  # of the mean square of what a matrix is given

Goals = Mapping[str, Tensor]  # float32 [tokens, entries] by name inside a block: what a reader gives, a norm takes, or "", the block


class _Enough(Exception):
    """Ends a pass through a network of which no more is needed."""


def can_reconstruct(model: Model, steps: Sequence[Any]) -> bool:
    """Whether steps leave what they do not cut as it was, in one stack of blocks of which none runs twice."""
    backbone: Any = model.network.backbone
    found = architectures.stacks(backbone)
    return (
        bool(steps)
        and all(step_name(step) in CUTS for step in steps)
        and len(found) == 1
        and len(found[0]) == backbone.config.num_hidden_layers
    )


def reconstruct(student: Model, before: Model, encoded: Encoded) -> Model:
    """Fit a student that was just cut from a model to give what that model gives. Returns the student.

    Args:
        before: the model of which a copy was cut, by steps that `can_reconstruct` allows. encoded: rows, of which a sample is read.
    """
    batch = _sample(before, encoded)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    numbers, rows, stream = _trace(before.network, student.changes[len(before.changes) :])
    ends = [*(number - 1 for number in numbers[1:]), len(architectures.blocks(before.network.backbone)) - 1]
    olds, news = (architectures.blocks(model.network.backbone) for model in (before, student))
    with torch.no_grad(), _still(before.network), _still(student.network):
        with hurried(before.network):
            asked = _enter(before.network, batch, olds)
        calls = _enter(student.network, batch, news)
        given = calls[0].stream
        for place, (block, call) in enumerate(zip(news, calls, strict=True)):
            start, end = numbers[place], ends[place]  # of the layers whose work the block has to do
            read, theirs = pool.read_by(student.network.backbone, place, mask), pool.read_by(before.network.backbone, start, mask)
            halve = read.shape != theirs.shape
            with hurried(before.network):
                own = _goals(olds[start], asked[start], theirs, rows[place], stream, halve)
                last = own if start == end else _goals(olds[end], asked[end], theirs, {}, stream, halve)
            given = _Fit(block, own, last, read).run(dataclasses.replace(call, stream=given))
    return student


@dataclass(frozen=True, eq=False)
class _Call:
    """What a block is given: the residual stream [b, s, d], and the rest."""

    stream: Tensor
    args: tuple[Any, ...]
    options: dict[str, Any]

    def ask(self, block: nn.Module) -> Tensor:
        """The stream that the block makes of it."""
        return architectures.stream_of(block(self.stream, *self.args, **self.options))


class _Fit:
    """Fits the matrices of one block in the order in which they run.

    own: the goals of all matrices but the last. last: of that one.
    """

    def __init__(self, block: nn.Module, own: Goals, last: Goals, mask: Tensor) -> None:
        self.block, self.own, self.last, self.mask = block, own, last, mask
        self.names = {part: name for name, part in block.named_modules()}
        self.writers = [block.get_submodule(name) for name in _writers(block)]
        self.done: set[nn.Module] = set()
        self.waiting: tuple[nn.Module, Tensor] | None = None  # a writer that has run, and what it was given

    def run(self, call: _Call) -> Tensor:
        """Ask the block again after every writer that was fitted, until nothing is left to fit; gives the stream behind it."""
        while True:
            self.waiting = None
            with architectures.hooked(self._hooks()), suppress(_Enough):
                return call.ask(self.block)

    def _hooks(self) -> Iterator[Any]:
        for _, layer in architectures.linears(self.block):
            if layer not in self.writers:
                yield layer.register_forward_pre_hook(self._fit_reader)
            elif layer not in self.done:
                yield layer.register_forward_hook(self._wait)
        for norm in architectures.norms(self.block):
            yield norm.register_forward_pre_hook(lambda norm, inputs: self._fit_writer(self.names[norm], inputs[0]))
        yield self.block.register_forward_hook(lambda block, inputs, output: self._fit_writer("", architectures.stream_of(output)))

    def _fit_reader(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer not in self.done:
            self.done.add(layer)
            if self.names[layer] not in self.own:
                return
            given = _tokens(inputs[0], self.mask)
            _improve(layer, given, self.own[self.names[layer]] - layer(given))

    def _wait(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.waiting = layer, _tokens(inputs[0], self.mask)

    def _fit_writer(self, where: str, stream: Tensor) -> None:
        """Fit the writer that has just run by the stream behind it: what a norm takes, or what the block gives."""
        if self.waiting is not None:
            layer, given = self.waiting
            self.done.add(layer)
            _improve(layer, given, (self.last if layer is self.writers[-1] else self.own)[where] - _tokens(stream, self.mask))
            raise _Enough


def _improve(layer: nn.Module, given: Tensor, gap: Tensor) -> None:
    """Change a matrix, and its bias, so that what it gives for `given` [n, in] changes by `gap` [n, out], as nearly as it can."""
    bias = getattr(layer, "bias", None)
    inputs = given if bias is None else torch.cat([given, given.new_ones(len(given), 1)], 1)
    squares = (inputs.T @ inputs).double()
    ridge = squares.diagonal()[: given.shape[1]].mean() * RIDGE * torch.ones_like(squares[0])
    ridge[given.shape[1] :] = 0  # a bias is free
    change = torch.linalg.solve(squares + ridge.diag(), (inputs.T @ gap).double())
    matrix = _rows(layer)
    matrix.add_(change[: given.shape[1]].T.to(matrix.dtype))
    if bias is not None:
        bias.add_(change[-1].to(bias.dtype))


def _goals(block: nn.Module, call: _Call, mask: Tensor, rows: Mapping[str, Tensor], stream: Tensor, halve: bool) -> Goals:
    """What a block of the model before does, as far as a student has the entries.

    rows: by a reader's name, which entries of what it gives. stream: which dimensions of the residual stream. halve: whether the student
    reads pairs of the block's tokens, and so aims at their means.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor, kept: Tensor) -> None:
        if name not in found and value.shape[:2] == mask.shape:  # DeBERTa asks some about relative positions, too or alone
            found[name] = _tokens(pool.pool_pairs(value, mask), mask[:, ::2])[:, kept] if halve else _tokens(value, mask)[:, kept]

    def hooks() -> Iterator[Any]:
        for name, kept in rows.items():
            yield block.get_submodule(name).register_forward_hook(
                lambda part, inputs, output, name=name, kept=kept: keep(name, output, kept)
            )
        for name, part in block.named_modules():
            if part in norms:
                yield part.register_forward_pre_hook(lambda part, inputs, name=name: keep(name, inputs[0], stream))

    width = _rows(architectures.feed_forward(block)[-1]).shape[0]
    norms = [part for part in architectures.norms(block) if getattr(part, "weight", stream).shape[0] == width]  # not those inside heads
    with architectures.hooked(hooks()):
        keep("", call.ask(block), stream)
    return found


def _trace(network: Network, steps: Sequence[Any]) -> tuple[list[int], list[dict[str, Tensor]], Tensor]:
    """Where the parts of a student come from: a copy of the network whose weights are the numbers of their rows is cut as the student was.

    Returns:
        The numbers of the student's blocks in the network; for each, by the name of a matrix that reads, the numbers of the entries that it
        still gives; and those of the dimensions of the residual stream.
    """
    numbered = copy.deepcopy(network).float()  # which holds such numbers exactly
    numbers = {block: number for number, block in enumerate(architectures.blocks(numbered.backbone))}
    with torch.no_grad():
        for block in numbers:
            for _, layer in architectures.linears(block):
                matrix = _rows(layer)
                matrix.copy_(torch.arange(len(matrix), device=matrix.device)[:, None].expand_as(matrix))
    for step in steps:
        numbered = step.apply(numbered)
    blocks = architectures.blocks(numbered.backbone)
    kept = [{name: _rows(layer)[:, 0].long() for name, layer in architectures.linears(block)} for block in blocks]
    writers = _writers(blocks[0])
    readers = [{name: found for name, found in rows.items() if name not in writers} for rows in kept]
    return [numbers[block] for block in blocks], readers, kept[0][writers[-1]]


def _writers(block: nn.Module) -> list[str]:
    """The names of a block's matrices that write to the residual stream, the feed-forward one last."""
    writers = [*(layers[-1] for layers in architectures.attentions(block).values()), architectures.feed_forward(block)[-1]]
    names = {layer: name for name, layer in architectures.linears(block)}
    return [names[layer] for layer in writers]


def _rows(layer: nn.Module) -> Tensor:
    """A matrix [out, in] as it lies in memory, whichever way its kind holds it."""
    weight: Any = layer.weight
    return weight.T if isinstance(layer, Conv1D) else weight


def _sample(model: Model, encoded: Encoded) -> dict[str, Tensor]:
    """A padded batch of rows, spread evenly over those that are not much longer than most."""
    lengths = encoded.lengths.clip(max=model.encoder.max_length)
    longest = max(1, int(np.quantile(lengths, COMMON)))
    common = np.flatnonzero(lengths <= longest)
    places = common[np.unique(np.linspace(0, len(common) - 1, max(1, min(len(common), TOKENS // longest))).round().astype(int))]
    return tensors(model.encoder.pad(encoded, places), model.device)


def _enter(network: Network, batch: dict[str, Tensor], blocks: Sequence[nn.Module]) -> list[_Call]:
    """What some blocks are given, in their order, when a network reads a batch, which it does as far as the last of them."""
    calls: list[_Call] = []

    def note(block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        forget = [None if isinstance(value, Cache) else value for value in args[1:]]  # a block is asked more than once
        calls.append(_Call(args[0], tuple(forget), {name: None if isinstance(value, Cache) else value for name, value in options.items()}))
        if block is blocks[-1]:
            raise _Enough

    hooks = (block.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for block in blocks)  # before what a step hooked there
    with architectures.hooked(hooks), suppress(_Enough):
        network.read(**batch)
    return calls


def _tokens(values: Tensor, mask: Tensor) -> Tensor:
    """What belongs to the texts' own tokens, [tokens, d] of [b, s, d], in fp32."""
    return values[mask].float()


@contextmanager
def _still(network: Network) -> Iterator[None]:
    """In evaluation mode, and as before afterwards."""
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)
