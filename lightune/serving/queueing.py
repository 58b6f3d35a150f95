"""Requests in line for a model: a bounded queue, the threads that answer it, and the way back to the event loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

W = TypeVar("W")
SMOOTHING = 0.2  # weight of the latest job in the mean of seconds that a client is told to wait


class Full(Exception):
    """As many jobs wait as may; `seconds` tells about when there is room."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Closed(Exception):
    """The line takes no more jobs."""


class _End:
    """The last thing in a job's mailbox: no more comes, because of an error or because all is said."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Job(Generic[W]):
    """One request's work, and the mailbox between the thread that does it and the event loop that waits for it.

    work: what a thread is to do. size: how much it is, in the line's own unit. deadline: of the event loop's clock.
    left: set where nobody waits for it any more. It is made on the event loop.
    """

    def __init__(self, work: W, deadline: float, size: int = 1) -> None:
        self.work = work
        self.size = size
        self.deadline = deadline
        self.left = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._mailbox: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, item: Any) -> None:
        """Send an item to the event loop; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._mailbox.put_nowait, item)

    def end(self, error: Exception | None = None) -> None:
        """Say that nothing more comes; from any thread."""
        self.put(_End(error))

    def __aiter__(self) -> Job[W]:
        return self

    async def __anext__(self) -> Any:
        """The next item.

        Raises:
            TimeoutError: the deadline has come. Whatever error ended the work.
        """
        async with asyncio.timeout_at(self.deadline):
            item = await self._mailbox.get()
        if isinstance(item, _End):
            raise item.error or StopAsyncIteration
        return item


class Line(Generic[W]):
    """Jobs of one model: first come, first served.

    Args:
        work: answers the jobs that it is given, by their `put`; it looks at `left` and stops where nobody waits. An error ends them.
        workers: how many threads work side by side; they start with the first job.
        limit: most jobs that may wait while every thread is busy.
        together: jobs whose sizes sum up to at most this go to one call of `work`; a greater one goes alone.
    """

    def __init__(self, work: Callable[[list[Job[W]]], None], *, workers: int, limit: int, together: int = 1) -> None:
        self._work, self._workers, self._limit, self._together = work, workers, limit, together
        self._waiting: deque[Job[W]] = deque()
        self._running: list[Job[W]] = []
        self._busy = 0
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._seconds = 1.0

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many jobs are being worked on."""
        return len(self._running)

    def check_room(self) -> None:
        """Raise what `submit` would raise now."""
        if self._closed:
            raise Closed
        if len(self._waiting) >= self._limit + self._workers - self._busy:
            raise Full(max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / self._workers)))

    def submit(self, job: Job[W]) -> None:
        """Put a job in line.

        Raises:
            Full, Closed.
        """
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            if not self._threads:
                self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self._workers)]
                for thread in self._threads:
                    thread.start()
            self._changed.notify()

    def cancel(self, job: Job[W]) -> None:
        """Nobody waits for the job any more: out of line at once, or stopped by its thread at the next occasion."""
        job.left.set()
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def close(self, error: Exception) -> None:
        """End every job with an error, and the threads when they next look."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.left.set()
                job.end(error)
            self._waiting.clear()
            self._changed.notify_all()

    def join(self, seconds: float) -> bool:
        """Wait for the threads of a closed line; whether all have ended."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        while jobs := self._take():
            started = time.monotonic()
            try:
                self._work(jobs)
            except Exception as error:
                for job in jobs:
                    job.end(error)
            else:
                for job in jobs:
                    job.end()
            with self._changed:
                self._busy -= 1
                self._running = [job for job in self._running if job not in jobs]
                self._seconds += SMOOTHING * ((time.monotonic() - started) / len(jobs) - self._seconds)

    def _take(self) -> list[Job[W]]:
        """The next jobs that go together, waited for; none where the line is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            jobs: list[Job[W]] = []
            size = 0
            while self._waiting and (not jobs or size + self._waiting[0].size <= self._together):
                jobs.append(self._waiting.popleft())
                size += jobs[-1].size
            self._busy += 1
            self._running += jobs
            return jobs
