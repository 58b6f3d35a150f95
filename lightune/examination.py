"""Models that generate are examined on the same held-out rows, so that what a smaller one keeps of another's score can be told by pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightune import metrics
from lightune.data import Conversation
from lightune.judging import METRICS, choose_metrics
from lightune.language_evaluation import Perplexity, Questions, TokenRow, answer, draw_questions, perplexity, score_questions
from lightune.runtime.generation import GenerationOptions, Generator

LIKELIHOOD = "byte_likelihood"  # of texts without questions: the geometric mean of the probabilities of their bytes


@dataclass(frozen=True)
class Paper:
    """What one model made of an exam.

    scores: {primary, name: {value, low, high}}. rows: what each line of the table belongs to. table: float [n, k], the statistics of the
    main metric, from whose sums it is computed.
    """

    scores: dict[str, Any]
    rows: tuple[int, ...]
    table: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"scores": self.scores, "rows": list(self.rows), "table": self.table.tolist()}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Paper:
        """What `to_dict` gave."""
        return cls(facts["scores"], tuple(facts["rows"]), np.array(facts["table"], float))


@dataclass(frozen=True)
class Exam:
    """Held-out rows of one part of the data.

    questions: None where the rows are plain texts, whose likelihood is the score. metrics: of answers, the first decides; empty for texts.
    """

    part: str
    questions: Questions | None
    metrics: tuple[str, ...]
    max_tokens: int
    seed: int = 0

    @classmethod
    def of(
        cls,
        part: str,
        conversations: Sequence[Conversation],
        *,
        limit: int,
        max_tokens: int,
        metrics: Sequence[str] = (),
        seed: int = 0,
    ) -> Exam:
        """The exam of a part's conversations.

        Args:
            limit: most questions; 0 looks at the likelihood alone. metrics: what suits the answers by default.
        """
        asked = [row for row in conversations if row.messages]
        if not limit or not asked:
            return cls(part, None, (), max_tokens, seed)
        questions = draw_questions(asked, limit=limit, seed=seed)
        return cls(part, questions, tuple(metrics) or choose_metrics(questions.references), max_tokens, seed)

    @property
    def primary(self) -> str:
        """The metric that decides."""
        return self.metrics[0] if self.metrics else LIKELIHOOD

    def __len__(self) -> int:
        """How many questions are asked."""
        return len(self.questions.prompts) if self.questions else 0

    def take(self, generator: Generator, rows: Sequence[TokenRow], places: Sequence[int]) -> Paper:
        """Let a model take the exam.

        Args:
            rows: the part's rows in the model's own tokens, whose perplexity is told. places: which row of the data each comes from.
        """
        fluent = perplexity(generator, rows, seed=self.seed)
        told = {name: value for name, value in fluent.to_dict().items() if value and name.endswith("perplexity")}
        if self.questions is None:
            return _likelihoods(fluent, told, places)
        made = answer(generator, self.questions.prompts, GenerationOptions(max_tokens=self.max_tokens))
        scores = score_questions(self.questions, made, self.metrics, part=self.part, seed=self.seed)["scores"]
        table = METRICS[self.primary].statistics([one.text if one else "" for one in made], self.questions.references)
        return Paper(scores | told, tuple(range(len(table))), table)

    def value(self, table: np.ndarray) -> float:
        """The main metric of some lines of a paper's table."""
        sums = table.sum(0, keepdims=True)
        return float(METRICS[self.primary].combine(sums)[0] if self.metrics else np.exp(-sums[0, 0] / max(sums[0, 1], 1.0)))

    def compare(self, paper: Paper, reference: Paper, least: float | None) -> dict[str, float]:
        """The share of the reference's score that a paper keeps, by a paired bootstrap: see `metrics.kept_share`."""
        common = sorted(set(paper.rows) & set(reference.rows))
        tables = [one.table[[one.rows.index(row) for row in common]] for one in (paper, reference)]
        found = metrics.kept_share(
            lambda chosen: (self.value(tables[0][chosen]), self.value(tables[1][chosen])), len(common), least, resamples=300, seed=self.seed
        )
        return {name: round(value, 6) for name, value in found.items()}


def _likelihoods(fluent: Perplexity, told: dict[str, Any], places: Sequence[int]) -> Paper:
    """How likely texts are, by the rows of the data that they come from; told: the perplexities."""
    assert fluent.sizes is not None
    sums = {place: np.zeros(2) for place in places}
    for place, loss, size in zip(places, fluent.losses, fluent.sizes, strict=True):
        sums[place] += loss, size
    bounds = told["byte_perplexity"]
    likely = {"value": 1 / bounds["value"], "low": 1 / bounds["high"], "high": 1 / bounds["low"]}
    return Paper({"primary": LIKELIHOOD, LIKELIHOOD: likely, **told}, tuple(sums), np.stack(list(sums.values())))
