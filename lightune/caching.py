"""Activations below the lowest trained block, computed once and read again in every epoch.

Where a method leaves the bottom of a network frozen, that bottom says the same of a row in every epoch. `keep_frozen` finds how far it
reaches, runs it once over the rows, and lets the training begin above it. What is kept lies in memory, or in 16 bits in a file.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from lightune import architectures
from lightune.development import LabelJudge
from lightune.models import BATCH
from lightune.networks import Network, tensors
from lightune.runtime.tokenization import Encoded, Encoder, batches
from lightune.training import Training

MEMORY = 1 << 30  # bytes that are kept in memory; what takes more goes into a file
LEAST_EPOCHS = 2.0  # from which a pass over all rows beforehand pays
SAMPLE = 8  # rows on which kept and computed vectors are compared
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}  # by which they may differ, as a share of their norm
Precision = Callable[[], AbstractContextManager[None]]


class _Reached(Exception):
    """No error: it ends a pass above which nothing is needed."""


class Recall(nn.Module):
    """Stands in the place of a frozen part: gives what `find` finds for its arguments, in the form in which the part gives its vectors."""

    def __init__(self, part: nn.Module, find: Callable[[Tensor], Tensor], wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.__dict__["part"] = part  # not a child: it stays where it belongs
        self.find, self.wrap = find, wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["part"], name)  # models look at their blocks' attributes

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the part would give."""
        return self.wrap(self.find(next(value for value in (*given, *named.values()) if isinstance(value, Tensor))))


class Shelf:
    """What the frozen parts of a network say of each row, [s, d] for its s tokens.

    parts: the frozen parts from the bottom up, see `find_frozen`. folder: where a file may lie if MEMORY is too small.
    precision: the context in which the network runs.
    """

    def __init__(
        self,
        network: Network,
        parts: Sequence[nn.Module],
        encoder: Encoder,
        encoded: Encoded,
        folder: Path | None = None,
        precision: Precision = nullcontext,
    ) -> None:
        self.lengths = np.array([len(ids) for ids in encoded.ids], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.folder = folder
        self.device = network.head.weight.device
        self.store, self.wrap = self._fill(network, parts[-1], encoder, encoded, precision)
        stand_ins = {part: Recall(part, self._find if part is parts[-1] else lambda hidden: hidden, self.wrap) for part in parts}
        self.seats = [
            (parent, name, child, stand_ins[child])
            for parent in network.modules()
            for name, child in parent._modules.items()
            if child in stand_ins
        ]
        self.places = np.zeros(0, dtype=np.int64)  # of the rows that are read now

    @contextmanager
    def recalled(self, places: np.ndarray) -> Iterator[None]:
        """Within it the network takes what is kept of these rows, in their order, instead of running its frozen parts on them."""
        self.places = places
        for parent, name, _, stand_in in self.seats:
            parent._modules[name] = stand_in
        try:
            yield
        finally:
            for parent, name, part, _ in self.seats:
                parent._modules[name] = part

    def _find(self, given: Tensor) -> Tensor:
        """[b, s, d] of the rows that are read, zeros where a row is padded; rows that stand in a batch again come again."""
        index, _ = self._index(self.places)
        found = self.store[torch.from_numpy(index)].to(self.device)
        found = found if self.dtype == found.dtype else found.to(self.dtype)
        times = given.shape[0] // len(self.places)
        return found if times == 1 else found.repeat(times, 1, 1)

    def _index(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of rows are kept, int64 [b, s], and which are there; padding points at the last place, which holds zeros."""
        steps = np.arange(self.lengths[places].max())[None]
        there = steps < self.lengths[places][:, None]
        return np.where(there, self.starts[places][:, None] + steps, self.starts[-1]), there

    def _fill(
        self, network: Network, last: nn.Module, encoder: Encoder, encoded: Encoded, precision: Precision
    ) -> tuple[Tensor, Callable[[Tensor], Any]]:
        """Run the frozen parts over all rows; gives the store, and how the last part gives its vectors."""
        seen: list[Any] = [None]

        def stop(part: nn.Module, given: Any, found: Any) -> None:
            seen[0] = found
            raise _Reached

        hook, store = last.register_forward_hook(stop), None
        try:
            for rows in batches(self.lengths, BATCH):
                with torch.no_grad(), precision():
                    try:
                        network.read(**tensors(encoder.pad(encoded, rows), self.device))
                    except _Reached:
                        vectors = _vectors(seen[0]).detach()
                index, there = self._index(rows)
                store = self._open(vectors) if store is None else store
                store[torch.from_numpy(index[there])] = vectors[torch.from_numpy(there).to(self.device)].to(store.device, store.dtype)
        finally:
            hook.remove()
        assert store is not None  # there is at least one row
        return store, _wrapper(seen[0])

    def _open(self, like: Tensor) -> Tensor:
        """An empty store for vectors like these, with one more place of zeros."""
        self.dtype = like.dtype
        shape = (int(self.starts[-1]) + 1, like.shape[-1])
        if size_of(self.lengths, shape[1]) <= MEMORY:
            store = torch.zeros(shape, dtype=like.dtype)
        else:
            kind = torch.float16 if like.dtype == torch.float32 else like.dtype
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".kept-") as file:  # its name goes now, so that nothing is left behind
                store = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=kind).view(shape)
        return store


def size_of(lengths: np.ndarray, width: int) -> int:
    """Bytes that the vectors [s, width] of rows of these lengths take in fp32."""
    return int(lengths.sum()) * width * 4


def find_frozen(network: Network, batch: dict[str, Tensor]) -> list[nn.Module]:
    """The parts that no gradient reaches: the whole backbone, or its first blocks from the bottom up; none where all are reached.

    Autograd tells: so parts that are shared between blocks, or trained beside them, count wherever they are used.
    """
    blocks = architectures.blocks(network.backbone)
    order: list[tuple[nn.Module, bool]] = []

    def note(part: nn.Module, given: Any, found: Any) -> None:
        order.append((part, _vectors(found).requires_grad))

    hooks = [block.register_forward_hook(note) for block in blocks]
    try:
        found = network.read(**batch).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if not found.requires_grad:
        return [network.backbone]
    if [part for part, _ in order] != blocks:
        return []  # a block that is used several times
    return [part for part, _ in takewhile(lambda pair: not pair[1], order)]


def keep_frozen(training: Training, folder: Path | None = None, *, seconds: float = math.inf) -> int:
    """Let a training read what its frozen parts say from a `Shelf`, where that pays and changes nothing; gives how many parts are kept.

    It pays from LEAST_EPOCHS. It changes nothing where the frozen parts drop nothing out and need nothing but their rows, which is tried
    on some rows. The time it takes counts as the training's.

    folder: for what is larger than MEMORY; without one, that is computed in every epoch.
    seconds: the most that the first pass may take, as its time on these rows foretells.
    """
    begin = time.perf_counter()
    network, encoder, lengths = training.network, training.model.encoder, training.lengths
    if training.epochs < LEAST_EPOCHS or not _fits(lengths, network.head.in_features, folder):
        return 0
    sample = np.argsort(lengths, kind="stable")[np.linspace(0, len(lengths) - 1, min(SAMPLE, len(lengths))).astype(int)]
    few = _take(training.encoded, sample)
    batch = tensors(encoder.pad(few), training.device)
    parts = find_frozen(network, batch)
    if not parts:
        return 0
    clock = time.perf_counter()
    tried = Shelf(network, parts, encoder, few, folder, training.in_precision)
    foretold = (time.perf_counter() - clock) * lengths.sum() / lengths[sample].sum()
    if foretold > seconds or not _agrees(tried, training, batch):
        return 0
    shelf = Shelf(network, parts, encoder, training.encoded, folder, training.in_precision)
    training.objective = _recalling(training.objective, shelf)
    if len(training.dev) and isinstance(training.judge, LabelJudge):
        training.judge.answer = _answers(training, parts, folder)
    training.seconds += time.perf_counter() - begin
    return len(parts)


def _agrees(shelf: Shelf, training: Training, batch: dict[str, Tensor]) -> bool:
    """Whether the network says the same with what is kept as without, up to rounding, while it trains."""
    network, places = training.network, np.arange(len(shelf.lengths))
    there = torch.from_numpy(shelf._index(places)[1]).to(training.device)
    found = []
    network.train()
    for context in (nullcontext(), shelf.recalled(places)):
        with torch.random.fork_rng(devices=[]), torch.no_grad(), training.in_precision(), context:
            torch.manual_seed(0)
            found.append(network.read(**batch).last_hidden_state[there].float())
    return bool((found[0] - found[1]).norm() <= TOLERANCE[shelf.store.dtype] * found[0].norm())


def _recalling(objective: Callable[..., Tensor], shelf: Shelf) -> Callable[..., Tensor]:
    """The same objective, for whose passes the frozen parts' vectors are recalled."""

    def losses(network: Network, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        with shelf.recalled(places):
            return objective(network, batch, targets, places)

    return losses


def _answers(training: Training, parts: Sequence[nn.Module], folder: Path | None) -> Callable[[], np.ndarray]:
    """What gives the logits of the development rows, whose frozen parts are kept too."""
    model, encoder = training.model, training.model.encoder
    encoded = encoder.encode([item.text for item in training.dev], [item.pair for item in training.dev])
    shelf = Shelf(training.network, parts, encoder, encoded, folder)

    def answer() -> np.ndarray:
        found = np.zeros((len(encoded), model.answers.outputs), dtype=np.float32)
        training.network.eval()
        for rows in batches(shelf.lengths, BATCH):
            with torch.inference_mode(), shelf.recalled(rows):
                found[rows] = training.network(**tensors(encoder.pad(encoded, rows), training.device)).cpu().numpy()
        return found

    return answer


def _fits(lengths: np.ndarray, width: int, folder: Path | None) -> bool:
    """Whether what is kept of rows has room in memory, or twice over where the folder is."""
    size = size_of(lengths, width)
    return size <= MEMORY or (folder is not None and shutil.disk_usage(folder).free >= 2 * size)


def _take(encoded: Encoded, places: np.ndarray) -> Encoded:
    """Some rows alone."""
    types = None if encoded.types is None else [encoded.types[place] for place in places]
    return Encoded([encoded.ids[place] for place in places], types, encoded.lengths[places], 0)


def _vectors(found: Any) -> Tensor:
    """The vectors [b, s, d] in what a block or a backbone gives."""
    return found if isinstance(found, Tensor) else found[0]


def _wrapper(found: Any) -> Callable[[Tensor], Any]:
    """How a part that gave this gives vectors; what it gives beside them is left out."""
    if isinstance(found, Tensor):
        return lambda vectors: vectors
    if isinstance(found, tuple):
        return lambda vectors: (vectors, *[None] * (len(found) - 1))
    return lambda vectors: BaseModelOutput(last_hidden_state=vectors)
