"""A thinner token table, on every family of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from torch import nn

from lightune import models
from lightune.architectures import share_of, word_embedding
from lightune.dimensions import describe, is_native
from lightune.errors import InputError
from lightune.exports.onnx import trace, write
from lightune.importance import measure
from lightune.methods import make_method
from lightune.models import Model
from lightune.optimizers import Optimizer
from lightune.options import as_dict, build
from lightune.precision import Precision
from lightune.recipes import TrainOptions
from lightune.runtime import load as load_artifact
from lightune.sources import resolve_model
from lightune.steps import make_step
from lightune.steps.factor import PROJECTIONS, Factor, Factored, principal_axes, second_moment
from lightune.training import Training

ROWS = tiny_models.make_rows(12)
TEXTS = [*(row.text for row in ROWS), ("good film", "the room was bad"), ("bad", "")]
FAMILIES = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)
RANK = 6


def lower_rank(model: Model, rank: int) -> None:
    """Make a factorisation of this rank lose nothing: of ALBERT and ELECTRA the tables have to lie in one space but for their rows' means."""
    backbone: Any = model.network.backbone
    draw = torch.Generator().manual_seed(3)
    native = backbone.config.model_type in PROJECTIONS
    parts = [part for part in backbone.embeddings.modules() if isinstance(part, nn.Embedding)] if native else [word_embedding(backbone)]
    basis = torch.randn(rank - native, parts[0].embedding_dim, generator=draw)
    with torch.no_grad():
        for part in parts:
            rows = torch.randn(part.num_embeddings, len(basis), generator=draw) @ basis
            part.weight.copy_(rows + native * torch.randn(part.num_embeddings, 1, generator=draw))
        if native:
            backbone.embeddings.LayerNorm.weight.copy_(torch.rand(parts[0].embedding_dim, generator=draw) + 0.5)
            backbone.embeddings.LayerNorm.bias.copy_(torch.randn(parts[0].embedding_dim, generator=draw))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_of_low_rank_is_split_without_loss(family: str, start: Callable[[str], Model], tmp_path: Path) -> None:
    model = start(family)
    lower_rank(model, RANK)
    before, size = model.logits(TEXTS), share_of(model.network)
    assert model.shrink(Factor(keep=RANK), measure(model, ROWS)) is model
    np.testing.assert_allclose(model.logits(TEXTS), before, atol=2e-6)
    backbone = model.network.backbone
    assert word_embedding(backbone).weight.shape == (64, RANK)
    assert share_of(model.network) < size
    assert is_native(backbone) == (family in PROJECTIONS)
    assert isinstance(backbone.get_input_embeddings(), Factored) == (family not in PROJECTIONS)  # type: ignore[operator]
    assert all(item.requires_grad for item in model.network.parameters())
    loaded = models.load(model.save(tmp_path))
    assert loaded.changes == model.changes
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_higher_rank_is_nearer(family: str, start: Callable[[str], Model]) -> None:
    whole = start(family).logits(TEXTS)
    width = word_embedding(start(family).network.backbone).embedding_dim
    errors = []
    for rank in (3, width // 2, width - 1):
        model = start(family).shrink(Factor(keep=rank))
        errors.append(np.linalg.norm(model.logits(TEXTS) - whole))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.3 * np.linalg.norm(whole)


def test_a_projection_that_is_not_there_is_made(tmp_path: Path) -> None:
    folder = tiny_models.save_base("electra", tmp_path / "base", embedding_size=32)
    model = tiny_models.start(resolve_model(folder), ROWS)
    model.network.eval()
    assert not hasattr(model.network.backbone, "embeddings_project")
    lower_rank(model, RANK)
    before = model.logits(TEXTS)
    model.shrink(Factor(keep=RANK))
    np.testing.assert_allclose(model.logits(TEXTS), before, atol=2e-6)
    assert is_native(model.network.backbone)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_tokens_that_the_data_use_lose_less(family: str, start: Callable[[str], Model]) -> None:
    importance = measure(start(family), ROWS)
    whole = start(family).logits(TEXTS)
    weighted = start(family).shrink(make_step("factor=1/4"), importance).logits(TEXTS)
    level = start(family).shrink(make_step("factor=1/4")).logits(TEXTS)
    assert np.linalg.norm(weighted - whole) < np.linalg.norm(level - whole)


def test_the_axes_are_those_of_the_weighted_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(50, 8, generator=draw), torch.rand(50, generator=draw).double() + 0.1
    axes = principal_axes(second_moment(rows, weights), 3)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64))
    left = (rows.double() - rows.double() @ axes @ axes.T).square().sum(1)
    singular = torch.linalg.svdvals(rows.double() * weights.sqrt()[:, None])
    torch.testing.assert_close((left * weights).sum(), singular[3:].square().sum())


@pytest.mark.parametrize(
    "specs",
    [
        ("factor=12", "factor=6"),
        ("factor=6", "depth=1", "hidden=1/2"),
        ("hidden=1/2", "factor=6"),
        ("ffn=1/2", "factor=6", "heads=1/2", "vocab=25"),
        ("vocab:keep=25,positions=16", "factor=6"),
        ("factor=6", "static=16"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("family", ["bert", "electra", "albert", "gpt2"])
def test_it_goes_with_other_steps(family: str, specs: tuple[str, ...], start: Callable[[str], Model], tmp_path: Path) -> None:
    model = start(family)
    for spec in specs:
        model.shrink(make_step(spec), measure(model, ROWS))
    if "static" not in specs[-1]:
        assert word_embedding(model.network.backbone).embedding_dim == 6
        assert describe(model.network.backbone).hidden.size == model.network.head.in_features
    loaded = models.load(model.save(tmp_path))
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_it_trains_with_a_step_for_the_rows_that_are_read(family: str, start: Callable[[str], Model]) -> None:
    model = start(family).shrink(make_step("factor=6"), measure(start(family), ROWS))
    optimizer = Optimizer("adamw", model.network, 1e-3, 0.01)
    assert optimizer.tables == [word_embedding(model.network.backbone).weight]
    before = {name: item.detach().clone() for name, item in model.network.named_parameters()}
    for _ in Training(model, ROWS, ROWS, TrainOptions(epochs=1, batch_size=4)).steps():
        pass
    moved = {name for name, item in model.network.named_parameters() if not torch.equal(item, before[name])}
    assert {name for name in before if "embed_proj" in name or "mapping_in" in name} <= moved
    unread = model.encoder.tokenizer.get_vocab_size()
    name = next(name for name, item in model.network.named_parameters() if item is word_embedding(model.network.backbone).weight)
    assert name in moved
    torch.testing.assert_close(word_embedding(model.network.backbone).weight[unread:], before[name][unread:], rtol=0, atol=0)


def test_methods_follow_it(start: Callable[[str], Model], tmp_path: Path) -> None:
    model = start("bert").shrink(make_step("factor=6"), measure(start("bert"), ROWS)).apply(make_method("freeze:blocks=1"))
    assert not any("embed" in name for name in model.trainable())
    loaded = models.load(model.save(tmp_path))
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_it_is_exported_as_a_thin_table_and_a_product(family: str, start: Callable[[str], Model], tmp_path: Path) -> None:
    model = start(family)
    table = word_embedding(model.network.backbone)
    table.weight.data = torch.randn(2000, table.embedding_dim, generator=torch.Generator().manual_seed(0)) * 0.1
    table.num_embeddings = model.network.backbone.config.vocab_size = 2000  # large enough to be quantized
    model.shrink(make_step("factor=8"))
    model.network.eval()
    graph, logits = trace(model.network, model.encoder.inputs), model.logits(TEXTS)
    plain = write(graph, model.answers, model.encoder, tmp_path / "fp32", base="tiny", name="tiny")
    np.testing.assert_allclose(load_artifact(plain).logits(TEXTS), logits, atol=1e-5)
    small = write(
        graph, model.answers, model.encoder, tmp_path / "int8", precision=Precision(weights=8, tables=8), base="tiny", name="tiny"
    )
    np.testing.assert_allclose(load_artifact(small).logits(TEXTS), logits, atol=0.15 * np.abs(logits).max())
    nodes = onnx.load(small / "model.onnx").graph
    tables = {item.name: list(item.dims) for item in nodes.initializer}
    gathered = [tables[node.input[0]] for node in nodes.node if node.op_type == "GatherBlockQuantized"]
    assert [2000, 8] in gathered


def test_a_plan_is_explicit_and_can_be_written_down(start: Callable[[str], Model]) -> None:
    model = start("bert")
    importance = measure(model, ROWS)
    planned = make_step("factor=1/4").plan(model, importance)
    assert planned.keep == 8
    assert planned.counts == tuple(importance.tokens.tolist())
    assert planned.plan(model, None) == planned
    assert build(Factor, json.loads(json.dumps(as_dict(planned))), "factor") == planned
    assert planned.narrow(importance) is importance


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("factor=32", "factor:keep is 32, expected 2 to 31 columns: the token table has 32"),
        ("factor=1", "factor:keep is 1, expected 2 to 31 columns"),
        ("factor=33", "factor:keep is 33, expected a count from 1 to 32"),
        ("factor=0", "keep is 0, expected more than 0"),
        ("factor:rank=8", "unknown option 'rank'"),
    ],
)
def test_nonsense_is_refused(spec: str, message: str, start: Callable[[str], Model]) -> None:
    with pytest.raises(InputError, match=message):
        start("bert").shrink(make_step(spec))


def test_what_is_no_token_table_is_refused(start: Callable[[str], Model]) -> None:
    model = start("bert")
    model.network.backbone.set_input_embeddings(nn.Linear(3, 3))  # type: ignore[operator]
    with pytest.raises(InputError, match="The token table of BertModel is Linear, expected an embedding"):
        model.shrink(make_step("factor=8"))
