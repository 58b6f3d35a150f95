"""Whether an exported generator writes and judges text as its model does, through the contract `runtime.generation.Generator`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightune.errors import CheckFailed, InputError
from lightune.exports.generative import Closeness
from lightune.runtime.generation import Generated, GenerationOptions, Generator, Prompt

SHOWN = 80  # characters of a text in a message
BLOCK = 32  # rows or prompts that both see before the clock is looked at
SECONDS = 60.0  # for the rows, and as many for the prompts


@dataclass(frozen=True)
class Likeness:
    """What a comparison found.

    model_perplexity, perplexity: the model's and the export's, per token of the held-out rows. change: the second over the first, less 1.
    margin: how far the change may be off, since there are no more rows: two standard errors of the tokens' differences.
    tokens: how many were judged; what several rows begin with counts once.
    agree: the share of equal greedy answers, None without prompts. prompts: how many.
    """

    model_perplexity: float
    perplexity: float
    change: float
    margin: float
    tokens: int
    agree: float | None
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        return asdict(self)

    @property
    def told(self) -> str:
        """The figures in a sentence."""
        same = "" if self.agree is None else f"; {self.agree:.1%} of {self.prompts} greedy answers are equal"
        return (
            f"perplexity {self.perplexity:.4g}, the model's is {self.model_perplexity:.4g} ({self.change:+.2%} ± {self.margin:.2%} on "
            f"{self.tokens:,} held-out tokens){same}"
        )


def choose_rows(rows: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
    """The first rows in which so many tokens can be judged, see `Likeness.tokens`; all of them where there are fewer."""
    chosen, judged = [], 0
    for row, first in zip(rows, _first_times(rows), strict=True):
        chosen.append(row)
        judged += int(first.sum())
        if judged >= tokens:
            break
    return chosen


def compare(
    model: Generator,
    exported: Generator,
    rows: Sequence[np.ndarray],
    prompts: Sequence[Prompt],
    tolerance: Closeness,
    *,
    max_tokens: int = 64,
    seconds: float = SECONDS,
) -> Likeness:
    """Let both judge the same rows of token ids, int [s] each, and answer the same prompts greedily.

    seconds: rows beyond the first BLOCK are begun within so many alone, prompts likewise; `Likeness` counts what there was time for.

    Raises:
        CheckFailed: beyond the tolerance; the message says where: the row that differs most, or the first unequal answer.
        InputError: no rows with at least two tokens.
    """
    if not any(len(row) > 1 for row in rows):
        raise InputError(f"Got {len(rows)} rows to compare on, expected at least one with two tokens.")
    pair, options = (model, exported), GenerationOptions(max_tokens=max_tokens)
    judged = _both(pair, rows, lambda generator, some: generator.token_logprobs(some), seconds)
    known = (~np.isnan(given) for given in judged[0])  # not the sources of an encoder with a decoder
    first = [once & told for once, told in zip(_first_times(rows[: len(judged[0])]), known, strict=True)]
    ours, theirs = ([found[once] for found, once in zip(each, first, strict=True)] for each in judged)
    said, heard = _both(pair, prompts, lambda generator, some: generator.generate(some, options), seconds)
    same = [one.text == other.text for one, other in zip(said, heard, strict=True)]
    before, after = perplexity(ours), perplexity(theirs)
    gaps = np.concatenate(theirs).astype(np.float64) - np.concatenate(ours)
    margin = 2 * float(gaps.std()) / len(gaps) ** 0.5
    found = Likeness(before, after, after / before - 1, margin, len(gaps), float(np.mean(same)) if same else None, len(same))
    problems = [*_judged(found, ours, theirs, tolerance), *_answered(found, prompts, said, heard, same, tolerance)]
    if problems:
        raise CheckFailed(f"{exported.name} does not write as its model does: {'; '.join(problems)}. Export with more bits, or as hf.")
    return found


def perplexity(logprobs: Sequence[np.ndarray]) -> float:
    """exp of the mean negative log-probability of all tokens together."""
    every = np.concatenate(logprobs).astype(np.float64)
    return float(np.exp(-every.mean()))


def _both(
    pair: tuple[Generator, Generator], items: Sequence[Any], work: Callable[[Generator, Sequence[Any]], list[Any]], seconds: float
) -> tuple[list[Any], list[Any]]:
    """What each of two generators makes of the items, block by block, until the seconds are over; the first block is always done."""
    until = time.monotonic() + seconds
    ours: list[Any] = []
    theirs: list[Any] = []
    for begin in range(0, len(items), BLOCK):
        if begin and time.monotonic() >= until:
            break
        for generator, found in zip(pair, (ours, theirs), strict=True):
            found += work(generator, items[begin : begin + BLOCK])
    return ours, theirs


def _first_times(rows: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Which tokens of each row, after its first, no earlier row has after the same beginning: bool [s - 1].

    Conversations begin alike, and their template's words would count once for every row.
    """
    seen: set[int] = set()
    for row in rows:
        beginnings = list(itertools.accumulate(row.tolist(), lambda before, token: hash((before, token)), initial=0))[2:]
        yield np.array([beginning not in seen for beginning in beginnings], dtype=bool)
        seen.update(beginnings)


def _judged(found: Likeness, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: Closeness) -> list[str]:
    limit = tolerance.perplexity
    if limit is None or abs(found.change) <= limit + found.margin:  # what is no number is beyond every limit
        return []
    gaps = [float(np.abs(one - other).mean()) if len(one) else 0.0 for one, other in zip(ours, theirs, strict=True)]
    worst = int(np.argmax(np.nan_to_num(gaps, nan=np.inf)))
    return [
        f"its perplexity is {found.perplexity:.4g} and the model's {found.model_perplexity:.4g} ({found.change:+.2%} ± {found.margin:.2%}, "
        f"allowed {limit:.1%}), most in row {worst + 1}, where a token's log-probability differs by {gaps[worst]:.3g} on average"
    ]


def _answered(
    found: Likeness,
    prompts: Sequence[Prompt],
    said: Sequence[Generated],
    heard: Sequence[Generated],
    same: Sequence[bool],
    tolerance: Closeness,
) -> list[str]:
    if tolerance.agree is None or found.agree is None:
        return []
    unequal = same.count(False)
    if unequal <= max(1, (1 - tolerance.agree) * len(same)):
        return []
    place = same.index(False)
    prompt = prompts[place]
    told = prompt if isinstance(prompt, str) else prompt[-1].content
    return [
        f"{unequal} of {len(same)} greedy answers differ, allowed {1 - tolerance.agree:.0%}; first to prompt {place + 1}, {_short(told)}: the model "
        f"says {_short(said[place].text)} and the export {_short(heard[place].text)}"
    ]


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
