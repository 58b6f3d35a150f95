"""The routes of a server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from lightune import __version__
from lightune.serving import answering
from lightune.serving.bodies import ChatBody, CompletionBody, PredictBody
from lightune.serving.gate import Gate, read_keys
from lightune.serving.opening import Served
from lightune.serving.refusals import ErrorBody, Refusal, refuse_model
from lightune.serving.replies import ChatReply, CompletionReply
from lightune.serving.service import Service
from lightune.serving.settings import Settings

ERRORS: dict[int | str, Any] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
STREAMED: dict[int | str, Any] = ERRORS | {
    200: {"content": {"application/json": {}, "text/event-stream": {}}, "description": "One object, or events where `stream` is true."}
}
COMPLETION_TOKENS = 16  # OpenAI's default for completions
PROBLEMS = 20  # of a body, told at once


def make_app(models: Mapping[str, Served], settings: Settings) -> FastAPI:
    """An ASGI application that serves models; `app.state.service` is its state.

    Raises:
        InputError: the file of API keys cannot be used.
    """
    service = Service(models, settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="Lightune", version=__version__, docs_url=None, redoc_url=None, lifespan=life, responses=ERRORS)
    app.state.service = service
    app.add_middleware(Gate, service=service, keys=read_keys(settings))
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(HTTPException, _refuse_route)
    _add_openai(app, service)
    _add_predict(app, service)
    _add_probes(app, service)
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatBody, request: Request) -> Response:
        """The next turn of a conversation."""
        served = request.state.served = service.find(body.model, generates=True)
        prompt = tuple(message.message() for message in body.messages)
        limit = body.max_completion_tokens or body.max_tokens or service.settings.max_tokens
        return await answering.generate(service, request, served, [prompt], body, limit=limit, reply=ChatReply(served.name))

    @app.post("/v1/completions", responses=STREAMED)
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Texts, continued."""
        served = request.state.served = service.find(body.model, generates=True)
        limit, reply = body.max_tokens or COMPLETION_TOKENS, CompletionReply(served.name)
        return await answering.generate(service, request, served, body.prompts(), body, limit=limit, reply=reply)

    def describe(served: Served) -> dict[str, Any]:
        return {"id": served.name, "object": "model", "created": created, "owned_by": "lightune", "task": served.kind}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models by name."""
        return {"object": "list", "data": [describe(served) for served in service.models.values()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        if name not in service.models:
            raise refuse_model(name, list(service.models))
        return describe(service.models[name])


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/predict")
    async def predict(body: PredictBody, request: Request) -> Response:
        """Labels or values of texts, as `lightune predict --json` gives them."""
        served = request.state.served = service.find(body.model, generates=False)
        return await answering.predict(service, request, served, body)

    @app.post("/models/{name}/predict")
    async def predict_by(name: str, body: PredictBody, request: Request) -> Response:
        """The same of the model in the path."""
        served = request.state.served = service.find(name, generates=False)
        return await answering.predict(service, request, served, body)


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server runs at all."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Whether it takes requests."""
        return JSONResponse({"status": "stopping"}, 503) if service.stopping else JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus's form."""
        return Response(service.meters.text(), media_type=CONTENT_TYPE_LATEST)


async def _refuse_body(request: Request, error: Any) -> Response:
    """A body that is not as described: all that is wrong with it, in one sentence."""
    found = error.errors()
    told = [f"{_place(problem)}: {problem['msg'].removeprefix('Value error, ')}" for problem in found[:PROBLEMS]]
    more = f" (and {len(found) - PROBLEMS} more)" if len(found) > PROBLEMS else ""
    param = _place(found[0])
    return Refusal(400, "; ".join(told) + more + ".", param=param, code="invalid_body").response()


def _place(problem: Mapping[str, Any]) -> str:
    """Where in a body a problem lies: messages.0.role; the names of types that pydantic adds for unions stay, they tell what was tried."""
    parts = [str(part) for part in problem["loc"] if part != "body"]
    return ".".join(parts) or "body"


async def _refuse_route(request: Request, error: Any) -> Response:
    """No such path or method, or a body that is no JSON."""
    detail = f"{request.method} {request.url.path}: {error.detail}." if error.status_code in (404, 405) else f"{error.detail}."
    return Refusal(error.status_code, detail, code="not_found" if error.status_code == 404 else None, headers=error.headers).response()
