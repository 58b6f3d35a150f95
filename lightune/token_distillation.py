"""A small language model learns from what a larger one expects at every place where an answer's token is predicted.

The teacher reads every row once. Of what it expects the K likeliest tokens are kept, and how likely all others are together: for a vocabulary
of 49 152 tokens 392 bytes a place in place of 98 304. The student is compared with these K + 1 outcomes, chunk by chunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightune.networks import LanguageNetwork
from lightune.recipes import DistillOptions
from lightune.token_losses import CHUNK, errors, judged_losses, normalise

KEPT = 64  # tokens whose probabilities are kept at a place
LEAST = -40.0  # the lowest log-probability that is kept: what is below has no weight

# The supervised places of some rows: the rows' numbers, and the vectors [m, d] from which their tokens are predicted, one row after another.
Read = Iterator[tuple[np.ndarray, Tensor]]


@dataclass(frozen=True)
class Expected:
    """What a teacher expects at every supervised place of n rows, softened by a temperature.

    offsets: int64 [n + 1], where a row's places begin. ids: int32 [m, k], its likeliest tokens. chances: float16 [m, k], their
    log-probabilities. rest: float32 [m], the log-probability of all others together.
    """

    offsets: np.ndarray
    ids: np.ndarray
    chances: np.ndarray
    rest: np.ndarray
    temperature: float

    def of(self, rows: Sequence[int] | np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """The likeliest tokens int64 [m, k] of some rows' places, one row after another, and all log-probabilities float32 [m, k + 1]."""
        places = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        chances = np.concatenate([self.chances[places].astype(np.float32), self.rest[places, None]], axis=1)
        return torch.from_numpy(self.ids[places].astype(np.int64)).to(device), torch.from_numpy(chances).to(device)


def observe_tokens(
    network: LanguageNetwork, counts: np.ndarray, key: str, read: Callable[[], Read], folder: Path, temperature: float
) -> Expected:
    """What a teacher expects, read once and kept in a folder, or taken from there where the same teacher has read the same rows before.

    Args:
        counts: int64 [n], supervised places of every row. key: what the teacher and the rows are, see `describe_reading`.
        read: gives the vectors of all rows' places.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    kept = min(KEPT, network.head.weight.shape[0] - 1)
    known = json.dumps([key, kept, temperature])
    path = folder / "key.json"
    if not path.exists() or path.read_text(encoding="utf-8") != known:
        folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _record(network, offsets, kept, read(), folder, temperature)
        path.write_text(known, encoding="utf-8")
    ids, chances, rest = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "chances", "rest"))
    return Expected(offsets, ids, chances, rest, temperature)


def describe_reading(network: LanguageNetwork, rows: Sequence[np.ndarray]) -> str:
    """A digest of a teacher's weights, of which every 4096th or so is looked at, and of the ids of its rows."""
    digest = hashlib.sha256()
    for ids in rows:
        digest.update(ids.tobytes())
    for item in network.state_dict().values():
        digest.update(np.ascontiguousarray(item.detach().cpu().flatten()[:: max(1, item.numel() // 4096)].float().numpy()).tobytes())
    return digest.hexdigest()


def imitation_losses(
    network: LanguageNetwork, hidden: Tensor, labels: Tensor, expected: tuple[Tensor, Tensor], temperature: float, options: DistillOptions
) -> Tensor:
    """The student's loss at every place, float32 [m]: labels_weight times that of the label, and logits_weight times T² times the divergence
    of the softened outcomes from the teacher's (Hinton et al. 2015, section 2).

    hidden: [m, d]. labels: int64 [m]. expected: what the teacher expects at these places, from `Expected.of`.
    """
    judge = partial(_judge, labels, *expected, temperature, options)
    return judged_losses(hidden, network.head.weight, network.head.bias, judge)


def _judge(
    labels: Tensor, ids: Tensor, theirs: Tensor, temperature: float, options: DistillOptions, logits: Tensor, part: slice
) -> tuple[Tensor, Callable[[], Tensor]]:
    ids, theirs, labels = ids[part], theirs[part], labels[part]
    ours = normalise(logits / temperature)
    kept = ours.gather(1, ids)
    rest = _rest(ours, ids)
    outcomes = torch.cat([kept, rest[:, None]], dim=1)
    gaps = (theirs.exp() * (theirs - outcomes)).sum(1)
    plain = normalise(logits)
    losses = options.logits_weight * temperature**2 * gaps - options.labels_weight * plain.gather(1, labels[:, None])[:, 0]

    def slopes() -> Tensor:
        """Of the kept tokens q - p; the others share the slope of their sum by how likely each is among them: q · (1 - p_rest / q_rest)."""
        found = ours.exp_()
        found.mul_((1 - (theirs[:, -1] - rest).exp())[:, None]).scatter_(1, ids, kept.exp() - theirs[:, :-1].exp())
        return found.mul_(options.logits_weight * temperature).add_(errors(plain, labels), alpha=options.labels_weight)

    return losses, slopes


def _rest(chances: Tensor, ids: Tensor) -> Tensor:
    """The log-probability [c] of all tokens but some [c, k], from log-probabilities [c, v]; not below LEAST."""
    return chances.scatter(1, ids, -torch.inf).logsumexp(1).clamp(min=LEAST)


def _record(network: LanguageNetwork, offsets: np.ndarray, kept: int, read: Read, folder: Path, temperature: float) -> None:
    """Write ids.npy, chances.npy and rest.npy."""
    whole = int(offsets[-1])
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.int32, (whole, kept)), "chances": (np.float16, (whole, kept)), "rest": (np.float32, (whole,))
    }  # fmt: skip
    files = {name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, shape) for name, (kind, shape) in shapes.items()}
    for rows, hidden in read:
        places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
        for begin in range(0, len(places), CHUNK):
            with torch.no_grad():
                chances = normalise(network.head(hidden[begin : begin + CHUNK]).float() / temperature)
            top = chances.topk(kept, dim=1)
            found = {"ids": top.indices, "chances": top.values.clamp(min=LEAST), "rest": _rest(chances, top.indices)}
            for name, values in found.items():
                files[name][places[begin : begin + CHUNK]] = values.cpu().numpy()
    for name in tuple(files):
        files.pop(name).flush()
