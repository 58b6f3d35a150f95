"""Continuous batching: many jobs share the steps of one model, each in a slot of its key-value cache. Needs numpy alone.

A step gives every answer in the making one token and fills up with prompts, so that a long prompt never holds up the others for long.
A slot remembers what it has read: a prompt that begins as the last one did, as in a conversation, is read from there on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

SCORED = 64  # most tokens of a step whose logits are all wanted: the vocabulary never fills memory


@dataclass(frozen=True)
class Chunk:
    """Tokens that one slot reads in one step. position: of its first token. outputs: the logits of so many of its last tokens are wanted."""

    slot: int
    position: int
    tokens: Sequence[int]
    outputs: int


class Decoder(Protocol):
    """A model with slots."""

    def decode(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """The logits [outputs, v] that each chunk asks for, float32, valid until the next call."""
        ...

    def forget(self, slot: int, keep: int) -> int:
        """Let a slot forget all but its first `keep` tokens; how many it still has."""
        ...


class Job(Protocol):
    """Work on one sequence.

    tokens: what is read at first. scores: whether the logits of every token are wanted, or of the last one alone.
    """

    tokens: Sequence[int]
    scores: bool

    def take(self, logits: np.ndarray) -> Sequence[int]:
        """Use logits [n, v] of the tokens that were just read; what is to be read next, nothing when the job is done."""
        ...

    def end(self, error: Exception | None) -> None:
        """It was given up, because of an error or because the scheduler closes."""
        ...


@dataclass
class _Slot:
    number: int
    read: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    job: Job | None = None


class Scheduler:
    """Runs jobs on a decoder in a thread of its own.

    Args:
        slots: how many sequences run at a time; others wait in order.
        batch: most tokens of a step.
    """

    def __init__(self, decoder: Decoder, slots: int, batch: int) -> None:
        self._decoder = decoder
        self._batch = batch
        self._slots = [_Slot(number) for number in range(slots)]
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lightune-scheduler", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its `take` and `end` are called from the scheduler's thread."""
        with self._change:
            if self._closing:
                job.end(None)
                return
            self._waiting.append(job)
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up before the next step; nothing happens when it is done already."""
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)
            for slot in self._slots:
                if slot.job is job:
                    slot.job, slot.pending = None, []

    def close(self) -> None:
        """End all jobs and the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def active(self) -> int:
        """How many jobs are in a slot or wait for one."""
        with self._change:
            return len(self._waiting) + sum(slot.job is not None for slot in self._slots)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closing or self._waiting or any(slot.job for slot in self._slots))
                if self._closing:
                    break
                self._admit()
                plan = self._plan()
            self._step(plan)
        for job in [*(slot.job for slot in self._slots if slot.job), *self._waiting]:
            job.end(None)

    def _admit(self) -> None:
        """Give free slots to waiting jobs, to each the slot that has already read most of its beginning."""
        while self._waiting and (free := [slot for slot in self._slots if slot.job is None]):
            job = self._waiting.popleft()
            known = {slot.number: 0 if job.scores else min(_common(slot.read, job.tokens), len(job.tokens) - 1) for slot in free}
            slot = max(free, key=lambda slot: (known[slot.number], -len(slot.read)))
            keep = self._decoder.forget(slot.number, known[slot.number])
            slot.read, slot.pending, slot.job = list(slot.read[:keep]), list(job.tokens[keep:]), job

    def _plan(self) -> list[tuple[_Slot, Job, Chunk]]:
        """What is read in the next step: answers first, for they have one token each, then prompts as far as there is room."""
        room, scored, plan = self._batch, SCORED, []
        for slot in sorted((slot for slot in self._slots if slot.job), key=lambda slot: len(slot.pending)):
            job = slot.job
            if job and (tokens := slot.pending[: min(room, scored) if job.scores else room]):
                outputs = len(tokens) if job.scores else int(len(tokens) == len(slot.pending))
                plan.append((slot, job, Chunk(slot.number, len(slot.read), tokens, outputs)))
                room -= len(tokens)
                scored -= len(tokens) * job.scores
        return plan

    def _step(self, plan: list[tuple[_Slot, Job, Chunk]]) -> None:
        try:
            outputs = self._decoder.decode([chunk for _, _, chunk in plan])
        except Exception as error:  # whatever it was, the jobs' callers must hear of it
            for slot, job, _ in plan:
                self._give_up(slot, job, error)
            return
        for (slot, job, chunk), logits in zip(plan, outputs, strict=True):
            slot.read += chunk.tokens
            if slot.job is not job:  # cancelled meanwhile
                continue
            try:
                following = job.take(logits) if chunk.outputs else ()
            except Exception as error:
                self._give_up(slot, job, error)
                continue
            with self._change:
                if slot.job is job:
                    slot.pending = [*slot.pending[len(chunk.tokens) :], *following]
                    slot.job = job if slot.pending else None

    def _give_up(self, slot: _Slot, job: Job, error: Exception) -> None:
        with self._change:
            slot.job, slot.pending = None, []
            slot.read = slot.read[: self._decoder.forget(slot.number, 0)]
        job.end(error)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    size = min(len(one), len(other))
    different = np.flatnonzero(np.asarray(one[:size]) != np.asarray(other[:size]))
    return int(different[0]) if len(different) else size
