"""`inspect` tells models from data, and shows what was found as tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from test_cli import write_rows

from lightune.errors import InputError
from lightune.inspection import inspect, lost_at, tables
from lightune.sources import Source


def make_known() -> dict[str, Any]:
    block = {"block": 0, "influence": 0.25, "share": 1.0, "half_of_heads": 0.3, "half_of_ffn": 0.2}
    return {"rows": 9, "curves": {"depth": [(0, 0), (0.5, 0.2), (1, 1)]}, "blocks": [block]}


@pytest.fixture(scope="module")
def saved(tiny_source: Callable[[str], Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20)).save(tmp_path_factory.mktemp("saved") / "model")


def test_a_curve_is_read_between_its_points() -> None:
    curve = [(0.0, 0.0), (0.5, 0.2), (1.0, 1.0)]
    assert [lost_at(curve, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0.1, 0.2, 0.6, 1])


def test_a_model_with_data_tells_what_its_task_can_spare(saved: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 40)
    facts = inspect(str(saved), data=str(data), rows=8, quick=True, out=tmp_path / "page.html")
    assert facts["model"]["importance"]["rows"] == 8
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    parts, curves, blocks = tables(facts)
    assert [row[0] for row in curves[2]] == ["depth", "ffn", "heads", "hidden", "vocab"]
    assert len(blocks[2]) == 2
    assert parts[2][-1][0] == "all"


def test_columns_of_the_data_can_be_named(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f'"{row.text}",{row.target},{row.row}' for row in tiny_models.make_rows(20)]
    path.write_text("\n".join(["words,mood,number", *lines]), encoding="utf-8")
    facts = inspect(str(saved), data=str(path), quick=True, text="words", label="mood")
    assert facts["model"]["importance"]["rows"] == 20


def test_tables_have_as_many_cells_as_headers_whatever_was_measured(saved: Path) -> None:
    facts = inspect(str(saved), quick=True)["model"]
    saving = {"knob": "none", "spec": "onnx", "bytes": 100, "milliseconds": 2.0, "lost": None, "note": ""}
    tried = [
        saving,
        {**saving, "knob": "depth", "bytes": 50, "lost": 0.5},
        {**saving, "knob": "ffn", "bytes": None, "milliseconds": None, "note": "no"},
    ]
    full = {**facts, "milliseconds": 2.0, "parts": [{**part, "milliseconds": 1.0} for part in facts["parts"]], "savings": tried}
    shown = tables({"model": {**full, "importance": make_known(), "notes": ["said"]}})
    assert len(shown) == 5
    for _, headers, rows in [*shown, *tables({"model": facts})]:
        assert all(len(row) == len(headers) for row in rows)
    assert shown[1][2][1][:4] == ["depth 1/2", "0.00 MB", "2.00x", "2.000"]


@pytest.mark.parametrize("option", [{"length": 8}, {"batch": 2}, {"quick": True}, {"data": "rows.csv"}, {"out": "page.html"}])
def test_options_of_a_model_are_refused_for_data(option: dict[str, Any], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 10)
    with pytest.raises(InputError, match=f"--{next(iter(option))} is for models"):
        inspect(str(data), **option)
