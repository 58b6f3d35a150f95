"""Runs, models, artefacts and GGUF files by name, opened to be served. torch is loaded only for what needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.errors import InputError
from lightune.predictors import open_generator, open_predictor
from lightune.serving.settings import Settings

GENERATE = "generate"


@dataclass(frozen=True)
class Served:
    """A model by its name.

    kind: generate, classify, pair, multilabel or regress. engine: a `runtime.generation.Generator` where it generates, else a predictor.
    board: the `switching.Switchboard` that it shares with other models on its base, None where it stands alone.
    """

    name: str
    kind: str
    engine: Any
    board: Any = None

    @property
    def owner(self) -> Any:
        """What computes: models with the same owner share a line."""
        return self.engine if self.board is None else self.board

    def predict(self, rows: Sequence[Any], served: Sequence[Served]) -> list[dict[str, Any]]:
        """The answers to rows, each asked of the model beside it; all of them have this model's owner."""
        if self.board is not None:
            return self.board.predict(rows, [item.name for item in served])
        return self.engine.predict(rows)


def open_served(paths: Sequence[str], settings: Settings) -> Mapping[str, Served]:
    """Open what is to be served: PATH, named as its folder or file, or NAME=PATH.

    Models of one base that are not exported share the weights that they have in common.

    Raises:
        InputError: no path, a path that holds none of these, or a name twice. IntegrityError: a file is damaged.
    """
    named = [_named(path) for path in paths]
    names = [name for name, _ in named]
    if not names:
        raise InputError("There is nothing to serve. Give a run, a model, an artefact or a GGUF file.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Several models are named {', '.join(twice)}. Name them yourself: NAME=PATH.")
    opened = [_open(name, path, settings) for name, path in named]
    return {served.name: served for served in _share(opened)}


def _named(path: str) -> tuple[str, Path]:
    """The name and the place in NAME=PATH; a place alone gives the name: a run's artefact or model is named as the run."""
    name, equals, place = path.partition("=")
    if equals and name and "/" not in name and not Path(path).exists():
        return name, Path(place)
    found = Path(path)
    run = next((folder for folder in (found, *found.absolute().parents[:2]) if (folder / "recipe.toml").is_file()), None)
    return (run or found).absolute().name.removesuffix(".gguf"), found


def _open(name: str, path: Path, settings: Settings) -> tuple[Served, Any]:
    """What is served, and the model in torch that it stands on, None where it needs none."""
    found = open_generator(path, name=name, threads=settings.threads, context=settings.context, slots=settings.slots)
    if found:
        return Served(name, GENERATE, found.generator), found.model
    opened = open_predictor(path, threads=settings.threads)
    return Served(name, opened.predictor.answers.kind, opened.predictor), opened.predictor if opened.kind == "model" else None


def _share(opened: Sequence[tuple[Served, Any]]) -> list[Served]:
    """The same models. Those in torch have their common weights in memory once; those of them that predict answer by one board."""
    loose = {served.name: model for served, model in opened if model is not None}
    if len(loose) < 2:
        return [served for served, _ in opened]
    from lightune.switching import Switchboard

    board = Switchboard(loose)
    return [
        served if model is None or served.kind == GENERATE else Served(served.name, served.kind, model, board) for served, model in opened
    ]
