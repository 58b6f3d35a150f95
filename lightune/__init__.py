"""Lightune: from labelled data and a budget to an exported model proven to hold it. Public names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightune.adapters import read_adapter, write_adapter
    from lightune.benchmarking import measure as benchmark
    from lightune.blending import blend
    from lightune.comparing import compare
    from lightune.data import Example, Examples, read, split
    from lightune.errors import CheckFailed, InputError, IntegrityError, LightuneError, MissingExtra
    from lightune.evaluation import Scores, evaluate
    from lightune.exporting import export
    from lightune.fitting import fit, resume
    from lightune.models import Model, load
    from lightune.recipes import Recipe
    from lightune.reports import write_report as report
    from lightune.runs import Run, open_run
    from lightune.shrinking import shrink
    from lightune.switching import Switchboard
    from lightune.training import Training

_HOMES = {
    **dict.fromkeys(("read_adapter", "write_adapter"), "adapters"), "blend": "blending",
    "benchmark": "benchmarking:measure", "compare": "comparing", "report": "reports:write_report",
    **dict.fromkeys(("Example", "Examples", "read", "split"), "data"),
    **dict.fromkeys(("CheckFailed", "InputError", "IntegrityError", "LightuneError", "MissingExtra"), "errors"),
    **dict.fromkeys(("Scores", "evaluate"), "evaluation"), "export": "exporting",
    **dict.fromkeys(("fit", "resume"), "fitting"), **dict.fromkeys(("Model", "load"), "models"),
    "Recipe": "recipes", **dict.fromkeys(("Run", "open_run"), "runs"), "shrink": "shrinking", "Switchboard": "switching", "Training": "training",
}  # fmt: skip

__all__ = [
    "CheckFailed", "Example", "Examples", "InputError", "IntegrityError", "LightuneError", "MissingExtra", "Model", "Recipe", "Run", "Scores",
    "Switchboard",     "Training", "benchmark", "blend", "compare", "evaluate", "export", "fit", "load", "open_run", "read", "read_adapter", "report", "resume",
    "shrink", "split", "write_adapter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lightune' has no attribute {name!r}")
    module, _, own = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"lightune.{module}"), own or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
