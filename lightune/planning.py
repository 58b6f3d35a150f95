"""From a budget to candidates to the one that is chosen: what could hold the limits, what is worth trying, and what lies on the front.

Nothing here trains or measures: costs come from a table, damage from importance that was measured once, so thousands of shapes cost nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Any, Protocol

from lightune.costs import Shape
from lightune.steps import make_step, step_name

HEADS = tuple(count / 12 for count in (12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2))  # shares of heads, with the hidden size
NEURONS = tuple(count / 24 for count in (24, 22, 20, 18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3))  # of feed-forward neurons
NEURON_STEP = 32  # feed-forward sizes are multiples of it
MARGINS = {"max_mb": 0.98, "max_ms": 0.94, "max_ram": 0.94}  # the share of a limit below which a table's prediction, which errs, must stay
SPARE = 0.66  # the candidate beyond the limits holds this share of them
LEVELS = (1 / 20, 1 / 30, 1 / 12)  # of the reference's size and time, where no limit is given
EXPONENTS = {  # how much each share hurts, so that of students that learned from one model the better ones come first
    "layers": 1.0, "hidden": 1.0, "heads": 0.0, "ffn": 0.2, "vocab": 20.0, "tables": 1.0, "matrices": 1.0, "pool": 0.3, "factor": 1.0,
}  # fmt: skip
# Heads go with hidden; of layers that read pairs the square of their share counts. At equal bytes more layers with fewer neurons won on TREC,
# SST-2 and MRPC, and so it is of students of MRPC that are fitted and not trained. Lost tokens cannot be learned back.
FOUR_BITS = {"tables": 0.01, "matrices": 0.01}  # damage; matrices of 4 bits run as those of 8, so they buy size and no time
THINNER = {1 / 2: 0.01, 1 / 3: 0.03}  # damage by the share of a token table's columns that stays; a matrix widens them
COLUMN_STEP = 16  # of a thinner table
STATIC_WIDTHS = (128, 96, 64, 48, 32)  # dimensions of a static student
CHANCE = 2.0  # standard errors below the best score of several that chance may put another that is as good


class Costs(Protocol):
    """What a cost table is asked; precisions: the bits of matrices and of tables that it knows."""

    @property
    def precisions(self) -> Sequence[tuple[int, int]]: ...

    def milliseconds(self, shape: Shape, percentile: int = 50) -> float: ...

    def count_bytes(self, shape: Shape, tokenizer: int | None = None) -> int: ...

    def resident_bytes(self, shape: Shape) -> int: ...


Lose = Callable[[Shape], Mapping[str, float]]  # the share of importance that a shape takes away, from 0 to 1, by knob


@dataclass(frozen=True)
class Candidate:
    """A smaller model that could be made.

    steps: specs of shrink steps in the order in which they are applied. target: the export's spec.
    bytes, milliseconds, resident: predicted. damage: expected loss, from 0 (none) to 1.
    follows: the number of the candidate that this one goes on from, trained with the roundings of its target; None for others.
    stages: in how many it is cut, with training between.
    """

    shape: Shape
    steps: tuple[str, ...]
    target: str
    bytes: int
    milliseconds: float
    resident: int
    damage: float
    follows: int | None = None
    stages: int = 1

    @property
    def name(self) -> str:
        """What it is, in words."""
        shape = self.shape
        if not shape.layers:
            return f"static · {shape.hidden} dimensions · {shape.vocabulary:,} tokens · {shape.tables}-bit tables"
        bits = f"{shape.tables}-bit {'matrices and ' * (shape.weights == 4)}tables"
        pairs = f", {shape.pooled} of pairs" * (shape.pooled > 0)
        layers = f"{shape.layers} layer{'s' * (shape.layers > 1)}{pairs}"
        aware = " · trained rounded" * (self.follows is not None) + f" · in {self.stages} stages" * (self.stages > 1)
        columns = f" of {shape.embedding} columns" * (shape.embedding > 0)
        return f"{layers} · hidden {shape.hidden} · ffn {shape.ffn} · {shape.vocabulary:,} tokens{columns} · {bits}{aware}"


@dataclass(frozen=True)
class Rung:
    """A stretch of one candidate's training, and its weight in the time that is left for it and those to come."""

    stage: str
    weight: float


def enumerate_candidates(
    base: Shape, costs: Costs, lose: Lose, vocabularies: Sequence[int], percentile: int = 50, *, pools: bool = False
) -> Iterator[Candidate]:
    """Every combination of the knobs, with its predicted cost and damage; pools: whether upper layers may read pairs of tokens."""
    heads = sorted({max(1, round(base.heads * share)) for share in HEADS}, reverse=True)
    neurons = sorted({_rounded(base.ffn * share, base.ffn, NEURON_STEP) for share in NEURONS}, reverse=True)
    depths = [
        (layers, pooled)
        for layers in range(base.layers, 0, -1)
        for pooled in sorted({layers * sixths // 6 for sixths in range(6 if pools else 1)})  # that read pairs
    ]
    for (layers, pooled), kept, ffn, tokens, (weights, bits) in product(depths, heads, neurons, vocabularies, costs.precisions):
        hidden = round(base.hidden * kept / base.heads)
        whole = dataclasses.replace(
            base, layers=layers, pooled=pooled, heads=kept, hidden=hidden, ffn=ffn, vocabulary=tokens, weights=weights, tables=bits
        )
        harm = {
            **lose(whole), "matrices": FOUR_BITS["matrices"] * (weights == 4), "tables": FOUR_BITS["tables"] * (bits == 4),
            "pool": (pooled / layers) ** 2,
        }  # fmt: skip
        for columns, less in _thin_tables(whole).items():
            shape = dataclasses.replace(whole, embedding=columns)
            yield make_candidate(base, shape, costs, _together({**harm, "factor": less}), percentile)


def make_candidate(base: Shape, shape: Shape, costs: Costs, damage: float, percentile: int = 50) -> Candidate:
    """The candidate of a shape: its steps and what it will cost."""
    steps = []
    if shape.vocabulary < base.vocabulary:
        steps.append(f"vocab={shape.vocabulary}")
    if not shape.layers:
        steps.append(f"static={shape.hidden}")
    elif shape.layers < base.layers:
        steps.append(f"depth={shape.layers}")
    if shape.layers and shape.hidden < base.hidden:
        steps.append(f"hidden={shape.hidden}")
    if shape.layers and shape.embedding != base.embedding:
        steps.append(f"factor={shape.embedding}")
    if shape.layers and shape.ffn < base.ffn:
        steps.append(f"ffn={shape.ffn}")
    if shape.pooled:
        steps.append(f"pool={shape.layers - shape.pooled}")
    target = f"onnx:weights={shape.weights},tables={shape.tables}"
    cost = (costs.count_bytes(shape), costs.milliseconds(shape, percentile), costs.resident_bytes(shape))
    return Candidate(shape, tuple(steps), target, *cost, damage)


def choose_static(base: Shape, costs: Costs, vocabulary: int, limits: Mapping[str, float], percentile: int = 50) -> Candidate:
    """The static student with so many tokens: the widest that is predicted to hold the limits, the least where none is."""
    widths = sorted({min(width, base.hidden) for width in STATIC_WIDTHS}, reverse=True)
    shape = dataclasses.replace(base, layers=0, pooled=0, embedding=0, vocabulary=vocabulary)
    found = [
        make_candidate(base, dataclasses.replace(shape, hidden=width, weights=weights, tables=bits), costs, 1.0, percentile)
        for width, (weights, bits) in product(widths, costs.precisions)
        if weights == 8
    ]
    held = within(limits)
    return next((item for item in found if excess(item, held) <= 1), found[-1])


def choose(candidates: Iterable[Candidate], limits: Mapping[str, float], reference: tuple[int, float], count: int) -> list[Candidate]:
    """The candidates that are worth training: the least damaged of each depth that hold the limits, and smaller ones to compare with.

    Args:
        limits: max_mb, max_ms, max_ram; where neither megabytes nor milliseconds are limited, shares of the reference (`LEVELS`) are.
        reference: bytes and milliseconds of the model before.
        count: how many.

    Returns:
        The most promising first; the nearest to the limits where none holds them.
    """
    known = list(candidates)
    if "max_mb" not in limits and "max_ms" not in limits:
        levels = [{**limits, "max_mb": reference[0] * level / 1e6, "max_ms": reference[1] * level} for level in LEVELS]
        best = [_best_of_each_depth(known, level) for level in levels]
        return _different(item for turn in zip_longest(*best) for item in turn if item is not None)[:count]
    found = _best_of_each_depth(known, limits)
    if not found:
        return sorted(known, key=lambda item: excess(item, limits))[:1]
    # of one vocabulary, so that the teacher reads the rows once for all
    known = [item for item in known if item.shape.vocabulary == found[0].shape.vocabulary]
    found = _best_of_each_depth(known, limits)
    smaller = {name: value * SPARE if name in ("max_mb", "max_ms") else value for name, value in limits.items()}
    spare = _best_of_each_depth(known, smaller)[:1]
    return _different([*found[: max(1, count - len(spare))], *spare])


def excess(item: Candidate, limits: Mapping[str, float]) -> float:
    """By what factor a candidate is predicted to miss the limit that it misses most; at most 1 where it holds them all."""
    costs = {"max_mb": item.bytes / 1e6, "max_ms": item.milliseconds, "max_ram": item.resident / 1e6}
    return max((costs[name] / limit for name, limit in limits.items() if name in costs), default=0.0)


def within(limits: Mapping[str, float]) -> dict[str, float]:
    """The limits less what predictions may be wrong by."""
    return {name: limit * MARGINS.get(name, 1.0) for name, limit in limits.items()}


def on_front(points: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which points no other beats: none is at least as good in bytes, milliseconds and score, and better in one."""

    def beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        gains = (other["bytes"] - one["bytes"], other["milliseconds"] - one["milliseconds"], one["score"] - other["score"])
        return min(gains) >= 0 and max(gains) > 0

    return [not any(beats(one, point) for one in points) for point in points]


def standard_error(score: float, rows: int) -> float:
    """By how much chance moves a score on so many rows, as if it were the share of them that is right."""
    share = min(max(score, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / rows)


def settle_ties(points: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """Points, the best first, in a new order of those that hold the limits and that chance alone may have put apart from the best.

    Of these the one comes first whose answers are nearest to those of the model before, its `distance`: rows tell students apart by it that
    they cannot by a score (after the one-standard-error rule; Breiman et al. 1984, Classification and Regression Trees, 3.4.3).

    Args:
        rows: of the development part, on which the scores and distances were found.
    """
    least = points[0]["score"] - CHANCE * standard_error(points[0]["score"], rows) if points else 0.0
    tied = [point for point in points if all(point["holds"].values()) and point["score"] >= least]
    return [*sorted(tied, key=lambda point: point["distance"]), *(point for point in points if point not in tied)]


def plan_rungs(still: int, regular: int, *, gradual: bool = False) -> list[Rung]:
    """The rungs of a search in their order: successive halving (Jamieson and Talwalkar 2016), where half of the time goes to the winner.

    Args:
        still: static students. regular: other candidates, at least one; one alone gets everything at once.
        gradual: whether the best one also has a twin that is cut in stages.
    """
    first = [Rung("first", 0.3 / regular)] * (regular if regular > 1 or gradual else 0)
    second = [Rung("second", 0.1)] * (2 if regular > 2 else 0)
    twin = [Rung("gradual", 0.1 + 0.3 / regular)] if gradual else []
    winner = [Rung("winner", 1.0 - sum(rung.weight for rung in (*first, *second))), Rung("rounded", 0.1)]
    return [*[Rung("static", 0.06)] * still, *first, *second, *twin, *winner]


def share_time(seconds: float, overhead: float, rungs: Sequence[Rung]) -> float:
    """Seconds of training for the first of the rungs that are to come within some seconds, each with the same overhead beside its training."""
    return (seconds - overhead * len(rungs)) * rungs[0].weight / sum(rung.weight for rung in rungs)


def divide_steps(base: Shape, steps: Sequence[str], stages: int) -> list[list[str]]:
    """Steps in stages: what cuts layers, heads, neurons or dimensions goes the same factor in each, the rest is done in the last.

    Raises:
        InputError: a step that does not exist.
    """
    sizes = {"depth": base.layers, "heads": base.heads, "ffn": base.ffn, "hidden": base.hidden}
    divided: list[list[str]] = []
    for stage in range(1, stages):
        specs = []
        for spec in steps:
            step = make_step(spec)
            name = step_name(step)
            whole = sizes.get(name, 0)
            least = step.keep * whole if step.keep < 1 else step.keep
            if whole and least < (count := round(whole ** (1 - stage / stages) * least ** (stage / stages))) < whole:
                specs.append(f"{name}={count}")
        if specs and specs not in divided:
            divided.append(specs)
    return [*divided, [_absolute(spec, sizes) for spec in steps]]


def _absolute(spec: str, sizes: Mapping[str, int]) -> str:
    """A spec whose share is that of the base, told as a count, so that it means the same after an earlier stage."""
    step = make_step(spec)
    name = step_name(step)
    if name not in sizes or step.keep >= 1:
        return spec
    others = [part for part in spec.partition(":")[2].split(",") if part and not part.startswith("keep=")]
    return ":".join(filter(None, [f"{name}={max(1, round(step.keep * sizes[name]))}", ",".join(others)]))


def _best_of_each_depth(known: Sequence[Candidate], limits: Mapping[str, float]) -> list[Candidate]:
    """Of each number of layers the least damaged candidate that holds the limits, the least damaged first."""
    best: dict[int, Candidate] = {}
    held = within(limits)
    for item in known:
        layers = item.shape.layers
        if excess(item, held) <= 1 and (layers not in best or item.damage < best[layers].damage):
            best[layers] = item
    return sorted(best.values(), key=lambda item: item.damage)


def _different(candidates: Iterable[Candidate]) -> list[Candidate]:
    return list({(item.steps, item.target): item for item in candidates}.values())


def _together(harm: Mapping[str, float]) -> float:
    """One damage from those of the knobs: what is left of the model is the product of what each leaves."""
    left = 1.0
    for name, share in harm.items():
        left *= (1 - min(share, 1.0)) ** EXPONENTS[name]
    return 1 - left


def _thin_tables(shape: Shape) -> dict[int, float]:
    """How many columns a shape's token table may have, 0 for as many as the stream, and the damage; as it is where the base has a thin one."""
    if shape.embedding:
        return {shape.embedding: 0.0}
    thinner = {_rounded(shape.hidden * share, shape.hidden, COLUMN_STEP): damage for share, damage in THINNER.items()}
    return {0: 0.0, **{columns: damage for columns, damage in thinner.items() if columns < shape.hidden}}


def _rounded(count: float, whole: int, step: int) -> int:
    return whole if count >= whole else max(step, round(count / step) * step)
