"""Several rows in one sequence, of which none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightune.data.batches import cut_step, plan_epoch
from lightune.errors import InputError
from lightune.supervision.rows import Supervised

MEASURED_STEPS = 500  # at most, by which it is told what packing would spare


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows one after the other.

    ids, trained: [s] as in `Supervised`. segments: int32 [s], 0 for the tokens of the first row, 1 for those of the second, ...; a token may
    see tokens of its own segment alone. positions: int32 [s], from 0 in every segment. rows: the row of the data of each segment.
    """

    ids: np.ndarray
    trained: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    rows: tuple[int, ...]


def pack(rows: Sequence[Supervised], length: int) -> list[Packed]:
    """Rows together in sequences of at most `length` tokens: first fit, the longest first (Johnson 1973).

    Raises:
        InputError: rows are longer than that.
    """
    over = [row.row for row in rows if len(row.ids) > length]
    if over:
        raise InputError(
            f"{len(over):,} rows are longer than the {length:,} tokens to pack into, among them row {over[0]}. "
            "Pack into as many as the longest row has, or shorten the rows."
        )
    return [_packed([rows[place] for place in together]) for together in _first_fit([len(row.ids) for row in rows], length)]


@dataclass(frozen=True)
class Room:
    """Tokens of the same rows as they go through the model: alone, side by side in batches of like length, and packed."""

    tokens: int
    padded: int
    packed: int

    @property
    def wasted(self) -> float:
        """The share of padding side by side."""
        return 1 - self.tokens / max(self.padded, 1)

    @property
    def spared(self) -> float:
        """The share of what goes through the model that packing spares."""
        return 1 - self.packed / max(self.padded, 1)


def measure_room(lengths: np.ndarray, step_size: int, batch_tokens: int, seed: int) -> Room:
    """What the steps of an epoch would take, by the tokens of its rows int [n] and the options of training; of many steps some speak for all."""
    steps = plan_epoch(lengths, step_size, seed, 0)[:MEASURED_STEPS]
    pieces = [lengths[piece] for rows in steps for piece in cut_step(rows, lengths, batch_tokens)]
    packed = sum(len(_first_fit(piece, int(piece.max()))) * int(piece.max()) for piece in pieces)
    return Room(sum(int(piece.sum()) for piece in pieces), sum(len(piece) * int(piece.max()) for piece in pieces), packed)


def _first_fit(lengths: Sequence[int] | np.ndarray, length: int) -> list[list[int]]:
    """The places of the rows that go together."""
    room = np.zeros(len(lengths), dtype=np.int64)
    bins: list[list[int]] = []
    for row in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        fits = room[: len(bins)] >= lengths[row]
        place = int(fits.argmax()) if fits.any() else len(bins)
        if place == len(bins):
            bins.append([])
            room[place] = length
        bins[place].append(row)
        room[place] -= lengths[row]
    return bins


def _packed(rows: Sequence[Supervised]) -> Packed:
    lengths = [len(row.ids) for row in rows]
    return Packed(
        np.concatenate([row.ids for row in rows]),
        np.concatenate([row.trained for row in rows]),
        np.repeat(np.arange(len(rows), dtype=np.int32), lengths),
        np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        tuple(row.row for row in rows),
    )
