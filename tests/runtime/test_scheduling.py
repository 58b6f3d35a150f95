from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

import numpy as np
import pytest

from lightune.runtime.scheduling import SCORED, Chunk, Scheduler

SIZE = 97


class Summing:
    """A decoder whose logits say how many tokens of which sum a slot has read, and that notices tokens out of place."""

    def __init__(self) -> None:
        self.memory: dict[int, list[int]] = {}
        self.steps: list[list[Chunk]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False

    def decode(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        self.gate.wait(5)
        if self.fails:
            raise RuntimeError("out of order")
        self.steps.append(list(chunks))
        found = []
        for chunk in chunks:
            memory = self.memory.setdefault(chunk.slot, [])
            assert chunk.position == len(memory)
            rows = []
            for token in chunk.tokens:
                memory.append(token)
                rows.append(np.eye(SIZE, dtype=np.float32)[sum(memory) % SIZE])
            found.append(np.array(rows[len(rows) - chunk.outputs :]).reshape(chunk.outputs, SIZE))
        return found

    def forget(self, slot: int, keep: int) -> int:
        self.memory[slot] = self.memory.get(slot, [])[:keep]
        return len(self.memory[slot])


class Counting:
    """A job that reads what it was told for some steps."""

    def __init__(self, tokens: Sequence[int], steps: int = 1, scores: bool = False) -> None:
        self.tokens, self.steps, self.scores = list(tokens), steps, scores
        self.said: list[int] = []
        self.done: SimpleQueue[Exception | str | None] = SimpleQueue()

    def take(self, logits: np.ndarray) -> Sequence[int]:
        self.said += logits.argmax(axis=1).tolist()
        if len(self.said) < (len(self.tokens) if self.scores else self.steps):
            return () if self.scores else self.said[-1:]
        self.done.put("done")
        return ()

    def end(self, error: Exception | None) -> None:
        self.done.put(error)

    def expected(self) -> list[int]:
        if self.scores:
            return (np.cumsum(self.tokens) % SIZE).tolist()
        total, said = sum(self.tokens), []
        for _ in range(self.steps):
            said.append(total % SIZE)
            total += said[-1]
        return said


@pytest.fixture
def decoder() -> Summing:
    return Summing()


@pytest.fixture
def scheduler(decoder: Summing) -> Iterator[Scheduler]:
    made = Scheduler(decoder, slots=3, batch=16)
    yield made
    decoder.gate.set()
    made.close()


def test_jobs_of_every_length_share_slots_and_never_mix(scheduler: Scheduler, decoder: Summing) -> None:
    draw = np.random.default_rng(0)
    jobs = [Counting(draw.integers(0, 50, draw.integers(1, 60)), int(draw.integers(1, 9)), bool(draw.integers(0, 2))) for _ in range(40)]
    for job in jobs:
        scheduler.submit(job)
    assert [job.done.get(timeout=5) for job in jobs] == ["done"] * len(jobs)
    assert [job.said for job in jobs] == [job.expected() for job in jobs]
    assert max(sum(len(chunk.tokens) for chunk in step) for step in decoder.steps) <= 16
    assert max(len(step) for step in decoder.steps) == 3
    assert scheduler.active == 0


def test_answers_go_on_while_a_long_prompt_is_read(scheduler: Scheduler, decoder: Summing) -> None:
    decoder.gate.clear()
    answer, long = Counting([1], steps=12), Counting(range(100))
    scheduler.submit(answer)
    scheduler.submit(long)
    decoder.gate.set()
    assert [job.done.get(timeout=5) for job in (answer, long)] == ["done", "done"]
    both = [step for step in decoder.steps if len(step) == 2]
    assert len(both) >= 6
    assert all({len(chunk.tokens) for chunk in step} >= {1} for step in both)


def test_a_known_beginning_is_not_read_again(scheduler: Scheduler, decoder: Summing) -> None:
    first = Counting(range(30), steps=2)
    scheduler.submit(first)
    first.done.get(timeout=5)
    decoder.steps.clear()
    second = Counting([*range(30), first.said[0], 7, 8])
    scheduler.submit(second)
    second.done.get(timeout=5)
    assert second.said == second.expected()
    assert sum(len(chunk.tokens) for step in decoder.steps for chunk in step) == 2
    again = Counting([*range(30), first.said[0], 7, 8])
    scheduler.submit(again)
    again.done.get(timeout=5)
    assert again.said == again.expected()  # the last token is read again, for its logits


def test_a_cancelled_job_frees_its_slot_before_the_next_step(scheduler: Scheduler, decoder: Summing) -> None:
    endless, waiting = [Counting([number], steps=10**9) for number in range(3)], Counting([5], steps=2)
    for job in (*endless, waiting):
        scheduler.submit(job)
    assert scheduler.active == 4
    scheduler.cancel(endless[1])
    assert waiting.done.get(timeout=5) == "done"
    assert waiting.said == waiting.expected()
    for job in endless:
        scheduler.cancel(job)
    assert scheduler.active == 0


def test_a_waiting_job_can_be_cancelled(scheduler: Scheduler, decoder: Summing) -> None:
    endless, waiting = [Counting([number], steps=10**9) for number in range(3)], Counting([5])
    for job in (*endless, waiting):
        scheduler.submit(job)
    scheduler.cancel(waiting)
    assert scheduler.active == 3
    for job in endless:
        scheduler.cancel(job)
    assert waiting.said == []


def test_errors_reach_the_jobs_and_others_go_on(scheduler: Scheduler, decoder: Summing) -> None:
    class Failing(Counting):
        def take(self, logits: np.ndarray) -> Sequence[int]:
            raise ValueError("mine")

    failing, other = Failing([1]), Counting([2], steps=3)
    scheduler.submit(failing)
    scheduler.submit(other)
    assert str(failing.done.get(timeout=5)) == "mine"
    assert other.done.get(timeout=5) == "done"
    decoder.fails = True
    scheduler.submit(job := Counting([3]))
    assert str(job.done.get(timeout=5)) == "out of order"
    decoder.fails = False
    scheduler.submit(job := Counting([3]))
    assert job.done.get(timeout=5) == "done"
    assert job.said == [3]


def test_closing_ends_what_runs_and_what_waits_and_what_comes(scheduler: Scheduler, decoder: Summing) -> None:
    jobs = [Counting([number], steps=10**9) for number in range(5)]
    for job in jobs:
        scheduler.submit(job)
    scheduler.close()
    scheduler.submit(late := Counting([1]))
    assert [job.done.get(timeout=5) for job in (*jobs, late)] == [None] * 6


def test_scores_are_wanted_for_few_tokens_at_a_time(decoder: Summing) -> None:
    scheduler = Scheduler(decoder, slots=2, batch=1000)
    jobs = [Counting(range(150), scores=True), Counting(range(7, 100), scores=True), Counting(range(400))]
    for job in jobs:
        scheduler.submit(job)
    assert [job.done.get(timeout=5) for job in jobs] == ["done"] * 3
    scheduler.close()
    assert [job.said for job in jobs] == [job.expected() for job in jobs]
    assert SCORED <= max(sum(chunk.outputs for chunk in step) for step in decoder.steps) <= SCORED + 1  # the third wants one
