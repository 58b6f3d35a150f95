"""What a search for a smaller model writes down: RUN/search.json, by which it goes on, and RUN/front.json and front.csv, everything tried."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightune import planning
from lightune.errors import InputError
from lightune.recipes import Budget, parse_seconds
from lightune.reports import write_front_csv
from lightune.runs import Run

SECONDS = 1200.0  # of a search, where none are given
FILES = ("search.json", "front.json", "front.csv")


class Journal:
    """A search's state and its front, in a run's folder.

    Args:
        settings: what the search was asked for, as JSON gives it back: another search cannot go on with it.
        empty: the state at the beginning, beside its settings, seconds and points. reference: what the model before costs and scores.
        metric: by which points are compared. begin: when the search began, by the monotonic clock.
    """

    def __init__(
        self,
        run: Run,
        settings: Mapping[str, Any],
        empty: Mapping[str, Any],
        budget: Budget,
        reference: Mapping[str, Any],
        metric: str,
        begin: float | None,
    ) -> None:
        self.run, self.budget, self.reference, self.metric = run, budget, reference, metric
        self.state: dict[str, Any] = {"settings": settings, "seconds": 0.0, "points": [], **empty}
        self.resumed = (run.folder / "search.json").exists()
        if self.resumed:
            self.state = run.read("search.json")
            if self.state["settings"] != settings:
                raise InputError(
                    f"{run.folder} holds a search with other settings. Take one of its points with --take ID, or forget it with --overwrite."
                )
        self.begun = (time.monotonic() if begin is None else begin) - self.state["seconds"]

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, those of earlier sittings included."""
        return time.monotonic() - self.begun

    @property
    def seconds(self) -> float:
        """How many the search may take."""
        return parse_seconds(self.budget.time) if self.budget.time else SECONDS

    def settle(self, stage: str, best: Sequence[int]) -> list[int]:
        """Who goes on to a stage: the best, written down, since what the stage teaches them changes who is the best when the search goes on."""
        settled = self.state.setdefault("settled", {})
        if best and stage not in settled:
            settled[stage] = list(best)
            self.write()
        return list(settled.get(stage, ()))

    def put(self, point: dict[str, Any]) -> None:
        """Put a point among the others, in the place of an earlier one with its id."""
        self.state["points"] = [old for old in self.state["points"] if old["id"] != point["id"]] + [point]

    def write(self) -> None:
        """search.json and the front, as they stand."""
        self.state["seconds"] = self.elapsed
        self.run.write("search.json", self.state)
        points = self.state["points"]
        for point, holds in zip(points, planning.on_front(points), strict=True):
            point["on_front"] = holds
        limits: dict[str, float | None] = {name: self.budget.limits.get(name) for name in ("max_mb", "max_ms", "max_ram", "keep")}
        limits["time"] = parse_seconds(self.budget.time) if self.budget.time else None
        facts = {"reference": self.reference, "limits": limits, "points": points, "chosen": None, "metric": self.metric}
        self.run.write("front.json", facts)
        if points:
            write_front_csv(self.run.folder)


def forget(run: Run) -> None:
    """Remove what an earlier search has left in a run."""
    shutil.rmtree(run.folder / "candidates", ignore_errors=True)
    for name in FILES:
        (run.folder / name).unlink(missing_ok=True)
