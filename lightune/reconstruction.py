"""What a cut took away is made up for by what stays: every matrix of a smaller model is fitted to give what it gave before, in closed form.

From the first block to the last, a matrix gets the weights with which it comes nearest, from what the smaller model hands it, to what it gave in
the model before: least squares over a few thousand tokens (He et al. 2017, Channel Pruning, equation 3, with the inputs of the smaller model), by
ridge regression towards the weights that are there. What lay in dimensions that went is so far restored as those that stay tell it. A matrix that
writes to the residual stream aims at the stream behind it, and the last one before layers that went at what they left there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.distillation import hurries
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.runtime.tokenization import Encoded
from lightune.steps import pool, step_name

CUTS = ("depth", "ffn", "heads", "hidden", "pool", "factor")  # steps that leave what they do not cut as it was
WORK = 1.4e12  # multiply-adds of the blocks of the model before, which bounds the sample: half a minute on two cores
LEAST = 16384  # tokens of the sample, whatever the model: a matrix that has seen few for every entry that it reads tells them by heart
CHUNK = 8192  # tokens that are read at once, padding included
RIDGE = 0.01  # of the mean square of what a matrix is given

Goals = Mapping[str, Tensor]  # [tokens, entries] by name inside a block: what a reader gives, a norm takes, or "", the block


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


def reconstruct(student: Model, before: Model, encoded: Encoded, effort: float = 1.0) -> Model:
    """Fit a student that was just cut from a model to give what that model gives. Returns the student.

    Args:
        before: the model of which a copy was cut, by steps that `can_reconstruct` allows. encoded: rows, of which a sample is read.
        effort: the share of `WORK` that is spent.
    """
    numbers, rows, stream = _trace(before.network, student.changes[len(before.changes) :])
    olds, news = (architectures.blocks(model.network.backbone) for model in (before, student))
    ends = [*(number - 1 for number in numbers[1:]), len(olds) - 1]
    with torch.no_grad(), _still(before.network), _still(student.network), _hurried(before.network):
        chunks = [
            _Chunk(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool(),
                   _enter(before.network, batch, olds), _enter(student.network, batch, news))
            for batch in _sample(before, encoded, effort)
        ]  # fmt: skip
        for chunk, block in product(chunks, olds[: numbers[0]]):
            chunk.before.go_on(chunk.before.ask(block))
        for place, block in enumerate(news):
            start, end = numbers[place], ends[place]  # of the layers whose work the block has to do
            goals = []
            for chunk in chunks:
                read = pool.read_by(student.network.backbone, place, chunk.mask)
                theirs = pool.read_by(before.network.backbone, start, chunk.mask)
                halve = read.shape != theirs.shape
                own = last = _goals(olds[start], chunk.before, theirs, rows[place], stream, halve)
                for number in range(start + 1, end + 1):
                    last = _goals(olds[number], chunk.before, theirs, {}, stream, halve)
                goals.append((own, last, read))
            _Fit(block).run([chunk.student for chunk in chunks], goals)
    return student


@dataclass(eq=False)
class _Reading:
    """How far a network has read some rows: the residual stream [b, s, d] before its next block, and what else the blocks from there on are given."""

    stream: Tensor
    others: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def ask(self, block: nn.Module) -> Tensor:
        """The stream that the next block makes of it."""
        args, options = self.others[0]
        return architectures.stream_of(block(self.stream, *args, **options))

    def go_on(self, stream: Tensor) -> None:
        """Stand behind the next block, which gave a stream."""
        self.stream, self.others = stream, self.others[1:]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some rows, and how far both networks have read them. mask: bool [b, s], which tokens are no padding."""

    mask: Tensor
    before: _Reading
    student: _Reading


class _Fit:
    """Fits the matrices of one block in the order in which they run."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.names = {part: name for name, part in block.named_modules()}
        self.writers = [block.get_submodule(name) for name in _writers(block)]
        self.done: set[nn.Module] = set()

    def run(self, readings: Sequence[_Reading], goals: Sequence[tuple[Goals, Goals, Tensor]]) -> None:
        """Ask the block again after every matrix that was fitted, or all those that read what others give, until none is left.

        goals: for each reading those of all matrices but the last, those of the last, and which tokens count, bool [b, s].
        """
        while True:
            sums: dict[nn.Module, _Sums] = {}
            for reading, (own, last, mask) in zip(readings, goals, strict=True):
                look = _Look(self, own, last, mask, sums, len(sums))
                with architectures.hooked(look.hooks()), suppress(_Enough):
                    reading.go_on(reading.ask(self.block))
            if not sums:
                return
            for layer, found in sums.items():
                found.improve(layer)
            self.done.update(sums)


@dataclass(eq=False)
class _Look:
    """One reading of a block, as far as the matrices that are to be fitted next, of whose work it adds to the sums.

    expected: how many these are, 0 where that is not known yet.
    """

    fit: _Fit
    own: Goals
    last: Goals
    mask: Tensor
    sums: dict[nn.Module, _Sums]
    expected: int
    read: set[nn.Module] = field(default_factory=set)  # those that read, so far
    waiting: tuple[nn.Module, Tensor] | None = None  # a writer that has run, and what it was given

    def hooks(self) -> Iterator[Any]:
        """Registers what notes the block's work, and gives the handles."""
        for _, layer in architectures.linears(self.fit.block):
            if layer in self.fit.writers:
                yield layer.register_forward_pre_hook(self._stop_before)
            if layer in self.fit.done:
                continue
            yield layer.register_forward_hook(self._wait if layer in self.fit.writers else self._add_reader)
        for norm in architectures.norms(self.fit.block):
            yield norm.register_forward_pre_hook(lambda norm, inputs: self._add_writer(self.fit.names[norm], inputs[0]))
        yield self.fit.block.register_forward_hook(lambda block, inputs, output: self._add_writer("", architectures.stream_of(output)))

    def _add_reader(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = self.fit.names[layer]
        if name in self.own and layer not in self.read:
            self.read.add(layer)
            self._add(layer, _tokens(inputs[0], self.mask), self.own[name] - _tokens(output, self.mask))
            if len(self.read) == self.expected:
                raise _Enough

    def _stop_before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.read:
            raise _Enough

    def _wait(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.waiting = layer, _tokens(inputs[0], self.mask)

    def _add_writer(self, where: str, stream: Tensor) -> None:
        """A writer has run; the stream behind it is what a norm takes, or what the block gives."""
        if self.waiting is not None:
            layer, given = self.waiting
            goals = self.last if layer is self.fit.writers[-1] else self.own
            self._add(layer, given, goals[where] - _tokens(stream, self.mask))
            raise _Enough

    def _add(self, layer: nn.Module, given: Tensor, gap: Tensor) -> None:
        self.sums.setdefault(layer, _Sums()).add(
            given if getattr(layer, "bias", None) is None else functional.pad(given, (0, 1), value=1.0), gap
        )


class _Sums:
    """What least squares need to know of what a matrix was given, with a one for its bias, and by what its answers should change."""

    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0

    def add(self, given: Tensor, gap: Tensor) -> None:
        """given: [n, in]; gap: [n, out]."""
        with torch.autocast(given.device.type, enabled=False):
            self.squares = self.squares + (given.T @ given).double()
            self.products = self.products + (given.T @ gap).double()

    def improve(self, layer: nn.Module) -> None:
        """Change the matrix and its bias so that its answers change by what was asked, as nearly as they can."""
        squares, matrix, bias = self.squares, _rows(layer), getattr(layer, "bias", None)
        assert isinstance(squares, Tensor)
        count = matrix.shape[1]
        ridge = squares.diagonal()[:count].mean() * RIDGE * torch.ones_like(squares[0])
        ridge[count:] = 0  # a bias is free
        change = torch.linalg.solve(squares + ridge.diag(), self.products)
        matrix.add_(change[:count].T.to(matrix.dtype))
        if bias is not None:
            bias.add_(change[-1].to(bias.dtype))


def _goals(block: nn.Module, reading: _Reading, mask: Tensor, rows: Mapping[str, Tensor], stream: Tensor, halve: bool) -> Goals:
    """What the next block of the model before does, as far as a student has the entries; the reading goes on behind it.

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
        reading.go_on(reading.ask(block))
    keep("", reading.stream, stream)
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


def _sample(model: Model, encoded: Encoded, effort: float) -> Iterator[dict[str, Tensor]]:
    """Padded batches of rows that are spread evenly over all, the short ones first."""
    lengths = encoded.lengths.clip(1, model.encoder.max_length)
    weights = sum(
        _rows(layer).numel() for block in architectures.blocks(model.network.backbone) for _, layer in architectures.linears(block)
    )
    count = math.ceil(max(effort * WORK / weights, LEAST) / lengths.mean())
    places = np.unique(np.linspace(0, len(lengths) - 1, min(len(lengths), count)).round().astype(int))
    places = places[np.argsort(lengths[places], kind="stable")]
    begin = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or (end + 1 - begin) * lengths[places[end]] > CHUNK:
            yield tensors(model.encoder.pad(encoded, places[begin:end]), model.device)
            begin = end


def _enter(network: Network, batch: dict[str, Tensor], blocks: Sequence[nn.Module]) -> _Reading:
    """A network's reading of a batch before the first of its blocks, when it has gone through all of them once to see what they are given."""
    streams: list[Tensor] = []
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not streams:
            streams.append(args[0])
        forget = [None if isinstance(value, Cache) else value for value in args[1:]]  # a block is asked more than once
        others.append((tuple(forget), {name: None if isinstance(value, Cache) else value for name, value in options.items()}))
        if block is blocks[-1]:
            raise _Enough

    hooks = (block.register_forward_pre_hook(note, with_kwargs=True, prepend=True) for block in blocks)  # before what a step hooked there
    with architectures.hooked(hooks), suppress(_Enough):
        network.read(**batch)
    return _Reading(streams[0], others)


def _hurried(network: Network) -> Any:
    """bf16 for what is read where that is faster; copies of weights are not kept, for the student's change."""
    return torch.autocast(next(network.parameters()).device.type, torch.bfloat16, enabled=hurries(network), cache_enabled=False)


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
