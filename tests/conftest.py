"""What every test may ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lightune.sources import Source


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """tiny_source(family): a random model of that family (see `tiny_models.FAMILIES`), saved as transformers saves one."""
    import tiny_models
    import torch

    from lightune.sources import resolve_model

    torch.set_num_threads(1)  # more cost time on models so small
    made: dict[str, Source] = {}

    def source(family: str) -> Source:
        if family not in made:
            made[family] = resolve_model(tiny_models.save_base(family, tmp_path_factory.mktemp("bases") / family))
        return made[family]

    return source
