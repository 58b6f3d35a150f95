"""Several rows in one sequence, of which none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightune.errors import InputError
from lightune.supervision.rows import Supervised


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
    room = np.zeros(len(rows), dtype=np.int64)
    bins: list[list[Supervised]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        fits = room[: len(bins)] >= len(row.ids)
        place = int(fits.argmax()) if fits.any() else len(bins)
        if place == len(bins):
            bins.append([])
            room[place] = length
        bins[place].append(row)
        room[place] -= len(row.ids)
    return [_packed(together) for together in bins]


def _packed(rows: Sequence[Supervised]) -> Packed:
    lengths = [len(row.ids) for row in rows]
    return Packed(
        np.concatenate([row.ids for row in rows]),
        np.concatenate([row.trained for row in rows]),
        np.repeat(np.arange(len(rows), dtype=np.int32), lengths),
        np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        tuple(row.row for row in rows),
    )
