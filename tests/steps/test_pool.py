"""Upper layers that read pairs of tokens, on every family of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from lightune import models
from lightune.architectures import PLAIN_POSITIONS, blocks
from lightune.costs import Shape
from lightune.errors import InputError
from lightune.exports.onnx import trace, write
from lightune.importance import measure
from lightune.models import Model
from lightune.options import as_dict, build
from lightune.recipes import TrainOptions
from lightune.runtime import load as load_artifact
from lightune.steps import make_step
from lightune.steps.pool import pool_pairs, read_by
from lightune.training import Training

ROWS = tiny_models.make_rows(12)
TEXTS = [*(row.text for row in ROWS), ("good film", "the room was bad"), ("bad", "")]
FAMILIES = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)
POOLED = [family for family in FAMILIES if family in PLAIN_POSITIONS]
OTHERS = [family for family in FAMILIES if family not in PLAIN_POSITIONS]


def test_pairs_are_means_and_padding_does_not_count() -> None:
    stream = torch.arange(10.0).reshape(2, 5, 1)
    found = pool_pairs(stream, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool())
    assert found.squeeze(-1)[0].tolist() == [0.5, 2.5, 4.0]
    assert found.squeeze(-1)[1, :2].tolist() == [5.5, 7.0]  # the third has no neighbour but padding
    assert torch.equal(pool_pairs(stream, None), pool_pairs(stream, torch.ones(2, 5).bool()))
    assert pool_pairs(stream[:, :1], None).tolist() == stream[:, :1].tolist()


@pytest.mark.parametrize("family", POOLED)
def test_upper_layers_read_pairs(family: str, start: Callable[[str], Model]) -> None:
    model, seen = start(family), []
    whole = model.logits(TEXTS)
    model.shrink(make_step("pool=1"))
    for block in blocks(model.network.backbone):
        block.register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].shape[1]))
    encoded = model.encoder.encode(["good film was good", "bad"])
    with torch.no_grad():
        hidden = model.network.read(**models.tensors(model.encoder.pad(encoded))).last_hidden_state
    longest = int(encoded.lengths.max())
    assert seen == [longest, (longest + 1) // 2]
    assert hidden.shape[:2] == (2, longest)
    assert (model.answers.outputs, Shape.of(model).pooled) == (whole.shape[1], 1)
    together, alone = model.logits(TEXTS), np.concatenate([model.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together - whole).max() > 1e-3


def test_two_equal_neighbours_answer_as_one_does_twice(start: Callable[[str], Model]) -> None:
    """Where no layer mixes tokens, a pair of equal ones is what each of them is, and nothing is lost."""
    model = start("bert")
    backbone: Any = model.network.backbone
    with torch.no_grad():
        for block in blocks(backbone):
            block.attention.output.dense.weight.zero_()  # so that a token's vector depends on itself alone
        backbone.embeddings.position_embeddings.weight.zero_()
    encoded = model.encoder.encode(["good good good"])
    encoded = dataclasses.replace(encoded, ids=[np.full_like(encoded.ids[0], encoded.ids[0][1])])
    batch = models.tensors(model.encoder.pad(encoded))
    with torch.no_grad():
        before = model.network(**batch)
        after = model.shrink(make_step("pool=1")).network(**batch)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("family", POOLED)
def test_a_pooled_model_is_saved_loaded_copied_and_exported(family: str, start: Callable[[str], Model], tmp_path: Path) -> None:
    model = start(family).shrink(make_step("pool=1/2"))
    planned = model.changes[-1]
    assert planned.keep == 1
    assert planned.plan(model, None) == planned
    assert build(type(planned), as_dict(planned), "step") == planned
    expected = model.logits(TEXTS)
    np.testing.assert_array_equal(models.load(model.save(tmp_path / "model")).logits(TEXTS), expected)
    np.testing.assert_array_equal(model.copy().logits(TEXTS), expected)
    graph = trace(model.network, model.encoder.inputs)
    write(graph, model.answers, model.encoder, tmp_path / "artifact", base="tiny", name="tiny")
    artifact = load_artifact(tmp_path / "artifact")
    found = np.concatenate([artifact.logits([text]) for text in TEXTS])  # of odd and of even length
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(artifact.logits(TEXTS), expected, atol=1e-4)


def test_a_reading_that_is_broken_off_leaves_nothing_behind(start: Callable[[str], Model]) -> None:
    def stop(block: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        raise KeyboardInterrupt

    model = start("bert").shrink(make_step("pool=1"))
    expected = model.logits(TEXTS)
    hook = blocks(model.network.backbone)[-1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model.network(**models.tensors(model.encoder.pad(model.encoder.encode(["good film"]))))
    hook.remove()
    for again in (model.copy(), model):
        np.testing.assert_array_equal(again.logits(TEXTS), expected)


@pytest.mark.parametrize("family", POOLED)
def test_a_pooled_model_learns_and_other_steps_follow(family: str, start: Callable[[str], Model]) -> None:
    model = start(family).shrink(make_step("pool=1"))
    training = Training(model, ROWS, (), TrainOptions(epochs=8, batch_size=4, rate=1e-2))
    losses = [fact.loss for fact in training.steps() if hasattr(fact, "loss") and hasattr(fact, "step")]
    assert losses[-1] < losses[0]
    importance = measure(model, ROWS)
    assert (importance.blocks > 0).all()
    for spec in ("ffn=1/2", "hidden=1/2", "magnitude=0.5"):
        model.shrink(make_step(spec), measure(model, ROWS))
    assert Shape.of(model).pooled == 1
    assert np.isfinite(model.logits(TEXTS)).all()


def test_gradients_are_those_without_checkpoints(start: Callable[[str], Model]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = start("bert").shrink(make_step("pool=1"))
        training = Training(
            model, ROWS, (), TrainOptions(epochs=1, batch_size=12, optimizer="sgd", gradient_checkpointing=checkpointing, seed=1)
        )
        for _ in training.steps():
            pass
        gradients.append(model.network.head.weight.detach().clone())
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("family", OTHERS)
def test_a_base_whose_layers_know_places_is_refused(family: str, start: Callable[[str], Model]) -> None:
    with pytest.raises(InputError, match="pool cannot shorten"):
        start(family).shrink(make_step("pool=1"))


@pytest.mark.parametrize("spec", ["pool=2", "pool=3", "pool=0.9"])
def test_a_layer_must_be_left_to_read_pairs(spec: str, start: Callable[[str], Model]) -> None:
    with pytest.raises(InputError, match="pool:keep"):
        start("bert").shrink(make_step(spec))


@pytest.mark.parametrize("spec", ["depth=1", "pool=1", "static=8"])
def test_what_counts_layers_comes_before(spec: str, start: Callable[[str], Model]) -> None:
    model = start("bert").shrink(make_step("pool=1"))
    with pytest.raises(InputError, match="cannot follow pool"):
        model.shrink(make_step(spec), measure(model, ROWS))


def test_masks_of_layers(start: Callable[[str], Model]) -> None:
    backbone, mask = start("bert").shrink(make_step("pool=1")).network.backbone, torch.ones(2, 5).bool()
    assert [read_by(backbone, number, mask).shape[1] for number in (0, 1)] == [5, 3]
