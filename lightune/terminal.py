"""How facts look in a terminal: progress and warnings on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

QUIET_SECONDS = 20.0  # between progress lines where stderr is no terminal
WIDE = 1000  # columns where stdout is no terminal: nothing is folded
LEVELS = {"error": "bold red", "warning": "yellow", "note": "dim"}


class Watcher:
    """Renders what `fit` tells: sentences, findings, a forecast, a progress bar, evaluations."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress: Progress | None = None
        self.total = 0
        self.examples = 0
        self.spoken = time.monotonic()

    def __call__(self, fact: Any) -> None:
        """Show one fact."""
        kind = type(fact).__name__
        if kind == "Step":
            self._step(fact)
        elif kind == "Evaluation":
            self._evaluation(fact)
        elif kind == "Forecast":
            self._forecast(fact)
        elif kind == "Finding":
            self._say(f"{fact.message} {fact.cure}".strip(), fact.level)
        elif kind == "Samples":
            self._samples(fact)
        else:
            self._say(fact.text, fact.level)

    def close(self) -> None:
        """End the progress bar."""
        if self.progress:
            self.progress.stop()
            self.progress = None

    def _say(self, text: str, level: str) -> None:
        mark = {"warning": "warning: ", "error": "error: "}.get(level, "")
        self.console.print(f"[{LEVELS.get(level, 'dim')}]{mark}{escape(text)}[/]", soft_wrap=True)

    def _forecast(self, fact: Any) -> None:
        self.close()
        self.total, self.examples = fact.steps, 0
        minutes = duration(fact.seconds)
        self._say(
            f"Training {fact.trainable_parameters:,} of {fact.total_parameters:,} parameters for {fact.epochs:g} epochs, "
            f"{fact.steps} steps in {fact.precision}: about {minutes} and {fact.bytes / 1e9:.1f} GB of memory.",
            "note",
        )

    def _step(self, fact: Any) -> None:
        self.examples += fact.examples
        rate = self.examples / max(fact.seconds, 1e-9)
        if self.console.is_terminal:
            self._bar(fact, rate)
        elif time.monotonic() - self.spoken > QUIET_SECONDS:
            self.spoken = time.monotonic()
            left = duration((self.total - fact.step) * fact.seconds / fact.step) if self.total else "?"
            share = f"{fact.step}/{self.total}" if self.total else str(fact.step)
            self._say(f"step {share} · loss {fact.loss:.4f} · rate {fact.rate:.2e} · {rate:.0f} examples/s · {left} left", "note")

    def _bar(self, fact: Any, rate: float) -> None:
        if self.progress is None:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.console, transient=True)
            self.progress.add_task("training", total=self.total or None, facts="")
            self.progress.start()
        facts = f"loss {fact.loss:.4f} · rate {fact.rate:.2e} · {rate:.0f} examples/s"
        self.progress.update(self.progress.task_ids[0], completed=fact.step, facts=facts)

    def _evaluation(self, fact: Any) -> None:
        loss = "" if fact.metric == "loss" else f", loss {fact.loss:.4f}"
        best = ", the best so far" if fact.best else ""
        self._say(f"epoch {fact.epoch:g}: dev {fact.metric} {fact.scores[fact.metric]:.4f}{loss}{best}", "note")

    def _samples(self, fact: Any) -> None:
        for row in fact.rows:
            self._say(f"  {_line(row['question'])} → {_line(row['answer'])}", "note")


def _line(text: str, width: int = 100) -> str:
    """A text on one line, shortened at its end."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Bytes as MB with one digit."""
    return "–" if count is None else f"{count / 1e6:.1f} MB"


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def print_line(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")


def write(text: str) -> None:
    """Text on stdout as it comes, without a line's end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def ask() -> str | None:
    """A line that the user types; None at the end of input."""
    try:
        return input("> ")
    except EOFError:
        return None


def print_tokens(title: str, tokens: Sequence[tuple[str, bool]]) -> None:
    """A row on stdout as the model reads it: what is learned is bold and green, and stands between ⟦ and ⟧ where there are no colours."""
    console = Console(highlight=False, soft_wrap=True)
    line = Text()
    for learned, several in groupby(tokens, key=lambda token: token[1]):
        text = "".join(token for token, _ in several)
        line.append(f"⟦{text}⟧" if learned and console.color_system is None else text, style="bold green" if learned else "dim")
    console.print(f"[bold]{escape(title)}[/]")
    console.print(line)
    console.print()


def print_error(text: str) -> None:
    """An error on stderr."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout; columns after the first are aligned on the right where they hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, header in enumerate(headers):
        numeric = place > 0 and all(isinstance(row[place], (int, float)) or str(row[place])[:1] in "0123456789–-" for row in rows)
        table.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(f"{cell:.4f}" if isinstance(cell, float) else str(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)
