"""report.html: one page without scripts that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightune import __version__
from lightune.errors import InputError, MissingExtra
from lightune.reports.comparison import describe_runs
from lightune.reports.files import write_text
from lightune.reports.formats import moment_text
from lightune.reports.markup import fenced, plain, quoted
from lightune.reports.records import Record, read_record
from lightune.reports.sections import describe_run

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS = (
    ("done", "What was done", ("facts",)),
    ("budget", "Budget", ("budget", "front")),
    ("scores", "Scores", ("scores",)),
    ("files", "Exported files", ("artifacts",)),
    ("use", "How to use them", ("usage",)),
    ("curves", "Learning curves", ("curves",)),
    ("samples", "As it learned", ("samples",)),
    ("labels", "Labels", ("labels", "confusion")),
    ("trust", "How far to trust it", ("calibration", "agreement")),
    ("worst", "Worst errors", ("worst",)),
    ("answers", "Worst answers", ("answers",)),
    ("data", "Data", ("data",)),
    ("doctor", "What the doctor found", ("doctored",)),
    ("repeat", "How to repeat it", ("recipe", "environment")),
)


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page about one or several RUN folders and return its path.

    One run gives RUN/report.html, several give comparison.html beside the first; `out` names another file.
    InputError where a folder is no run or the page cannot be written, IntegrityError where a run's file is broken.
    """
    if not runs:
        raise InputError("No run was named, expected at least one RUN folder. Name a folder that `lightune fit` wrote.")
    records = [read_record(Path(run)) for run in runs]
    beside = records[0].folder / "report.html" if len(records) == 1 else records[0].folder.parent / "comparison.html"
    return write_text(render(records), Path(out) if out else beside)


def render(records: Sequence[Record]) -> str:
    """The page about these runs as HTML."""
    views = [_view(record, f"r{index}-" if len(records) > 1 else "") for index, record in enumerate(records, start=1)]
    created = [moment_text(record.run["created"]) for record in records if record.run.get("created")]
    shared = {"version": __version__, "created": created[-1] if created else "", "runs": views}
    if len(records) == 1:
        return templates().get_template("run.html").render(run=views[0], title=views[0]["name"], **shared)
    return templates().get_template("comparison.html").render(compared=describe_runs(records), title="Runs compared", **shared)


@cache
def templates() -> Environment:
    """The templates of this package; what they place in HTML is escaped. `yaml`, `plain` and `fenced` are filters for the card."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    except ImportError as error:
        raise MissingExtra("writing a report", "jinja2", "train") from error
    loader = PackageLoader("lightune.reports", "templates")
    found = Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"yaml": quoted, "plain": plain, "fenced": fenced}
    return found


def _view(record: Record, prefix: str) -> dict[str, Any]:
    view = describe_run(record)
    present = [(f"{prefix}{key}", title) for key, title, needs in SECTIONS if any(view[need] for need in needs)]
    return {**view, "prefix": prefix, "contents": present}
