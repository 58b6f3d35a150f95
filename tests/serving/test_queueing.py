"""Lines and jobs by themselves."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from live_servers import wait_until

from lightune.serving.queueing import Closed, Full, Job, Line


async def all_of(job: Job) -> list[object]:
    return [item async for item in job]


def soon() -> float:
    return asyncio.get_running_loop().time() + 5


def test_jobs_are_done_in_their_order_and_what_they_send_arrives() -> None:
    async def go() -> list[list[object]]:
        line: Line[str] = Line(lambda jobs: [job.put(letter) for job in jobs for letter in job.work], workers=1, limit=10)  # type: ignore[func-returns-value, arg-type, return-value]
        jobs = [Job(word, soon()) for word in ("ab", "c", "")]
        for job in jobs:
            line.submit(job)
        return [await all_of(job) for job in jobs]

    assert asyncio.run(go()) == [["a", "b"], ["c"], []]


def test_jobs_that_wait_go_together_up_to_a_size() -> None:
    async def go() -> list[int]:
        free, calls = threading.Event(), []

        def work(jobs: list[Job[int]]) -> None:
            free.wait(5)
            calls.append(sum(job.size for job in jobs))

        line = Line(work, workers=1, limit=20, together=4)
        first = Job(0, soon())
        line.submit(first)
        wait_until(lambda: line.running == 1)
        jobs = [Job(0, soon(), size) for size in (2, 2, 1, 9, 1)]
        for job in jobs:
            line.submit(job)
        free.set()
        for job in (first, *jobs):
            await all_of(job)
        return calls

    assert asyncio.run(go()) == [1, 4, 1, 9, 1]


def test_a_line_holds_as_many_as_it_may_beside_those_that_are_worked_on() -> None:
    async def go() -> None:
        free = threading.Event()
        line: Line[int] = Line(lambda jobs: free.wait(5) and None, workers=2, limit=3)
        jobs = [Job(number, soon()) for number in range(5)]
        for job in jobs:
            line.submit(job)
        wait_until(lambda: (line.running, line.waiting) == (2, 3))
        with pytest.raises(Full) as full:
            line.submit(Job(9, soon()))
        assert full.value.seconds >= 1
        line.cancel(jobs[4])
        line.submit(Job(9, soon()))
        free.set()
        assert await all_of(jobs[0]) == []

    asyncio.run(go())


def test_an_error_ends_its_own_job_and_no_other() -> None:
    def work(jobs: list[Job[int]]) -> None:
        jobs[0].put(1 // jobs[0].work)

    async def go() -> None:
        line = Line(work, workers=1, limit=5)
        bad, good = Job(0, soon()), Job(1, soon())
        line.submit(bad)
        line.submit(good)
        with pytest.raises(ZeroDivisionError):
            await all_of(bad)
        assert await all_of(good) == [1]

    asyncio.run(go())


def test_a_deadline_holds_even_where_the_work_hangs() -> None:
    async def go() -> None:
        line: Line[int] = Line(lambda jobs: time.sleep(1), workers=1, limit=5)
        job = Job(0, asyncio.get_running_loop().time() + 0.05)
        line.submit(job)
        with pytest.raises(TimeoutError):
            await all_of(job)

    asyncio.run(go())


def test_closing_tells_those_that_wait_and_ends_the_threads() -> None:
    async def go() -> None:
        line: Line[int] = Line(lambda jobs: jobs[0].left.wait(5) and None, workers=1, limit=5)
        running, waiting = Job(0, soon()), Job(1, soon())
        line.submit(running)
        line.submit(waiting)
        wait_until(lambda: line.running == 1)
        line.close(ValueError("over"))
        for job in (running, waiting):
            with pytest.raises(ValueError, match="over"):
                await all_of(job)
        with pytest.raises(Closed):
            line.submit(Job(2, soon()))
        assert line.join(5)

    asyncio.run(go())
