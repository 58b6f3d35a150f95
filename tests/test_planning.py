"""What a budget leaves to try, what is tried first, and what lies on the front."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from lightune import planning
from lightune.costs import Shape

BASE = Shape(6, 384, 12, 1536, 30000, positions=512, head_width=32)


class Costs:
    """Costs by plain formulas: a byte or half a byte a weight, a millisecond for a million multiply-adds a text."""

    precisions = ((8, 8), (8, 4), (4, 4))

    def milliseconds(self, shape: Shape, percentile: int = 50) -> float:
        return 0.1 + shape.layers * shape.block_weights * 10 / 1e8

    def count_bytes(self, shape: Shape, tokenizer: int | None = None) -> int:
        columns, matrices = shape.embedding or shape.hidden, shape.layers * shape.block_weights + shape.other_weights
        return round(matrices * shape.weights / 8 + shape.vocabulary * (columns * shape.tables / 8 + 12))

    def resident_bytes(self, shape: Shape) -> int:
        return 30_000_000 + self.count_bytes(shape)


def lose(shape: Shape) -> Mapping[str, float]:
    return {
        "layers": 1 - shape.layers / 6, "hidden": 1 - shape.hidden / 384, "heads": 1 - shape.heads / 12, "ffn": 1 - shape.ffn / 1536,
        "vocab": 1 - shape.vocabulary / 30000,
    }  # fmt: skip


def candidates() -> list[planning.Candidate]:
    return list(planning.enumerate_candidates(BASE, Costs(), lose, [30000, 8000]))


def test_the_whole_model_is_among_the_candidates_and_loses_nothing() -> None:
    whole = [item for item in candidates() if dataclasses.replace(item.shape, weights=32, tables=32) == BASE]
    assert [item.target[5:] for item in whole] == ["weights=8,tables=8", "weights=8,tables=4", "weights=4,tables=4"]
    assert {item.steps for item in whole} == {()}
    assert min(item.damage for item in whole) == 0


def test_steps_say_how_the_shape_is_reached() -> None:
    shape = dataclasses.replace(BASE, layers=2, hidden=256, heads=8, ffn=512, vocabulary=8000, weights=8, tables=4)
    made = planning.make_candidate(BASE, shape, Costs(), 0.5)
    assert made.steps == ("vocab=8000", "depth=2", "hidden=256", "ffn=512")
    assert made.target == "onnx:weights=8,tables=4"
    assert planning.make_candidate(BASE, dataclasses.replace(shape, layers=0), Costs(), 1.0).steps == ("vocab=8000", "static=256")


def test_a_static_student_is_as_wide_as_the_limits_allow() -> None:
    def chosen(**limits: float) -> tuple[int, int]:
        shape = planning.choose_static(BASE, Costs(), 30000, limits).shape
        return shape.hidden, shape.tables

    assert chosen() == chosen(max_ms=1.0) == (128, 8)
    assert chosen(max_mb=3.0) == (128, 4)
    assert chosen(max_mb=2.0) == (96, 4)
    assert chosen(max_mb=0.1) == (32, 4)  # none holds it: the least
    assert planning.choose_static(dataclasses.replace(BASE, hidden=64), Costs(), 8000, {}).steps == ("vocab=8000", "static=64")


def test_token_tables_may_be_thinner() -> None:
    known = [
        item for item in candidates() if dataclasses.replace(item.shape, embedding=0) == dataclasses.replace(BASE, weights=8, tables=8)
    ]
    assert [item.steps for item in known] == [(), ("factor=192",), ("factor=128",)]
    assert [item.damage for item in known] == sorted(item.damage for item in known)
    assert [item.bytes for item in known] == sorted((item.bytes for item in known), reverse=True)
    assert known[1].name.endswith("tokens of 192 columns · 8-bit tables")
    thin = dataclasses.replace(BASE, embedding=128)  # as in ALBERT
    assert {item.shape.embedding for item in planning.enumerate_candidates(thin, Costs(), lose, [30000])} == {128}
    narrow = dataclasses.replace(BASE, hidden=24, heads=1, head_width=24)
    assert {item.shape.embedding for item in planning.enumerate_candidates(narrow, Costs(), lose, [30000])} == {0, 16}


def test_layers_may_read_pairs_where_time_is_short() -> None:
    known = list(planning.enumerate_candidates(BASE, Costs(), lose, [30000], pools=True))
    assert len(known) == len(list(planning.enumerate_candidates(BASE, Costs(), lose, [30000]))) * 21 // 6
    assert {(item.shape.layers, item.shape.pooled) for item in known} == {
        (layers, pairs) for layers in range(1, 7) for pairs in range(layers)
    }
    for item in known:
        assert (f"pool={item.shape.layers - item.shape.pooled}" in item.steps) == (item.shape.pooled > 0)
    one, two = (
        next(item for item in known if item.shape == dataclasses.replace(BASE, pooled=pairs, weights=8, tables=8)) for pairs in (1, 2)
    )
    assert 0 < one.damage < two.damage
    assert two.name == f"6 layers, 2 of pairs · hidden 384 · ffn 1536 · {BASE.vocabulary:,} tokens · 8-bit tables"


def test_every_candidate_that_is_chosen_holds_the_limits_with_a_margin() -> None:
    limits = {"max_mb": 4.5, "max_ms": 0.4}
    chosen = planning.choose(candidates(), limits, (91_000_000, 12.0), 4)
    assert len(chosen) == 4
    for item in chosen:
        assert item.bytes / 1e6 <= 4.5 * planning.MARGINS["max_mb"]
        assert item.milliseconds <= 0.4 * planning.MARGINS["max_ms"]
    assert len({item.shape.layers for item in chosen}) >= 3
    assert chosen[0].damage == min(item.damage for item in candidates() if planning.excess(item, planning.within(limits)) <= 1)


def test_where_bytes_are_short_and_time_is_not_4_bits_buy_depth_and_width() -> None:
    slow, fast = {"max_mb": 2.5, "max_ms": 50.0}, {"max_mb": 60.0, "max_ms": 0.3}
    small, quick = (planning.choose(candidates(), limits, (91_000_000, 12.0), 4)[0] for limits in (slow, fast))
    assert small.target == "onnx:weights=4,tables=4"
    assert small.name.endswith("4-bit matrices and tables")
    assert quick.target == "onnx:weights=8,tables=8"


def test_without_limits_of_size_the_levels_of_the_reference_are_tried() -> None:
    chosen = planning.choose(candidates(), {"keep": 0.99}, (91_000_000, 12.0), 4)
    sizes = [item.bytes for item in chosen]
    assert len(chosen) == 4
    assert min(sizes) < 91e6 / 30
    assert max(sizes) > 91e6 / 20


def test_an_impossible_budget_gives_the_nearest_shape() -> None:
    limits = {"max_mb": 0.001, "max_ms": 0.0001}
    (nearest,) = planning.choose(candidates(), limits, (91_000_000, 12.0), 4)
    assert planning.excess(nearest, limits) == min(planning.excess(item, limits) for item in candidates())


def test_the_front_holds_what_nothing_beats() -> None:
    points = [
        {"bytes": 4, "milliseconds": 1.0, "score": 0.9},
        {"bytes": 5, "milliseconds": 1.0, "score": 0.9},  # larger and no better
        {"bytes": 2, "milliseconds": 2.0, "score": 0.9},
        {"bytes": 2, "milliseconds": 2.0, "score": 0.9},  # an equal point does not beat it
        {"bytes": 9, "milliseconds": 9.0, "score": 0.95},
        {"bytes": 9, "milliseconds": 9.0, "score": 0.5},
    ]
    assert planning.on_front(points) == [True, False, True, True, True, False]


def test_of_students_that_chance_may_have_put_apart_the_one_that_answers_like_the_model_comes_first() -> None:
    distances = [0.2, 0.3, 0.1, 0.0]

    def point(number: int, score: float, holds: bool = True) -> dict[str, Any]:
        return {"id": number, "score": score, "holds": {"mb": holds}, "distance": distances[number]}

    def order(*points: dict[str, Any], rows: int) -> list[int]:
        return [point["id"] for point in planning.settle_ties(points, rows)]

    guesses = (point(1, 0.70), point(0, 0.67), point(2, 0.62), point(3, 0.90, holds=False))
    assert order(*guesses, rows=400) == [0, 1, 2, 3], "two standard errors of 400 rows are 0.046"
    assert order(*guesses, rows=100) == [2, 0, 1, 3], "those of 100 rows are 0.092 and put no two of those that hold apart"
    assert order(*guesses, rows=10**6) == [1, 0, 2, 3], "with many rows the score decides"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_half_of_the_time_or_more_is_the_winners(count: int) -> None:
    rungs = planning.plan_rungs(0, count)
    shares = {stage: sum(rung.weight for rung in rungs if rung.stage == stage) for stage in ("first", "second", "winner")}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["winner"] >= 0.5
    assert [rung.stage for rung in rungs].count("first") == (count if count > 1 else 0)
    assert [rung.stage for rung in rungs][-2:] == ["winner", "rounded"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("slower", [0.8, 1.0, 1.2])
def test_the_rungs_end_in_time_though_each_takes_longer_or_shorter_than_planned(count: int, slower: float) -> None:
    rungs, left = planning.plan_rungs(1, count), 1000.0
    for place in range(len(rungs)):
        share = planning.share_time(left, 12.0, rungs[place:])
        if share > 0:  # else the rung is left out
            left -= min(share * slower, share + 20) + 12.0
    assert -20 <= left < 120


def test_a_twin_gets_about_what_its_original_has_had() -> None:
    rungs = planning.plan_rungs(1, 4, gradual=True)
    had = next(rung.weight for rung in rungs if rung.stage == "first") + next(rung.weight for rung in rungs if rung.stage == "second")
    assert next(rung.weight for rung in rungs if rung.stage == "gradual") == pytest.approx(had)


def test_stages_cut_by_the_same_factor_and_end_where_one_cut_would() -> None:
    stages = planning.divide_steps(BASE, ["depth=3", "hidden=96", "ffn=1/4", "magnitude=0.5"], 2)
    assert stages == [["depth=4", "hidden=192", "ffn=768"], ["depth=3", "hidden=96", "ffn=384", "magnitude=0.5"]]
    assert planning.divide_steps(BASE, ["depth=5"], 3) == [["depth=5"]]  # nothing lies between six layers and five
    assert planning.divide_steps(BASE, ["ffn:keep=1/4,multiple=8"], 1) == [["ffn=384:multiple=8"]]
