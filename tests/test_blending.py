"""Models of one base become one by what each has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune import models
from lightune.blending import WAYS, blend, drop_and_rescale, trim_and_elect
from lightune.errors import InputError
from lightune.exporting import fold
from lightune.models import Merged, Model
from lightune.sources import Source

ROWS = tiny_models.make_rows(20)


def moved(source: Source, spec: str, seed: int) -> Model:
    """A model whose method holds random values; heads are the same."""
    model = tiny_models.start(source, ROWS, method=spec)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, item in model.trainable().items():
            if name.startswith("backbone."):
                item.add_(torch.randn(item.shape, generator=draw) * 0.05)
    model.network.eval()
    return model


def test_changes_are_added_scaled_and_taken_away(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    source = tiny_source("bert")
    one, other = moved(source, "lora:rank=2", 1), moved(source, "full", 2)
    np.testing.assert_allclose(blend([one, other], weights=[1, 0]).logits(ROWS), one.logits(ROWS), atol=1e-4)
    plain = tiny_models.start(source, ROWS, method="head")
    plain.network.eval()
    np.testing.assert_allclose(blend([one, one], weights=[1, -1]).logits(ROWS), plain.logits(ROWS), atol=1e-4)
    both = blend([one, other], weights=[0.5, 0.25])
    name = "encoder.layer.1.output.dense.weight"
    weight = {key: model.network.backbone.get_parameter(name) for key, model in {"one": fold(one), "other": other, "plain": plain}.items()}
    expected = weight["plain"] + 0.5 * (weight["one"] - weight["plain"]) + 0.25 * (weight["other"] - weight["plain"])
    torch.testing.assert_close(both.network.backbone.get_parameter(name), expected)
    assert both.changes == (Merged(("linear(0.5)", "linear(0.25)")),)
    np.testing.assert_array_equal(models.load(both.save(tmp_path / "both")).logits(ROWS), both.logits(ROWS))


def test_ties_keeps_the_largest_of_the_heavier_sign() -> None:
    changes = torch.tensor([[4.0, -1.0, 0.1, 3.0], [2.0, 3.0, 0.2, -1.0]])
    found = trim_and_elect(changes, torch.ones(2), 0.5, torch.Generator())
    torch.testing.assert_close(found, torch.tensor([6.0, 6.0, 0.0, 6.0]))  # the mean of those that agree, times the number of changes


def test_dare_keeps_a_share_and_the_sum_on_average() -> None:
    found = drop_and_rescale(torch.ones(1, 20000), torch.ones(1), 0.25, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert abs(float(found.mean()) - 1) < 0.05


@pytest.mark.parametrize("how", WAYS)
def test_every_way_keeps_one_change_whole_at_full_density(how: str, tiny_source: Callable[[str], Source]) -> None:
    model = moved(tiny_source("llama"), "lora:rank=2", 3)
    found = blend([model, model], how=how, density=1.0)
    np.testing.assert_allclose(found.logits(ROWS), model.logits(ROWS), atol=1e-4)


def test_what_does_not_go_together_is_refused(tiny_source: Callable[[str], Source]) -> None:
    one = moved(tiny_source("bert"), "lora:rank=2", 1)
    with pytest.raises(InputError, match="1 model was given to blend"):
        blend([one])
    with pytest.raises(InputError, match="different bases"):
        blend([one, moved(tiny_source("llama"), "lora:rank=2", 1)])
    with pytest.raises(InputError, match=r"Unknown way to blend 'tie'. Known: .* Did you mean 'ties'"):
        blend([one, one], how="tie")
    with pytest.raises(InputError, match="1 weights were given for 2 models"):
        blend([one, one], weights=[1])
    with pytest.raises(InputError, match="different labels"):
        blend([one, tiny_models.start(tiny_source("bert"), [row for row in ROWS if row.target != "tired"], method="head")])
    with pytest.raises(InputError, match="no longer have the shape"):
        blend([moved(tiny_source("bert"), "houlsby", 1)] * 2)
