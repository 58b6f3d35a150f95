from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bigrams import END, BigramGenerator, ask

from lightune import language_evaluation as language
from lightune.data import Conversation
from lightune.errors import InputError
from lightune.language_evaluation import Question, TokenRow
from lightune.runtime.generation import GenerationOptions, Message


def chance(generator: BigramGenerator, text: str) -> float:
    """The probability of a text after its first token, from the table alone."""
    ids = generator.encode(text)
    return math.prod(generator.table[before, after] for before, after in pairwise(ids))


def talk(question: str, answer: str, row: int = 0) -> Conversation:
    return Conversation((*ask(question), Message("assistant", answer)), row=row)


def test_perplexity_is_that_of_the_scored_tokens() -> None:
    generator = BigramGenerator(seed=1)
    ids = generator.encode(f"{END}hello")
    trained = np.array([1, 0, 1, 1, 0, 0], bool)  # the first stands before nothing and is never scored
    table = generator.table
    losses = [-math.log(table[ids[1], ids[2]]), -math.log(table[ids[2], ids[3]])]
    found = language.perplexity(generator, [TokenRow(ids, trained, 2.0)])
    assert found.tokens == 2
    assert found.per_token.value == pytest.approx(math.exp(sum(losses) / 2), rel=1e-6)
    assert found.per_byte is not None
    assert found.per_byte.value == pytest.approx(math.exp(sum(losses) / 2), rel=1e-6)


def test_perplexity_does_not_depend_on_how_a_text_is_cut() -> None:
    generator = BigramGenerator(seed=2)
    text = "the cat sat on the mat. the dog did not"
    rows = language.cut_rows(generator, [text], prefix=END, length=7)
    assert [len(row.ids) for row in rows] == [7] * 6 + [4]
    assert sum(row.bytes or 0 for row in rows) == pytest.approx(len(text))
    whole = language.perplexity(generator, language.cut_rows(generator, [text], prefix=END))
    cut = language.perplexity(generator, rows)
    expected = chance(generator, END + text) ** (-1 / len(text))
    assert cut.tokens == whole.tokens == len(text)
    assert whole.per_token.value == pytest.approx(expected, rel=1e-5)
    assert cut.per_token.value == pytest.approx(expected, rel=1e-5)
    assert cut.per_token.low < cut.per_token.value < cut.per_token.high
    assert whole.to_dict()["bytes"] == len(text)


def test_without_a_prefix_the_first_token_and_its_bytes_are_left_out() -> None:
    generator = BigramGenerator(seed=3)
    rows = language.cut_rows(generator, ["abcd", "", "a"])
    assert [(len(row.ids), row.bytes) for row in rows] == [(4, 3.0)]
    found = language.perplexity(generator, rows)
    assert found.per_byte is not None
    assert found.per_byte.value == pytest.approx(chance(generator, "abcd") ** (-1 / 3), rel=1e-5)


def test_rows_come_back_in_their_order() -> None:
    generator = BigramGenerator(seed=4, max_length=200)
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 30, size).astype(np.int32) for size in draw.integers(1, 150, 3 * language.ROWS_AT_ONCE)]
    for row, scored in zip(rows, language.score_rows(generator, rows), strict=True):
        np.testing.assert_array_equal(scored, generator.token_logprobs([row])[0])


def test_no_bytes_no_perplexity_per_byte_and_no_tokens_no_perplexity() -> None:
    generator = BigramGenerator()
    ids = generator.encode("abc")
    assert language.perplexity(generator, [TokenRow(ids, np.ones(3, bool))]).per_byte is None
    with pytest.raises(InputError, match="None of the tokens of 1 rows"):
        language.perplexity(generator, [TokenRow(ids, np.array([1, 0, 0], bool))])
    with pytest.raises(InputError, match="Rows of 900 tokens"):
        language.cut_rows(generator, ["abc"], length=900)


def test_multiple_choice_takes_the_likeliest_and_the_likeliest_per_byte() -> None:
    generator = BigramGenerator({":": " ", " ": "a", "a": "b", "b": "b"}, seed=5)
    # "ab": 0.6² after ": "; "abbbb" is less likely as a whole and more likely per byte than "x", whose chance is small
    questions = [Question("q:", ("abbbb", "ab", "x"), 1), Question("q:", ("x", "abbbb"), 1), Question("q:", ("ab", "abbbbbb"), 1)]
    found = language.multiple_choice(generator, questions)
    for place, question in enumerate(questions):
        sums = [math.log(chance(generator, f"q: {choice}") / chance(generator, "q:")) for choice in question.choices]
        norms = [total / len(choice) for total, choice in zip(sums, question.choices, strict=True)]
        assert found["predictions"][place] == [int(np.argmax(sums)), int(np.argmax(norms))]
    right = np.array([[pick == question.gold for pick in picks] for picks, question in zip(found["predictions"], questions, strict=True)])
    assert found["scores"]["accuracy"]["value"] == pytest.approx(right[:, 0].mean(), abs=1e-6)
    assert found["scores"]["accuracy_norm"]["value"] == pytest.approx(right[:, 1].mean(), abs=1e-6)
    assert found["predictions"][2] == [0, 1]  # the two disagree where they must
    with pytest.raises(InputError, match="no questions"):
        language.multiple_choice(generator, [])


def test_a_token_across_the_seam_is_scored_with_the_continuation() -> None:
    class Pairs(BigramGenerator):
        """Reads "ab" as one token, in place of "B"."""

        def encode(self, text: str) -> np.ndarray:
            return super().encode(text.replace("ab", "B"))

    generator = Pairs(seed=6)
    head, rest = language.split_pair(generator, "xa", "bc")
    assert (head.tolist(), rest.tolist()) == (generator.encode("x").tolist(), generator.encode("abc").tolist())
    head, rest = language.split_pair(generator, "x  ", "yz")
    assert (len(head), len(rest)) == (1, 4)  # blanks belong to what follows
    scored = language.score_continuations(generator, [(head, rest)])[0]
    assert scored.sum() == pytest.approx(math.log(chance(generator, "x  yz")), rel=1e-5)


def test_a_continuation_that_does_not_fit_is_refused() -> None:
    generator = BigramGenerator(max_length=8)
    with pytest.raises(InputError, match="has 11 tokens, bigrams takes 8"):
        language.multiple_choice(generator, [Question("aaaaa", ("bbbbb", "c"), 0)])
    with pytest.raises(InputError, match="is empty"):
        language.score_continuations(generator, [(np.empty(0, np.int32), generator.encode("a"))])


def test_questions_are_read_from_rows() -> None:
    rows = [{"query": "Question: why?", "choices": ["a", "b"], "gold": 1}, {"question": "how?", "choices": ["c"], "answer": 0}]
    assert language.read_questions(rows) == [
        Question("Question: why?\nAnswer:", ("a", "b"), 1),
        Question("Question: how?\nAnswer:", ("c",), 0),
    ]
    with pytest.raises(InputError, match="Row 1 is no question"):
        language.read_questions([{"query": "x", "choices": ["a"], "gold": 1}])


@pytest.mark.shared
def test_real_questions_are_read(shared_data: Path) -> None:
    with (shared_data / "mc_arc_easy" / "test.jsonl").open(encoding="utf-8") as lines:
        questions = language.read_questions(map(json.loads, lines))
    assert len(questions) == 2376
    assert questions[1].choices[questions[1].gold] == "breathing mask"


def test_answers_are_generated_and_scored_against_all_references() -> None:
    # after "a:" the generator writes yes and ends
    generator = BigramGenerator({":": "y", "y": "e", "e": "s", "s": END}, seed=7)
    rows = [talk("q", "yes", 1), talk("q", "yes please", 2), talk("why", "no", 3), talk("how", "yes", 4), talk("q", "yes", 5)]
    found = language.evaluate_generation(generator, rows, metrics=["exact_match", "token_f1"])
    assert (found["rows"], found["available"]) == (3, 3)
    assert found["scores"]["primary"] == "exact_match"
    assert found["scores"]["exact_match"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["finishes"] == {"stop": 3}
    assert (found["tokens"], found["too_long"], found["empty"]) == (12, 0, 0)
    assert [(row["row"], row["text"], row["target"], row["answer"]) for row in found["worst"]] == [(3, "why", ["no"], "yes")]
    assert [row["target"] for row in found["samples"]] == [["yes", "yes please"], ["no"], ["yes"]]
    json.dumps(found)


def test_a_limit_draws_the_same_questions_by_the_same_seed() -> None:
    generator = BigramGenerator(seed=8, max_length=30)
    rows = [talk(f"question {number}", str(number), number) for number in range(20)]
    options = GenerationOptions(max_tokens=3)
    one, again, other = (language.evaluate_generation(generator, rows, options=options, limit=5, seed=seed) for seed in (0, 0, 1))
    asked = [[row["row"] for row in found["samples"]] for found in (one, again, other)]
    assert asked[0] == asked[1] != asked[2]
    assert (one["rows"], one["available"]) == (5, 20)


def test_what_does_not_fit_counts_as_an_empty_answer() -> None:
    generator = BigramGenerator({":": "y", "y": "e", "e": "s", "s": END}, seed=9, max_length=20)
    rows = [talk("q", "yes", 1), talk("q" * 40, "yes", 2)]
    found = language.evaluate_generation(generator, rows, metrics=["exact_match"])
    assert (found["too_long"], found["rows"]) == (1, 2)
    assert found["scores"]["exact_match"]["value"] == 0.5
    assert [(row["row"], row["finish"]) for row in found["worst"]] == [(2, "too_long")]
    made = language.answer(generator, ["q" * 40, "q:"], GenerationOptions())
    assert made[0] is None
    assert made[1] is not None
    assert made[1].text == "yes"


def test_the_last_answer_is_asked_for_with_all_that_stands_before() -> None:
    turns = (Message("system", "s"), *ask("q"), Message("assistant", "a"), *ask("r"), Message("assistant", "b"), *ask("t"))
    assert language.ask(Conversation(turns, row=3)) == (turns[:4], "b")
    with pytest.raises(InputError, match="Row 4 has no answer"):
        language.ask(Conversation(ask("q"), row=4))
    with pytest.raises(InputError, match="Row 5 has no answer"):
        language.ask(Conversation(text="plain", row=5))
    with pytest.raises(InputError, match="no rows"):
        language.evaluate_generation(BigramGenerator(), [])


@pytest.mark.slow
def test_a_real_model_finds_english_likelier_than_its_words_in_disorder() -> None:
    from lightune.runtime.gguf import load_gguf
    from lightune.sources import resolve_model

    try:
        source = resolve_model("smollm2-135m")
    except Exception as error:
        pytest.skip(f"SmolLM2 is not here ({error})")
    generator = load_gguf(source.folder / str(source.file), context=256)
    text = "The capital of France is Paris. It lies on the river Seine, and millions of people visit its museums every year."
    words = text.split()
    mixed = " ".join(np.random.default_rng(0).permutation(words))
    plain, disorder = (
        language.perplexity(generator, language.cut_rows(generator, [each], prefix="<|endoftext|>")) for each in (text, mixed)
    )
    assert plain.per_byte is not None
    assert 1 < plain.per_token.value < 40
    assert disorder.per_token.value > 5 * plain.per_token.value
    assert math.log(plain.per_byte.value) * len(text.encode()) == pytest.approx(math.log(plain.per_token.value) * plain.tokens, rel=1e-6)
    questions = [Question("Question: What is the capital of France?\nAnswer:", ("Berlin", "Paris", "Madrid", "Vienna"), 1)]
    assert language.multiple_choice(generator, questions)["predictions"] == [[1, 1]]
    generator.close()
