"""Zeros among the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_models
import torch

from lightune import architectures, models
from lightune.errors import InputError
from lightune.steps import make_step

if TYPE_CHECKING:
    from lightune.sources import Source

FAMILIES = ("bert", "albert", "gpt2", "llama")


def weights(model: models.Model) -> list[torch.Tensor]:
    return [layer.weight.detach() for block in architectures.blocks(model.network.backbone) for _, layer in architectures.linears(block)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_weights_go_and_the_others_stay(family: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    rows = tiny_models.make_rows(20)
    model = tiny_models.start(tiny_source(family), rows)
    before = [weight.clone() for weight in weights(model)]
    model.shrink(make_step("magnitude=0.25"))
    for old, new in zip(before, weights(model), strict=True):
        assert float((new != 0).float().mean()) == pytest.approx(0.25, abs=0.01)
        assert torch.equal(new[new != 0], old[new != 0])
        assert float(old[new == 0].abs().max()) <= float(new[new != 0].abs().min())
    again = models.load(model.save(tmp_path))
    np.testing.assert_allclose(again.logits(rows), model.logits(rows), atol=1e-6)


def test_two_of_four_stay_in_every_four(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20)).shrink(make_step("magnitude:pattern=2of4"))
    for weight in weights(model):
        assert ((weight != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_keeping_all_changes_nothing(tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(20)
    model = tiny_models.start(tiny_source("bert"), rows)
    before = model.logits(rows)
    np.testing.assert_array_equal(model.shrink(make_step("magnitude=1")).logits(rows), before)


def test_shapes_are_not_cut_after_zeros_were_chosen(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20)).shrink(make_step("magnitude=0.5"))
    with pytest.raises(InputError, match="cannot follow magnitude"):
        model.shrink(make_step("depth=1"))
