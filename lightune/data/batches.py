"""Which examples go through the model together: steps of a fixed number of examples, grouped by length, cut by a token budget."""

from __future__ import annotations

import numpy as np

POOL = 50  # steps whose examples are sorted together: enough to lose little padding, few enough to stay random


def plan_epoch(lengths: np.ndarray, step_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The row numbers of every step of an epoch, each row once; a step's rows have similar lengths, the order of steps is random.

    The same seed and epoch always give the same plan.
    """
    draw = np.random.default_rng((seed, epoch))
    order = draw.permutation(len(lengths))
    steps = []
    for begin in range(0, len(order), step_size * POOL):
        pool = order[begin : begin + step_size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        steps += [pool[first : first + step_size] for first in range(0, len(pool), step_size)]
    return [steps[number] for number in draw.permutation(len(steps))]


def cut_step(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """A step's rows, sorted by length, in pieces of at most `budget` padded tokens; a row longer than the budget goes alone."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    pieces, begin = [], 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or (end + 1 - begin) * int(lengths[ordered[end]]) > budget:
            pieces.append(ordered[begin:end])
            begin = end
    return pieces
