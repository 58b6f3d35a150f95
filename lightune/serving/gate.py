"""What every request passes before it is answered: stopping, API keys, the size of its body; and where its end is counted."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightune.errors import InputError
from lightune.serving.refusals import BROKEN, Refusal, as_refusal, refuse_broken, refuse_stopping
from lightune.serving.service import Service
from lightune.serving.settings import KEYS_VARIABLE, Settings

OPEN = {"/health", "/ready"}  # what load balancers ask, without a key
LEFT = 499  # the status under which requests are counted whose client left
log = logging.getLogger("lightune.serving")


class Gate:
    """ASGI middleware around the routes. keys: digests of the API keys; none means that everyone may ask."""

    def __init__(self, app: Any, service: Service, keys: Sequence[bytes]) -> None:
        self._app, self._service, self._keys = app, service, tuple(keys)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, refuse or count one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), LEFT

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(scope)
        self._service.active += not refusal
        try:
            if refusal:
                raise refusal
            await self._answer(scope, receive, watched)
        except Exception as error:
            known = as_refusal(error)
            if known is None:
                log.exception("A request failed.")
            if status == LEFT:
                await (known or refuse_broken()).response()(scope, receive, watched)
        finally:
            self._service.active -= not refusal
            self._end(scope, status, time.monotonic() - started)

    def _refusal(self, scope: Any) -> Refusal | None:
        if scope["path"] in OPEN:
            return None
        if not self._admits(scope):
            message = "The API key is missing or wrong. Send it as: Authorization: Bearer KEY."
            return Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return refuse_stopping() if self._service.stopping and scope["path"] != "/metrics" else None

    def _admits(self, scope: Any) -> bool:
        """Whether the request bears one of the keys; it takes as long whatever key it bears."""
        if not self._keys:
            return True
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = header.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        return sum(hmac.compare_digest(given, known) for known in self._keys) > 0 and kind.lower() == b"bearer"

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        body = await _read_body(scope, receive, self._service.settings)
        if body is None:
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)

    def _end(self, scope: Any, status: int, seconds: float) -> None:
        """However a request ends, its job does too."""
        state = scope.get("state", {})
        if "job" in state:
            self._service.cancel(state["served"], state["job"])
        route = getattr(scope.get("route"), "path", "other")
        self._service.meters.count_request(state["served"].name if "served" in state else "", route, status, seconds)


async def _read_body(scope: Any, receive: Any, settings: Settings) -> bytes | None:
    """The whole body, None where the client leaves before.

    Raises:
        Refusal: it is too large, or comes too slowly.
    """
    large = Refusal(413, f"The request has more than {settings.max_body} bytes. Send less at a time.", code="request_too_large")
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if length.isdigit() and (len(length) > 15 or int(length) > settings.max_body):
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > settings.max_body:
                    raise large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(408, f"The request did not come within {settings.timeout:g} s.", kind=BROKEN, code="timeout") from None


def read_keys(settings: Settings) -> list[bytes]:
    """The SHA-256 digests of the API keys in the settings' file and in the environment; the keys themselves are kept nowhere.

    Raises:
        InputError: the file cannot be read, or holds no key.
    """
    found = os.environ.get(KEYS_VARIABLE, "").split()
    if settings.keys is not None:
        try:
            lines = Path(settings.keys).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise InputError(
                f"The file of API keys {settings.keys!r} cannot be read: {reason}. Give a text file, one key a line."
            ) from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise InputError(f"The file {settings.keys!r} holds no API key. Write one on each line.")
        found += keys
    return [hashlib.sha256(key.encode()).digest() for key in found]
