"""A real server on a loopback port, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
from openai import OpenAI

from lightune.serving.opening import Served
from lightune.serving.server import Server, listen, make_server
from lightune.serving.settings import Settings


class Live:
    """A server that runs. Clients that are made here are closed with it."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url, self.service = server, url, server.service
        self.thread = threading.Thread(target=lambda: None)
        self.clients = ExitStack()

    def http(self) -> httpx.Client:
        return self.clients.enter_context(httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False))

    def openai(self, key: str = "any") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, http_client=self.http())


@contextmanager
def running(models: dict[str, Served], settings: Settings) -> Iterator[Live]:
    server = make_server(models, settings)
    with listen(settings) as bound:
        live = Live(server, f"http://127.0.0.1:{bound.getsockname()[1]}")
        live.thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        live.thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield live
        finally:
            live.clients.close()
            server.stop()
            server.stop()
            live.thread.join(10)
            assert not live.thread.is_alive()


Start = Callable[..., Live]


def wait_until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until something holds; an error where it does not in time."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)
