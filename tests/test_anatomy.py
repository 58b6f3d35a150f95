from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from lightune.anatomy import describe_model
from lightune.architectures import share_of
from lightune.inspection import inspect_model, tables
from lightune.models import load_backbone
from lightune.sources import Source

PROJECTION = {"electra": 16 * 32, "albert": 16 * 32}  # from narrow embeddings to the blocks


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_parameter_stands_in_one_part_and_tables_cost_no_work(family: str, tiny_source: Callable[[str], Source]) -> None:
    source = tiny_source(family)
    facts = describe_model(str(source.folder))
    parts = {part["part"]: part for part in facts["parts"]}
    assert sum(part["parameters"] for part in parts.values()) == facts["parameters"] == share_of(load_backbone(source))
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    work = {name: part["multiply_adds_per_token"] for name, part in parts.items()}
    assert work["token table"] == work["norms and biases"] == work["rest"] == 0
    assert work["other embeddings"] == PROJECTION.get(family, 0)
    assert parts["rest"]["parameters"] == 0
    shared = 2 if family == "albert" else 1  # one block stands for two layers
    assert work["attention"] == shared * parts["attention"]["parameters"]
    assert work["feed-forward"] == shared * parts["feed-forward"]["parameters"]
    matrices = 3 if family in ("llama", "modernbert") else 2  # those have a gate
    assert work["feed-forward"] == 2 * matrices * 32 * 48


def test_a_saved_model_is_described_as_its_base_is(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = tiny_source("bert")
    saved = tiny_models.start(source, tiny_models.make_rows(10)).save(tmp_path / "model")
    assert describe_model(str(saved))["parts"] == describe_model(str(source.folder))["parts"]
    ((title, headers, rows),) = tables({"model": inspect_model(str(saved))})
    assert "bert, 2 blocks of 32, 4 heads, at most 40 tokens" in title
    assert len(rows) == 6
    assert len(headers) == len(rows[0])
