"""Runs, models, artefacts and GGUF files by name, opened to be served. torch is loaded only for what needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.errors import InputError
from lightune.runtime.manifest import read_json
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
    gguf = _find_gguf(path)
    if gguf:
        from lightune.runtime.gguf import load_gguf

        return Served(name, GENERATE, load_gguf(gguf, threads=settings.threads, context=settings.context, slots=settings.slots)), None
    from lightune.predictors import find_folder, open_predictor

    folder = find_folder(path)
    if (folder / "task.json").is_file() and read_json(folder / "task.json").get("kind") == GENERATE:
        from lightune.exporting import open_written

        return Served(name, GENERATE, open_written(folder)), None
    opened = open_predictor(folder, threads=settings.threads)
    model = opened.predictor if opened.kind == "model" else None
    if opened.predictor.answers.kind == GENERATE:
        from lightune.language import generator_of

        return Served(name, GENERATE, generator_of(opened.predictor, name=name)), model
    return Served(name, opened.predictor.answers.kind, opened.predictor), model


def _find_gguf(path: Path) -> Path | None:
    """The GGUF file or the folder of one that a path stands for, None where it stands for something else."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    artifacts = sorted(path.glob("artifacts/*/model.gguf"), key=lambda file: (file.parent.name != "small", file))
    found = [path / "model.gguf", *artifacts] if path.is_dir() else []
    return next((file.parent for file in found if file.is_file()), None)


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
