"""What the threads of a line do: draw answers of a model that generates, or predict the rows of several requests at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from lightune.runtime.generation import GenerationOptions, Generator, Piece, Prompt
from lightune.runtime.tokenization import texts_and_pairs
from lightune.serving.opening import Served
from lightune.serving.queueing import Job

ROWS = 64  # rows that are predicted at a time


@dataclass(frozen=True)
class Draws:
    """Answers to prompts, `n` to each, one after the other."""

    generator: Generator
    prompts: Sequence[Prompt]
    options: GenerationOptions
    n: int = 1

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """Every answer's pieces with its number; draws after the first of a seeded request have the seeds that follow."""
        for number in range(len(self.prompts) * self.n):
            place, draw = divmod(number, self.n)
            seed = None if self.options.seed is None else self.options.seed + draw
            with closing(self.generator.stream(self.prompts[place], dataclasses.replace(self.options, seed=seed))) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    yield number, piece


@dataclass(frozen=True)
class Question:
    """Rows (texts, or pairs of texts) for a model that predicts."""

    served: Served
    rows: Sequence[Any]


@dataclass(frozen=True)
class Predictions:
    """One answer for each row, and how many tokens were cut from rows that were too long."""

    answers: list[dict[str, Any]]
    truncated_tokens: int


def draw(jobs: list[Job[Draws]]) -> None:
    """Send every piece of a job's answers; where nobody waits any more, the work ends with the piece under way."""
    for job in jobs:
        with closing(job.work.pieces()) as pieces:  # type: ignore[type-var]
            for item in pieces:
                if job.left.is_set():
                    break
                job.put(item)


def predict(jobs: list[Job[Question]]) -> None:
    """Answer the rows of several requests in one pass; if that fails, each by itself, so that none fails for another's rows."""
    waited = [job for job in jobs if not job.left.is_set()]
    try:
        _predict(waited)
    except Exception:
        if len(waited) == 1:
            raise
        for job in waited:
            try:
                _predict([job])
            except Exception as error:
                job.end(error)


def _predict(jobs: list[Job[Question]]) -> None:
    rows = [(row, job.work.served) for job in jobs for row in job.work.rows]
    answers: list[dict[str, Any]] = []
    for start in range(0, len(rows), ROWS):
        if all(job.left.is_set() for job in jobs):
            return
        texts, owners = zip(*rows[start : start + ROWS], strict=True)
        answers += owners[0].predict(texts, owners)
    cut = [job.work.served.engine.encoder.encode(*texts_and_pairs(job.work.rows)).truncated_tokens for job in jobs]
    for job, truncated in zip(jobs, cut, strict=True):
        own, answers = answers[: len(job.work.rows)], answers[len(job.work.rows) :]
        job.put(Predictions(own, truncated))
