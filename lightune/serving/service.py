"""The state of a server: models by name, their lines, their meters, and whether it is being stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from lightune.serving.metering import Meters
from lightune.serving.opening import GENERATE, Served
from lightune.serving.queueing import Closed, Full, Job, Line
from lightune.serving.refusals import Refusal, refuse_full, refuse_model, refuse_stopping
from lightune.serving.settings import Settings
from lightune.serving.working import ROWS, draw, predict


class Service:
    """What the routes of a server share.

    active: how many admitted requests are under way. stopping: whether new ones are refused.
    """

    def __init__(self, models: Mapping[str, Served], settings: Settings) -> None:
        self.models, self.settings = dict(models), settings
        self.active, self.stopping = 0, False
        owners: dict[int, Line] = {}
        self._lines = {name: owners.setdefault(id(served.owner), self._line(served)) for name, served in self.models.items()}
        self.meters = Meters(self._lines)

    def _line(self, served: Served) -> Line:
        if served.kind == GENERATE:
            return Line(draw, workers=self.settings.slots, limit=self.settings.queue)
        return Line(predict, workers=1, limit=self.settings.queue, together=ROWS)

    def find(self, name: str | None, *, generates: bool) -> Served:
        """The model of a name, or the only one.

        Raises:
            Refusal: there is none, or it does something else.
        """
        if name is None and len(self.models) == 1:
            name = next(iter(self.models))
        if name is None:
            raise Refusal(400, f"Name a model. Known: {', '.join(self.models)}.", param="model", code="missing_model")
        if name not in self.models:
            raise refuse_model(name, list(self.models))
        served = self.models[name]
        if (served.kind == GENERATE) != generates:
            cure = "Ask /predict." if generates else "Ask /v1/chat/completions or /v1/completions."
            raise Refusal(
                400, f"The model {name!r} does not answer this way; its task is {served.kind}. {cure}", param="model", code="wrong_task"
            )
        return served

    def check_room(self, served: Served) -> None:
        """Refuse before any work where the model's line is full."""
        try:
            self._lines[served.name].check_room()
        except Full as full:
            raise refuse_full(full.seconds, served.name) from None
        except Closed:
            raise refuse_stopping() from None

    def submit(self, served: Served, work: Any, deadline: float, size: int = 1) -> Job[Any]:
        """A job in the model's line.

        Raises:
            Refusal: the line is full or closed.
        """
        job: Job[Any] = Job(work, deadline, size)
        try:
            self._lines[served.name].submit(job)
        except Full as full:
            raise refuse_full(full.seconds, served.name) from None
        except Closed:
            raise refuse_stopping() from None
        return job

    def cancel(self, served: Served, job: Job[Any]) -> None:
        """Nobody waits for a job any more; one that has ended is left alone."""
        self._lines[served.name].cancel(job)

    def deadline(self) -> float:
        """When a request that comes now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.timeout

    def close(self) -> None:
        """Refuse whatever waits or runs, and end the threads."""
        self.stopping = True
        for line in self._lines.values():
            line.close(refuse_stopping())

    def join(self, seconds: float) -> bool:
        """Wait for the threads after `close`; whether all have ended."""
        until = time.monotonic() + seconds
        ended = [line.join(until - time.monotonic()) for line in self._lines.values()]
        return all(ended)
