"""Servers for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_servers import Live, Start, running
from parrots import Parrot
from tiny_artifacts import make_artifact

from lightune.runtime import load
from lightune.runtime.answers import Answers
from lightune.serving.opening import Served
from lightune.serving.settings import Settings


@pytest.fixture(scope="session")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """A classifier, a model of pairs, one of several labels and one of a value, by the names of their tasks."""
    folder = tmp_path_factory.mktemp("artefacts")
    answers = [
        Answers("classify", ("no", "perhaps", "yes")),
        Answers("pair", ("no", "yes")),
        Answers("multilabel", ("a", "b")),
        Answers("regress", ()),
    ]
    return {item.kind: Served(item.kind, item.kind, load(make_artifact(folder / item.kind, item), threads=1)) for item in answers}


@pytest.fixture
def start(predictors: dict[str, Served]) -> Iterator[Start]:
    """start(parrot, **settings): a server of it and of the predictors, until the test ends."""
    with ExitStack() as stack:

        def go(parrot: Parrot | None = None, **settings: object) -> Live:
            models = {"parrot": Served("parrot", "generate", parrot or Parrot()), **predictors}
            return stack.enter_context(running(models, Settings(port=0, **settings)))  # type: ignore[arg-type]

        yield go


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    """A file of two API keys."""
    path = tmp_path / "keys.txt"
    path.write_text("# ours\nsecret-one\n\nsecret-two\n", encoding="utf-8")
    return path
