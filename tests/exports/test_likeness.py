import copy
import math

import numpy as np
import pytest
import torch
from tiny_generators import PROMPTS, make_language, plain, rows_of

from lightune.errors import CheckFailed, InputError
from lightune.exports.generative import Closeness
from lightune.exports.likeness import BLOCK, choose_rows, compare, perplexity
from lightune.generation import TorchGenerator

STRICT = Closeness(perplexity=0.005, agree=0.99)


def test_a_generator_is_like_itself() -> None:
    model = make_language("llama")
    itself = plain(model)
    rows = rows_of(model.encoder.tokenizer)
    found = compare(itself, itself, rows, PROMPTS, STRICT, max_tokens=4)
    assert (found.change, found.agree, found.prompts) == (0, 1, len(PROMPTS))
    assert found.tokens == sum(len(row) - 1 for row in rows)
    again = compare(itself, itself, [*rows, rows[0], rows[1][:4], np.append(rows[2][:6], 7)], (), STRICT)
    assert again.tokens == found.tokens + 1
    assert found.perplexity == pytest.approx(math.exp(-np.concatenate(itself.token_logprobs(rows)).mean()))


def test_what_differs_is_told_with_its_place() -> None:
    model = make_language("llama")
    rows = rows_of(model.encoder.tokenizer)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.head.weight *= 2
    ours, theirs = plain(model), plain(other)
    with pytest.raises(
        CheckFailed, match=r"perplexity is .* and the model's .* ± .* allowed 0\.5%\), most in row \d.*greedy answers differ.*prompt \d"
    ):
        compare(ours, theirs, rows, PROMPTS, STRICT, max_tokens=8)
    loose = compare(ours, theirs, rows, PROMPTS, Closeness(), max_tokens=4)
    assert abs(loose.change) > 0.005


def test_one_unequal_answer_shows_no_share() -> None:
    model = make_language("llama")
    ours = plain(model)

    class Slip(TorchGenerator):
        def generate(self, prompts, options):  # type: ignore[no-untyped-def]
            return [*super().generate(prompts[:-1], options), super().generate(prompts[:1], options)[0]]

    slip = Slip(model.network, model.encoder, model.chat, name="slip", max_length=64)
    assert compare(ours, slip, rows_of(model.encoder.tokenizer), PROMPTS, STRICT, max_tokens=4).agree == 0.75


def test_no_number_is_beyond_every_limit() -> None:
    model = make_language("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.head.weight.fill_(float("nan"))
    with pytest.raises(CheckFailed, match="perplexity is nan"):
        compare(plain(model), plain(other), rows_of(model.encoder.tokenizer), (), STRICT)


def test_few_tokens_cannot_show_a_small_change() -> None:
    model = make_language("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.head.weight += torch.randn(other.network.head.weight.shape, generator=torch.Generator().manual_seed(3)) * 0.01
    rows = rows_of(model.encoder.tokenizer)
    few, many = (compare(plain(model), plain(other), rows[:count], (), Closeness()) for count in (1, len(rows)))
    assert few.margin > many.margin > 0
    compare(plain(model), plain(other), rows, (), Closeness(perplexity=abs(many.change) - many.margin / 2))
    wild = copy.deepcopy(model)
    with torch.no_grad():
        wild.network.head.weight *= 2
    with pytest.raises(CheckFailed, match="perplexity is"):
        compare(plain(model), plain(wild), rows, (), Closeness(perplexity=0.05))


def test_rows_without_anything_to_judge() -> None:
    model = make_language("llama")
    itself = plain(model)
    with pytest.raises(InputError, match="at least one with two tokens"):
        compare(itself, itself, [np.array([1])], (), STRICT)
    assert perplexity([np.log(np.array([0.5, 0.25]))]) == pytest.approx(8**0.5)


def test_as_many_rows_as_have_the_tokens_to_judge() -> None:
    rows = [np.array(row) for row in ([1, 2, 3], [1, 2, 4], [1, 2, 3], [5, 6, 7, 8])]  # 2, 1, 0 and 3 tokens that count
    for tokens, count in ((1, 1), (2, 1), (3, 2), (4, 4), (100, 4)):
        assert len(choose_rows(rows, tokens)) == count


def test_a_comparison_ends_with_its_time_and_tells_how_much_it_saw() -> None:
    model = make_language("llama")
    itself = plain(model)
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 99, 4).astype(np.int32) for _ in range(BLOCK + 9)]
    prompts = [f"film {number}" for number in range(BLOCK + 9)]
    hurried, whole = (compare(itself, itself, rows, prompts, STRICT, max_tokens=1, seconds=seconds) for seconds in (0, 60))
    assert (hurried.tokens, hurried.prompts) == (sum(len(row) - 1 for row in rows[:BLOCK]), BLOCK)
    assert (whole.tokens, whole.prompts) == (sum(len(row) - 1 for row in rows), len(prompts))
    assert f"100.0% of {len(prompts)} greedy answers are equal" in whole.told
