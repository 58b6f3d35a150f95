"""What a server says where it cannot answer: OpenAI's form of an error, with the right status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from lightune.errors import InputError

INVALID, LIMITED, BROKEN = "invalid_request_error", "rate_limit_error", "server_error"


class ErrorFacts(BaseModel):
    """What went wrong: a sentence, its kind, the field at fault, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 and above."""

    error: ErrorFacts


class Refusal(Exception):
    """A request that is not answered, and why.

    status: of HTTP. kind, param, code: OpenAI's `type`, `param` and `code`. headers: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.facts = {"message": message, "type": kind, "param": param, "code": code}
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that tells it."""
        return {"error": self.facts}

    def response(self) -> JSONResponse:
        """The response that tells it."""
        return JSONResponse(self.body(), self.status, self.headers)


def refuse_full(seconds: int, name: str) -> Refusal:
    """Too many wait for the model; in so many seconds there is room again."""
    message = f"Too many requests wait for the model {name!r}. Try again in {seconds} s."
    return Refusal(429, message, kind=LIMITED, code="queue_full", headers={"Retry-After": str(seconds)})


def refuse_stopping() -> Refusal:
    """The server is being stopped."""
    message = "The server is being stopped and takes no new requests. Try again later."
    return Refusal(503, message, kind=BROKEN, code="stopping", headers={"Retry-After": "10"})


def refuse_late(seconds: float) -> Refusal:
    """The answer took longer than the server allows."""
    message = f"There was no whole answer within {seconds:g} s. Ask for fewer tokens, or try again when fewer requests wait."
    return Refusal(504, message, kind=BROKEN, code="timeout")


def refuse_long(tokens: int, limit: int, param: str) -> Refusal:
    """The prompt has more tokens than the model, or the server, takes."""
    message = f"The prompt has {tokens} tokens, expected at most {limit}, of which at least one is left for the answer. Shorten it."
    return Refusal(400, message, param=param, code="context_length_exceeded")


def refuse_model(name: str, known: list[str]) -> Refusal:
    """No model has this name."""
    return Refusal(404, f"There is no model {name!r} here. Known: {', '.join(known)}.", param="model", code="model_not_found")


def as_refusal(error: Exception) -> Refusal | None:
    """What a client is told about an error; None where the fault is the server's own."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(400, str(error), code="invalid_value")
    if isinstance(error, RecursionError):
        return Refusal(400, "The request is nested too deeply. Make it flatter.", code="invalid_value")
    return None


def refuse_broken() -> Refusal:
    """An error of the server's own; what it was stands in the server's log."""
    return Refusal(500, "The server failed to answer. Its log says why.", kind=BROKEN, code="internal_error")
