from __future__ import annotations

import numpy as np
import pytest

from lightune.runtime.generation import GenerationOptions
from lightune.runtime.sampling import Sampler, likeliest, logprobs, seeds

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.05, 0.25], dtype=np.float32))


def kept(**options: float) -> list[int]:
    return likeliest(LOGITS, GenerationOptions(**{"temperature": 1.0, **options}))[0].tolist()  # type: ignore[arg-type]


def test_greedy_takes_the_likeliest_and_leaves_the_logits_alone() -> None:
    before = LOGITS.copy()
    assert Sampler(GenerationOptions(repetition_penalty=3.0), [4]).pick(LOGITS) == 1
    assert np.array_equal(LOGITS, before)


def test_filters_keep_the_likeliest_first() -> None:
    assert kept() == [1, 4, 2, 0, 3]
    assert kept(top_k=2) == [1, 4]
    assert kept(top_k=99) == kept()
    assert kept(top_p=0.6) == [1, 4]  # 0.40 is too little, 0.65 reaches it
    assert kept(top_p=0.3) == [1]
    assert kept(min_p=0.4) == [1, 4, 2]
    assert kept(top_k=3, top_p=0.7) == [1, 4]  # of 0.85 that top-k left: 0.47, 0.29


def test_temperature_comes_before_top_p() -> None:
    assert kept(temperature=0.2, top_p=0.6) == [1]
    assert kept(temperature=5.0, top_p=0.6) == [1, 4, 2]


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    sampler = Sampler(GenerationOptions(temperature=1.0, min_p=0.2), seed=[5])
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(20_000)], minlength=5) / 20_000
    assert counts == pytest.approx(np.array([0.1, 0.4, 0.2, 0.0, 0.25]) / 0.95, abs=0.012)


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    def draws(seed: list[int] | None) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=2.0), seed=seed)
        return [sampler.pick(LOGITS) for _ in range(30)]

    assert draws([7, 0]) == draws([7, 0])
    assert draws([7, 0]) != draws([8, 0])
    assert draws(None) != draws(None)


def test_only_allowed_tokens_are_picked() -> None:
    allowed = np.array([0, 3])
    assert Sampler(GenerationOptions()).pick(LOGITS, allowed) == 0
    sampler = Sampler(GenerationOptions(temperature=5.0), seed=[1])
    assert {sampler.pick(LOGITS, allowed) for _ in range(50)} == {0, 3}


def test_the_penalty_counts_the_prompt_and_the_answer() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], dtype=np.float32)
    sampler = Sampler(GenerationOptions(repetition_penalty=2.0), [2])
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 0]  # 2.0; 1.0 < 1.5; 1.0 > 0.75
    below = np.array([-1.0, -1.5], dtype=np.float32)
    assert Sampler(GenerationOptions(repetition_penalty=2.0), [0]).pick(below) == 1


def test_repeated_prompts_get_seeds_of_their_own() -> None:
    one, other = np.array([1, 2]), np.array([3])
    assert seeds(9, [one, other, one]) == [[9, 0], [9, 0], [9, 1]]
    assert seeds(None, [one, one]) == [None, None]


def test_logprobs_are_normalized() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (4, 50)).astype(np.float32)
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    targets = np.array([0, 49, 7, 7])
    assert np.allclose(logprobs(logits, targets), exact[range(4), targets], atol=1e-4)
