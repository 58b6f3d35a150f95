"""Run a server until it is told to stop; then let running answers end, refuse new requests, and leave within a limit."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn

from lightune.errors import InputError
from lightune.serving.app import make_app
from lightune.serving.gate import read_keys
from lightune.serving.opening import GENERATE, Served
from lightune.serving.service import Service
from lightune.serving.settings import Settings

LAST_SECONDS = 2  # for refusals to reach their clients once the grace is over, and for threads to end


class Server(uvicorn.Server):
    """uvicorn that goes on listening, and refusing with 503, while running answers end. A second signal ends them at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; the signal itself is dealt with thereby."""
        again = self._until is not None
        self.service.stopping = True
        self._until = time.monotonic() + (0 if again else self.service.settings.grace)

    def stop(self) -> None:
        """What a signal does, for a server in a thread."""
        self.handle_exit(0, None)

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave now; uvicorn asks ten times a second."""
        if self._until is not None and (not self.service.active or time.monotonic() >= self._until):
            self.service.close()
            return True
        return await super().on_tick(counter)


def make_server(models: Mapping[str, Served], settings: Settings) -> Server:
    """A server that is ready to `run` on a socket of `listen`."""
    app = make_app(models, settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=LAST_SECONDS, server_header=False, ws="none")
    return Server(config, app.state.service)


def listen(settings: Settings) -> socket.socket:
    """A socket on the host and port of the settings.

    Raises:
        InputError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot listen on {settings.host} port {settings.port}: {reason}. Choose another --port or --host.") from None


def serve(models: Mapping[str, Served], settings: Settings, *, tell: Callable[[str], None] = lambda sentence: None) -> None:
    """Serve models until SIGINT or SIGTERM; blocks. `tell` gets sentences: the address, and what is unsafe.

    Raises:
        InputError: the address cannot be had, or the API keys cannot be read.
    """
    server = make_server(models, settings)
    with listen(settings) as bound:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        tell(f"Serving {', '.join(models)} on http://{host}:{bound.getsockname()[1]}")
        if not _is_loopback(settings.host) and not read_keys(settings):
            tell(f"warning: {settings.host} lets other machines in, and there are no API keys: whoever reaches it may ask.")
        server.run(sockets=[bound])
    if server.service.join(LAST_SECONDS):
        for served in models.values():
            if served.kind == GENERATE:
                served.engine.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
