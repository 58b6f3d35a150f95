"""What a server counts, in Prometheus's form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from lightune.serving.queueing import Line

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Meters:
    """Counters of one server, in a registry of their own.

    lines: the line of each model, whose length and work are read when they are asked for.
    """

    def __init__(self, lines: Mapping[str, Line]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lightune_requests", "Requests by their end; 499: the client left.", ("model", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "lightune_request_seconds",
            "From a request to the end of its answer.",
            ("model", "route"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "lightune_tokens", "Tokens of prompts read and of answers written.", ("model", "part"), registry=self._registry
        )
        self._rows = Counter("lightune_rows", "Rows predicted.", ("model",), registry=self._registry)
        self._cut = Counter("lightune_truncated_tokens", "Tokens cut from rows that were too long.", ("model",), registry=self._registry)
        waiting = Gauge("lightune_queue_length", "Requests that wait for a model.", ("model",), registry=self._registry)
        running = Gauge("lightune_in_flight", "Requests that a model works on.", ("model",), registry=self._registry)
        for name, line in lines.items():
            waiting.labels(name).set_function(partial(getattr, line, "waiting"))
            running.labels(name).set_function(partial(getattr, line, "running"))
        ProcessCollector(registry=self._registry)

    def count_request(self, model: str, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(model, route, str(status)).inc()
        self._seconds.labels(model, route).observe(seconds)

    def count_tokens(self, model: str, part: str, tokens: int) -> None:
        """Tokens of a prompt or an answer."""
        self._tokens.labels(model, part).inc(tokens)

    def count_rows(self, model: str, rows: int, truncated_tokens: int) -> None:
        """Rows were predicted."""
        self._rows.labels(model).inc(rows)
        self._cut.labels(model).inc(truncated_tokens)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
