import json
import time
from pathlib import Path

import numpy as np
import pytest

from lightune import judging
from lightune.errors import InputError

ANSWERS = ["the cat sat on the mat", "a dog barks at night", "hello there", "Blue Spice is a coffee shop in the city centre."]
REFERENCES = [
    ("the cat sat on a mat", "a cat was sitting on the mat"),
    ("the dog barked at night",),
    ("hello there", "hi", "good day to you"),
    ("A coffee shop in the city centre area called Blue Spice.",),
]
TEXTS = ["find . -name '*.txt'", "1,234", "####", "", "  ", "été", "答案是四十二", "```\nls\n```", "a" * 3000, "\n\n"]


@pytest.mark.parametrize(
    ("said", "right", "value"), [("The cat!", "cat", 1), ("An  apple, a day", "apple day", 1), ("cats", "cat", 0), ("the", "", 1)]
)
def test_normalised_match_is_squads(said: str, right: str, value: float) -> None:
    assert judging.normalized_match(said, right) == value


def test_exact_match_looks_at_every_sign_but_blanks_around() -> None:
    assert judging.exact_match(" yes\n", "yes") == 1
    assert judging.exact_match("Yes", "yes") == 0


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("a cat sat", "the cat sat down", 2 * 1 * (2 / 3) / (1 + 2 / 3)),  # precision 2/2, recall 2/3
        ("cat cat cat", "cat", 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # a word counts as often as it stands in both
        ("dog", "cat", 0),
        ("", "", 1),
        ("", "cat", 0),
    ],
)
def test_token_f1_by_hand(said: str, right: str, value: float) -> None:
    assert judging.token_f1(said, right) == pytest.approx(value)


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "#### 18", 1),
        ("so the answer is 1,800.00.", "#### 1800", 1),
        ("#### 17\nThat is 18", "#### 18", 0),  # the marked number counts
        ("it is -5", "#### -5", 1),
        ("it is 5", "#### -5", 0),
        ("it costs $.50", "#### 0.5", 1),
        ("no idea", "#### 3", 0),
        ("", "#### 3", 0),
    ],
)
def test_gsm8k_compares_the_final_number(said: str, right: str, value: float) -> None:
    assert judging.number_match(said, right) == value


def test_a_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(InputError, match="has no number"):
        judging.number_match("3", "none")


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("find .  -name '*.txt'|wc -l", "find . -name '*.txt' | wc -l", True),
        ("```bash\nls -l\n```", "ls -l", True),
        ("$ ls -l", "ls -l", True),
        ("find . -name *.txt", "find . -name '*.txt'", False),  # unquoted, the shell expands it
        ("echo 'a  b'", "echo 'a b'", False),
        ("ls 2>&1", "ls 2 >&1", False),
        ("echo it's", "echo it's", True),  # an open quote
        ("ls -la", "ls -l", False),
    ],
)
def test_command_match_reads_a_command_as_a_shell_does(said: str, right: str, same: bool) -> None:
    assert judging.command_match(said, right) == same


@pytest.mark.parametrize("kind", ["bleu", "chrf"])
def test_corpus_metrics_are_sacrebleus(kind: str) -> None:
    import sacrebleu

    streams = [[row[place] if place < len(row) else None for row in REFERENCES] for place in range(3)]
    metric = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}[kind]
    found = judging.score_answers(ANSWERS, REFERENCES, [kind])[kind]
    assert found.value == pytest.approx(metric.corpus_score(ANSWERS, streams).score / 100, abs=1e-12)
    alone = sacrebleu.CHRF().sentence_score(ANSWERS[0], list(REFERENCES[0])).score if kind == "chrf" else None
    assert alone is None or found.rows[0] == pytest.approx(alone / 100)
    assert found.low < found.value < found.high


def test_chinese_bleu_is_sacrebleus_of_characters() -> None:
    import sacrebleu

    answers, references = (
        ["今天天气很好我们一起去公园", "他在家里看书喝茶听音乐"],
        [("今天天气很好我们一起去学校",), ("她在家里看书喝茶听音乐",)],
    )
    whole = sacrebleu.BLEU(tokenize="zh").corpus_score(answers, [[row[0] for row in references]]).score / 100
    assert judging.score_answers(answers, references, ["bleu_zh"])["bleu_zh"].value == pytest.approx(whole)
    assert judging.choose_metrics(references)[0] == "bleu_zh"


def test_rouge_is_rouge_scores_best_reference() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    found = judging.score_answers(ANSWERS, REFERENCES, kinds)
    for kind in kinds:
        by_hand = [max(scorer.score(right, said)[kind].fmeasure for right in row) for said, row in zip(ANSWERS, REFERENCES, strict=True)]
        np.testing.assert_allclose(found[kind].rows, by_hand)
        assert found[kind].value == pytest.approx(np.mean(by_hand))


def test_rouge_refuses_what_it_cannot_read() -> None:
    with pytest.raises(InputError, match="Choose chrf or bleu_zh"):
        judging.score_answers(["今天"], [("今天",)], ["rougeL"])


def test_intervals_are_those_of_resampled_rows() -> None:
    draw = np.random.default_rng(1)
    right = draw.random(200) < 0.7
    answers = ["yes" if yes else "no" for yes in right]
    found = judging.score_answers(answers, [("yes",)] * 200, ["exact_match"], resamples=2000)["exact_match"]
    spread = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 200)  # the normal interval of a share
    assert found.value == pytest.approx(right.mean())
    assert found.low == pytest.approx(right.mean() - spread, abs=0.015)
    assert found.high == pytest.approx(right.mean() + spread, abs=0.015)
    one = judging.score_answers(["yes"], [("yes",)], ["exact_match"])["exact_match"]
    assert (one.low, one.value, one.high) == (1, 1, 1)


def test_a_resampled_corpus_metric_is_that_of_the_repeated_rows() -> None:
    import sacrebleu

    metric = judging.METRICS["bleu"]
    table = metric.statistics(ANSWERS, REFERENCES)
    rows = [0, 0, 3]
    streams = [[REFERENCES[row][place] if place < len(REFERENCES[row]) else None for row in rows] for place in range(2)]
    whole = sacrebleu.BLEU().corpus_score([ANSWERS[row] for row in rows], streams).score / 100
    assert metric.combine(table[rows].sum(0, keepdims=True))[0] == pytest.approx(whole)


def test_intervals_of_bleu_cost_little_more_than_bleu() -> None:
    answers, references = ANSWERS * 100, REFERENCES * 100
    start = time.perf_counter()
    judging.score_answers(answers, references, ["bleu"], resamples=0)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    judging.score_answers(answers, references, ["bleu"], resamples=300)
    assert time.perf_counter() - start < 3 * alone + 1.0  # resampling the texts would cost 300 times as much


@pytest.mark.parametrize("name", [name for name in judging.METRICS if name != "gsm8k" and not name.startswith("rouge")])
def test_every_metric_takes_any_text_and_knows_itself(name: str) -> None:
    full = [text for text in TEXTS if text.strip() and len(text) > 3 and text != "####"]
    same = judging.score_answers(full, [(text,) for text in full], [name], resamples=5)[name]
    assert same.value == pytest.approx(1.0)
    mixed = judging.score_answers(TEXTS, [(text,) for text in reversed(TEXTS)], [name], resamples=5)[name]
    assert mixed.rows.shape == (len(TEXTS),)
    assert (mixed.rows >= 0).all()
    assert mixed.value < 1


def test_equal_prompts_are_one_with_all_their_references() -> None:
    firsts, references = judging.group_references(["a", "b", "a", "a"], ["1", "2", "3", "1"])
    assert firsts == [0, 1]
    assert references == [("1", "3"), ("2",)]


@pytest.mark.parametrize(
    ("references", "first"),
    [
        ([("so 2\n#### 4",), ("#### 1,000",)], "gsm8k"),
        ([("find . -name '*.c' | xargs wc -l",), ("ls -l",)], "command_match"),
        ([("Paris",), ("the Seine",)], "normalized_match"),
        ([("A coffee shop in the city centre called Blue Spice.", "Blue Spice is a coffee shop in the city.")], "bleu"),
        ([("Find attached the report which Ms. Dawson asked for last week.",)], "rougeL"),
    ],
)
def test_metrics_are_chosen_by_what_the_references_look_like(references: list[tuple[str, ...]], first: str) -> None:
    chosen = judging.choose_metrics(references)
    assert chosen[0] == first
    assert set(chosen) <= set(judging.METRICS)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "column", "first"),
    [("gsm8k", "answer", "gsm8k"), ("nl2bash", "bash", "command_match"), ("dialogsum", "summary", "rougeL"), ("e2e_nlg", "ref", "bleu")],
)
def test_metrics_are_chosen_for_real_data(shared_data: Path, name: str, column: str, first: str) -> None:
    with (shared_data / name / "test.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    prompts = [row["mr"] for row in rows] if name == "e2e_nlg" else range(len(rows))
    _, references = judging.group_references(prompts, [row[column] for row in rows])
    assert judging.choose_metrics(references)[0] == first
    if name == "gsm8k":
        texts = [row[0] for row in references]
        assert judging.score_answers(texts, references, ["gsm8k"], resamples=0)["gsm8k"].value == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match=r"Unknown metric 'blue'.*Did you mean 'bleu'"):
        judging.score_answers(["a"], [("a",)], ["blue"])
    with pytest.raises(InputError, match="2 answers, 1 rows"):
        judging.score_answers(["a", "b"], [("a",)], ["bleu"])
    with pytest.raises(InputError, match="1 rows without any"):
        judging.score_answers(["a", "b"], [("a",), ()], ["bleu"])
    with pytest.raises(InputError, match="no references"):
        judging.choose_metrics([])
