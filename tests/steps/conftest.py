"""What tests of several steps ask for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models

from lightune.models import Model
from lightune.sources import Source


@pytest.fixture
def start(tiny_source: Callable[[str], Source]) -> Callable[[str], Model]:
    """start(family): a tiny model that has learned nothing, in evaluation mode; its labels are those of twelve rows."""

    def make(family: str) -> Model:
        model = tiny_models.start(tiny_source(family), tiny_models.make_rows(12))
        model.network.eval()
        return model

    return make
