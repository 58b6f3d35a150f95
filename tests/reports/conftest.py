from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with six labels."""
    return make_run(tmp_path / "trec")
