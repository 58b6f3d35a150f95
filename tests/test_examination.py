"""What a smaller model keeps of another's score is told by the same questions or texts, in pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from bigrams import END, BigramGenerator

from lightune.data import Conversation
from lightune.examination import LIKELIHOOD, Exam, Paper
from lightune.language_evaluation import TokenRow, cut_rows
from lightune.runtime.generation import Message

SAYS = {":": "y", "y": "e", "e": "s", "s": END}


def questions(answers: Sequence[str]) -> list[Conversation]:
    return [
        Conversation((Message("user", f"{place}?"), Message("assistant", answer)), row=place + 1) for place, answer in enumerate(answers)
    ]


def rows_for(generator: BigramGenerator, texts: Sequence[str]) -> list[TokenRow]:
    return cut_rows(generator, texts, prefix=END)


def test_answers_decide_where_there_are_questions() -> None:
    generator = BigramGenerator(SAYS, seed=1)
    exam = Exam.of("test", questions(["yes", "no", "yes", "no"]), limit=10, max_tokens=8)
    paper = exam.take(generator, rows_for(generator, ["yes"]), [1])
    assert (exam.primary, len(exam)) == ("normalized_match", 4)
    assert exam.value(paper.table) == paper.scores["normalized_match"]["value"] == 0.5
    assert paper.scores["primary"] == "normalized_match"
    assert paper.scores["perplexity"]["value"] > 1


def test_texts_are_judged_by_their_likelihood() -> None:
    generator, texts = BigramGenerator(seed=2), ["abc", "de", "fghij"]
    exam = Exam.of("dev", [Conversation(text=text, row=place) for place, text in enumerate(texts)], limit=10, max_tokens=8)
    paper = exam.take(generator, rows_for(generator, texts), [0, 1, 2])
    logs = sum(float(one.sum()) for one in generator.token_logprobs([generator.encode(END + text) for text in texts]))
    assert (exam.primary, len(exam)) == (LIKELIHOOD, 0)
    assert exam.value(paper.table) == pytest.approx(np.exp(logs / 10), rel=1e-5)
    assert paper.scores[LIKELIHOOD]["value"] == pytest.approx(exam.value(paper.table), rel=1e-5)
    bounds = paper.scores[LIKELIHOOD]
    assert bounds["low"] <= bounds["value"] <= bounds["high"]


def test_what_is_kept_is_a_share_of_the_same_rows() -> None:
    exam = Exam.of("test", questions(["yes", "no", "yes", "no"]), limit=10, max_tokens=8)
    whole = Paper({}, (0, 1, 2, 3), np.array([[1, 1], [1, 1], [1, 1], [0, 1]], float))
    small = Paper({}, (3, 2, 1), np.array([[0, 1], [1, 1], [0, 1]], float))
    kept = exam.compare(small, whole, 0.9)
    assert kept["value"] == pytest.approx(0.5)  # one of the two among the common rows 1, 2 and 3
    assert kept["p"] > 0.5
    assert exam.compare(whole, whole, None) == {"value": 1.0, "low": pytest.approx(1.0, abs=1.0), "high": 1.0}


def test_a_paper_outlives_json() -> None:
    paper = Paper({"primary": "chrf"}, (4, 7), np.array([[1.0, 2.5], [0.0, 1.0]]))
    again = Paper.from_dict(json.loads(json.dumps(paper.to_dict())))
    assert (again.scores, again.rows) == (paper.scores, paper.rows)
    assert np.array_equal(again.table, paper.table)


def test_without_questions_asked_only_texts_count() -> None:
    exam = Exam.of("test", questions(["yes"]), limit=0, max_tokens=8)
    assert exam.questions is None
    assert exam.primary == LIKELIHOOD
