"""From a typed body to a response: a job in line, what it sends, and the end of both when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from lightune.runtime.generation import Generator, Piece, Prompt
from lightune.serving.bodies import Asked, PredictBody
from lightune.serving.gate import LEFT
from lightune.serving.opening import Served
from lightune.serving.queueing import Job
from lightune.serving.refusals import Refusal, as_refusal, refuse_broken, refuse_late, refuse_long, refuse_stopping
from lightune.serving.replies import Reply, Usage, event
from lightune.serving.service import Service
from lightune.serving.working import Draws, Predictions, Question

T = TypeVar("T")
log = logging.getLogger("lightune.serving")


class Left(Exception):
    """The client is gone."""


async def generate(
    service: Service, request: Request, served: Served, prompts: Sequence[Prompt], asked: Asked, *, limit: int, reply: Reply
) -> Response:
    """The answers to prompts, of at most `limit` tokens each: one JSON object, or a stream of events.

    A stream begins with its first piece, so that whatever goes wrong before has a status of its own.

    Raises:
        Refusal: the prompt is too long, the line is full, or time is up. InputError: the options do not fit the model.
    """
    deadline = service.deadline()
    service.check_room(served)
    kind = "messages" if not isinstance(prompts[0], str) else "prompt"
    counts = await asyncio.to_thread(_count, served.engine, prompts, service.settings.max_prompt, kind)
    room = served.engine.max_length - min(counts)
    work = Draws(served.engine, prompts, asked.options(min(limit, room)), asked.n or 1)
    answer = Answer(service, served, _submit(service, request, served, work, deadline), reply, sum(counts), len(prompts) * work.n)
    try:
        first = await _while_connected(request, answer.next())
        if asked.stream:
            return StreamingResponse(answer.events(first, asked.wants_usage), media_type="text/event-stream")
        return await _while_connected(request, answer.whole(first))
    except Left:
        return Response(status_code=LEFT)


async def predict(service: Service, request: Request, served: Served, body: PredictBody) -> Response:
    """The answers to rows as one JSON object.

    Raises:
        Refusal: the rows are not what the model compares, the line is full, or time is up.
    """
    rows = body.examples()
    if served.kind == "pair" and (place := next((place for place, row in enumerate(rows) if isinstance(row, str)), None)) is not None:
        raise Refusal(400, f"Row {place} is one text, but the model {served.name!r} compares two. Give rows of two texts.", param="rows")
    answers: list[dict[str, Any]] = []
    truncated = 0
    if rows:
        job = _submit(service, request, served, Question(served, rows), service.deadline(), len(rows))
        try:
            found: Predictions = await _while_connected(request, _next(job, service.settings.timeout))
        except Left:
            return Response(status_code=LEFT)
        answers, truncated = found.answers, found.truncated_tokens
        service.meters.count_rows(served.name, len(rows), truncated)
    return JSONResponse({"model": served.name, "answers": answers, "truncated_tokens": truncated})


class Answer:
    """The answers of one request as they come from its job.

    prompt_tokens: of all prompts. answers: how many there will be.
    """

    def __init__(self, service: Service, served: Served, job: Job[Draws], reply: Reply, prompt_tokens: int, answers: int) -> None:
        self._service, self._served, self._job, self._reply = service, served, job, reply
        self._usage = Usage(prompt_tokens, 0)
        self._answers = answers
        service.meters.count_tokens(served.name, "prompt", prompt_tokens)

    async def next(self) -> tuple[int, Piece] | None:
        """The next piece with the number of its answer, None after the last.

        Raises:
            Refusal: time is up, or the server is being stopped.
        """
        found = await _next(self._job, self._service.settings.timeout)
        if found is None:
            return None
        index, piece = found
        if piece.finish == "cancelled":
            raise refuse_stopping()
        self._usage = Usage(self._usage.prompt, self._usage.answer + piece.tokens)
        self._service.meters.count_tokens(self._served.name, "answer", piece.tokens)
        return index, piece

    async def whole(self, first: tuple[int, Piece] | None) -> Response:
        """All answers at once."""
        texts: list[list[str]] = [[] for _ in range(self._answers)]
        finishes = ["stop"] * self._answers
        found = first
        while found is not None:
            index, piece = found
            texts[index].append(piece.text)
            finishes[index] = piece.finish or finishes[index]
            found = await self.next()
        answers = [("".join(parts), finish) for parts, finish in zip(texts, finishes, strict=True)]
        return JSONResponse(self._reply.whole(answers, self._usage))

    async def events(self, first: tuple[int, Piece] | None, usage: bool) -> AsyncIterator[bytes]:
        """The answers as server-sent events; an error on the way is the last of them."""
        try:
            async for chunk in self._chunks(first):
                yield event(chunk | {"usage": None} if usage else chunk)
            if usage:
                yield event(self._reply.usage(self._usage))
            yield event("[DONE]")
        except Exception as error:
            known = as_refusal(error)
            if known is None:
                log.exception("A stream failed.")
            yield event((known or refuse_broken()).body())

    async def _chunks(self, first: tuple[int, Piece] | None) -> AsyncIterator[dict[str, Any]]:
        opened, found = -1, first
        while found is not None:
            index, piece = found
            if index > opened:
                opened = index
                if opening := self._reply.opening(index):
                    yield opening
            if piece.text:
                yield self._reply.text(index, piece.text)
            if piece.finish:
                yield self._reply.closing(index, piece.finish)
            found = await self.next()


def _count(generator: Generator, prompts: Sequence[Prompt], most: int | None, param: str) -> list[int]:
    """Tokens of each prompt.

    Raises:
        Refusal: more than the model takes with room for an answer, or more than `most`.
    """
    limit = generator.max_length - 1 if most is None else min(most, generator.max_length - 1)
    counts = [generator.count_tokens(prompt) for prompt in prompts]
    if max(counts) > limit:
        raise refuse_long(max(counts), limit, param)
    return counts


def _submit(service: Service, request: Request, served: Served, work: Any, deadline: float, size: int = 1) -> Job[Any]:
    """A job in line that the gate ends together with its request."""
    job = service.submit(served, work, deadline, size)
    request.state.job = job
    return job


async def _next(job: Job[Any], timeout: float) -> Any:
    """The next thing that a job sends, None after the last.

    Raises:
        Refusal: time is up.
    """
    try:
        return await anext(job, None)
    except TimeoutError:
        raise refuse_late(timeout) from None


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """What the work returns.

    Raises:
        Left: the client went before.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leave(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Left
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _leave(request: Request) -> None:
    """Return when the client goes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
