"""What every entry of METHODS must do, on every family of models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from lightune import models
from lightune.architectures import blocks, embeddings, linears, share_of
from lightune.errors import InputError
from lightune.methods import METHODS, find_method, make_method, method_name
from lightune.models import Merged, Model
from lightune.networks import tensors
from lightune.sources import Source

ROWS = tiny_models.make_rows(12)
SPECS = (*METHODS, "freeze:blocks=0", "freeze:blocks=2", "lora:rank=2,alpha=3,rslora=true,dropout=0.2")
REFUSED = {("bitfit", "llama"), ("bitfit", "modernbert"), *((spec, "albert") for spec in ("freeze", "freeze:blocks=2"))}
EVERY = [(spec, family) for family in tiny_models.FAMILIES for spec in SPECS if (spec, family) not in REFUSED]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def expected_names(model: Model, spec: str) -> set[str]:
    """The parameters that a method should train, told from names and modules alone."""
    backbone, found = model.network.backbone, {"head.weight", "head.bias"}
    names = {id(item): f"backbone.{name}" for name, item in backbone.named_parameters()}
    method = spec.partition(":")[0]
    if method == "full":
        found |= set(names.values())
    elif method == "bitfit":
        found |= {name for name in names.values() if name.endswith(".bias")}
    elif method == "lora":
        found |= {name for name in names.values() if re.search(r"\.(down|up)$", name)}
    elif method == "freeze":
        frozen = int(spec.partition("blocks=")[2] or len(blocks(backbone)) // 2)
        still = [*embeddings(backbone), *blocks(backbone)[:frozen]]
        found |= set(names.values()) - {names[id(item)] for module in still for item in module.parameters()}
    return found


def take_step(model: Model) -> None:
    """One step of plain gradient descent on everything that has a gradient."""
    encoded = model.encoder.encode([row.text for row in ROWS])
    model.network.train()
    logits = model.network(**tensors(model.encoder.pad(encoded)))
    model.task.losses(logits, torch.from_numpy(model.task.targets(ROWS)), 0.0).mean().backward()
    with torch.no_grad():
        for item in model.network.parameters():
            if item.grad is not None:
                item -= 0.1 * item.grad
                item.grad = None
    model.network.eval()


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


@pytest.mark.parametrize(("spec", "family"), EVERY)
def test_a_method_trains_what_it_says_and_nothing_else(spec: str, family: str, tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source(family), ROWS, method=spec)
    assert set(model.trainable()) == expected_names(model, spec)
    assert share_of(model.network, trainable_only=True) == sum(item.numel() for item in model.trainable().values())
    before = state(model)
    for _ in range(2):  # LoRA's first matrix moves after the second has left zero
        take_step(model)
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert moved <= set(model.trainable())
    assert {"head.weight", "head.bias"} <= moved
    assert spec == "head" or any(name.startswith("backbone.") for name in moved) or spec == "freeze:blocks=2"


@pytest.mark.parametrize(("spec", "family"), EVERY)
def test_a_model_is_saved_and_loaded_exactly_and_merged_within_rounding(
    spec: str, family: str, tiny_source: Callable[[str], Source], tmp_path: Path
) -> None:
    model = tiny_models.start(tiny_source(family), ROWS, method=spec)
    take_step(model)
    take_step(model)
    before = model.logits(ROWS)
    again = models.load(model.save(tmp_path / "model"))
    assert again.changes == model.changes == (make_method(spec),)
    assert set(again.trainable()) == set(model.trainable())
    np.testing.assert_array_equal(again.logits(ROWS), before)
    merged = again.merge()
    np.testing.assert_allclose(merged.logits(ROWS), before, atol=1e-5)
    assert not any(name.endswith((".down", ".up")) for name in merged.network.state_dict())
    reloaded = models.load(merged.save(tmp_path / "merged"))
    np.testing.assert_array_equal(reloaded.logits(ROWS), merged.logits(ROWS))
    assert isinstance(reloaded.changes[0], Merged)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_lora_starts_where_the_base_is_and_has_the_right_size(family: str, tiny_source: Callable[[str], Source]) -> None:
    plain = tiny_models.start(tiny_source(family), ROWS, method="head")
    model = tiny_models.start(tiny_source(family), ROWS, method="lora:rank=3")
    np.testing.assert_array_equal(model.logits(ROWS), plain.logits(ROWS))
    layers = [layer for block in blocks(plain.network.backbone) for _, layer in linears(block)]
    sizes = sum(3 * sum(layer.weight.shape) for layer in layers)
    head = sum(item.numel() for item in plain.network.head.parameters())
    assert share_of(model.network, trainable_only=True) == sizes + head
    assert share_of(model.network) == share_of(plain.network) + sizes


@pytest.mark.parametrize("method", METHODS)
def test_the_table_is_complete(method: str) -> None:
    made = make_method(method)
    assert method_name(made) == method
    assert 0 < find_method(method).rate < 1
    assert (find_method(method).__doc__ or "").strip()
    assert callable(made.apply)


def test_a_base_without_biases_and_a_shared_block_are_refused(tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match=r"LlamaModel has no bias terms, so bitfit has nothing to train. Use lora."):
        tiny_models.start(tiny_source("llama"), ROWS, method="bitfit")
    with pytest.raises(
        InputError, match=r"freeze:blocks is 1, but the base has 1 block: its layers share one block; use head, bitfit or lora"
    ):
        tiny_models.start(tiny_source("albert"), ROWS, method="freeze:blocks=1")
    with pytest.raises(InputError, match=r"freeze:blocks is 3, but the base has 2 blocks: give at most 2"):
        tiny_models.start(tiny_source("bert"), ROWS, method="freeze:blocks=3")


def test_half_of_a_shared_block_is_refused_too(tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match="its layers share one block"):
        tiny_models.start(tiny_source("albert"), ROWS, method="freeze")


def test_lora_changes_the_layers_that_are_named(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS, method="lora:targets=query+self.value")
    inside = {name.split(".base.")[0].rsplit(".", 1)[-1] for name in model.network.state_dict() if ".base." in name}
    assert inside == {"query", "value"}
    with pytest.raises(
        InputError, match=r"lora:targets qery match no layer of BertModel. Known: dense, key, query, value. Did you mean 'query'\?"
    ):
        tiny_models.start(tiny_source("bert"), ROWS, method="lora:targets=qery")
    with pytest.raises(InputError, match="has LoRA layers already"):
        model.apply(make_method("lora"))


def test_lora_scales_its_change_as_its_papers_say() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])

    assert make_method("lora:rank=4,alpha=8").apply(Base()).layers[0][0].scale == 2.0
    assert make_method("lora:rank=4,alpha=8,rslora=true").apply(Base()).layers[0][0].scale == 4.0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # how peft asks transformers
def test_lora_equals_peft(tiny_source: Callable[[str], Source]) -> None:
    peft = pytest.importorskip("peft")
    ours = tiny_models.start(tiny_source("bert"), ROWS, method="lora:rank=2,alpha=6,targets=query+value")
    theirs = tiny_models.start(tiny_source("bert"), ROWS, method="head")
    wrapped = peft.get_peft_model(theirs.network.backbone, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["query", "value"]))
    draw = torch.Generator().manual_seed(0)
    thin = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, item in ours.network.backbone.named_parameters():
            if name.endswith((".down", ".up")):
                item.copy_(torch.randn(item.shape, generator=draw))
                end = "lora_A.default.weight" if name.endswith(".down") else "lora_B.default.weight"
                thin[f"base_model.model.{name.rpartition('.')[0]}.{end}"].copy_(item)
    np.testing.assert_allclose(ours.logits(ROWS), theirs.logits(ROWS), atol=1e-5)
