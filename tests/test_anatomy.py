from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from lightune import anatomy, profiling
from lightune.anatomy import PARTS, REST, TOKENIZER, count_flops, count_parameters, describe_model, open_model, place_modules
from lightune.architectures import share_of
from lightune.errors import InputError
from lightune.exports.onnx import capture, save, tidy
from lightune.profiling import Setting
from lightune.sources import Source

PROJECTION = {"electra": 16 * 32, "albert": 16 * 32}  # from narrow embeddings to the blocks
families = pytest.mark.parametrize("family", tiny_models.FAMILIES)


def setting_of(model: anatomy.Model, tokens: int, batch: int = 1) -> Setting:
    return Setting(anatomy.choose_text(model, [], tokens), batch)


@families
def test_every_parameter_stands_in_one_part(family: str, tiny_source: Callable[[str], Source]) -> None:
    model = open_model(str(tiny_source(family).folder))
    count = count_parameters(model)
    assert sum(count.values()) == share_of(model.network.backbone)
    assert count["token table"] == model.network.backbone.get_input_embeddings().weight.numel()
    assert count[REST] == count[TOKENIZER] == 0
    matrices = 3 if family in ("llama", "modernbert") else 2  # those have a gate
    blocks = 1 if family == "albert" else 2
    biases = 0 if family in ("llama", "modernbert") else 48 + 32
    assert count["feed-forward"] == blocks * (matrices * 32 * 48 + biases)
    assert 0 < count["norms"] < 1000
    assert count["attention"] >= blocks * 3 * 32 * 32


@families
def test_work_is_that_of_the_matrix_products(family: str, tiny_source: Callable[[str], Source]) -> None:
    model = open_model(str(tiny_source(family).folder))
    model.network.eval()
    tokens, batch = 12, 3
    work = count_flops(model.network, setting_of(model, tokens, batch).encode(model.encoder))
    matrices = 3 if family in ("llama", "modernbert") else 2
    assert work["feed-forward"] == 2 * batch * tokens * 2 * matrices * 32 * 48
    assert work["token table"] == work["norms"] == work[TOKENIZER] == 0
    assert work["other embeddings"] == 2 * batch * tokens * PROJECTION.get(family, 0)
    assert work[REST] >= 2 * batch * 32 * 2  # the head, and llama's rotary angles
    weights = 32 * 32 * (3 if family == "llama" else 4)  # grouped queries: half as many keys and values
    plain = 2 * batch * 2 * (tokens * weights + 2 * tokens * tokens * 32)
    assert work["attention"] == plain if family != "deberta-v2" else work["attention"] > plain


@families
def test_every_operator_is_timed_in_the_part_that_it_belongs_to(family: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = open_model(str(tiny_source(family).folder))
    model.network.eval()
    graph = capture(model.network, model.encoder.inputs)
    scopes = profiling.read_scopes(graph.graph)
    save(tidy(graph), tmp_path / "model.onnx")
    times = profiling.profile(tmp_path / "model.onnx", setting_of(model, 12).encode(model.encoder), scopes, tmp_path)
    parts = place_modules(model.network)
    by_part = dict.fromkeys(PARTS, 0.0)
    for scope, milliseconds in times.items():
        by_part[next((parts[name] for name in reversed(scope) if name in parts), REST)] += milliseconds
    assert all(by_part[part] > 0 for part in ("token table", "attention", "feed-forward", "norms"))
    assert by_part[REST] < 0.6 * sum(by_part.values())  # masks and positions weigh much where blocks are tiny
    assert times.get((), 0.0) < 0.35 * sum(by_part.values())  # operators that tell no module


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_model_is_described_by_part_and_by_knob(family: str, tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(40)
    model = tiny_models.start(tiny_source(family), rows)
    said: list[str] = []
    facts = describe_model(model, "mine", examples=rows, rows=16, length=10, batch=2, tell=said.append)
    assert (facts["name"], facts["type"], facts["blocks"], facts["batch"], facts["threads"]) == ("mine", family, 2, 2, 1)
    assert 8 <= facts["length"] <= 10
    parts = {part["part"]: part for part in facts["parts"]}
    assert tuple(parts) == PARTS
    for key in ("parameters", "bytes", "flops", "milliseconds"):
        assert facts[key] == pytest.approx(sum(part[key] for part in facts["parts"]), rel=1e-3)
    assert parts[REST]["parameters"] == model.network.head.weight.numel() + model.network.head.bias.numel()
    assert parts[TOKENIZER]["milliseconds"] > 0
    assert facts["importance"]["rows"] == 16
    assert "Measuring importance on 16 rows" in said
    assert all("busy" in note for note in facts["notes"])


def test_quick_counts_and_times_nothing(tiny_source: Callable[[str], Source]) -> None:
    facts = describe_model(open_model(str(tiny_source("bert").folder)), "base", quick=True)
    assert facts["milliseconds"] is None
    assert facts["savings"] == []
    assert facts["importance"] is None
    assert facts["flops"] > 0
    assert {part["milliseconds"] for part in facts["parts"]} == {None}


def test_a_saved_model_is_described_as_its_base_is_with_its_head(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    source, rows = tiny_source("bert"), tiny_models.make_rows(10)
    saved = tiny_models.start(source, rows, method="lora:rank=2").save(tmp_path / "model")
    mine, base = (describe_model(open_model(str(path)), "it", length=12, quick=True)["parts"] for path in (saved, source.folder))
    for one, other in zip(mine, base, strict=True):
        if one["part"] == REST:
            assert one["parameters"] == other["parameters"] + 3 * 32 + 3
        else:
            assert {**one, "share": 0} == {**other, "share": 0}


def test_what_was_not_fine_tuned_can_spare_nothing_yet(tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match="was not fine-tuned"):
        describe_model(open_model(str(tiny_source("bert").folder)), "base", examples=tiny_models.make_rows(4))


@pytest.mark.parametrize("length", [1, 41])
def test_a_length_that_the_model_does_not_take_is_refused(length: int, tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match=f"length is {length}"):
        describe_model(open_model(str(tiny_source("bert").folder)), "base", length=length, quick=True)


@pytest.mark.parametrize("task", ["classify", "pair"])
def test_the_text_that_is_timed_is_as_long_as_the_median_example(task: str, tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(31, task)
    model = tiny_models.start(tiny_source("bert"), rows, task)
    example = anatomy.choose_text(model, rows, None)
    lengths = model.encoder.encode([row.text for row in rows], [row.pair for row in rows]).lengths
    found = Setting(example).encode(model.encoder)["input_ids"]
    assert np.median(lengths) - 2 <= found.shape[1] <= np.median(lengths)
    assert (example[1] is None) == (task == "classify")
