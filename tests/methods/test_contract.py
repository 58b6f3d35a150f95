"""What every entry of METHODS must do, on every family of models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune import exporting, models
from lightune.architectures import blocks, embeddings, linears, share_of
from lightune.errors import InputError
from lightune.exports import find_export, verify
from lightune.fitting import fit
from lightune.methods import METHODS, find_method, make_method, method_name
from lightune.methods.reft import orthonormal
from lightune.models import Merged, Model
from lightune.networks import tensors
from lightune.preparation import prepare
from lightune.recipes import TrainOptions, resolve
from lightune.runtime import load as load_artifact
from lightune.sources import Source
from lightune.steps import make_step
from lightune.training import Training

ROWS = tiny_models.make_rows(12)
LENGTH = 16  # leaves room for the default prompts, and holds every row
SPECS = (
    *METHODS,
    "freeze:blocks=0",
    "freeze:blocks=2",
    "lora:rank=2,alpha=3,rslora=true,dropout=0.2",
    "lora:dora=true",
    "lora:init=pissa,base=int4",
    "houlsby:reduction=4,activation=tanh",
    "reft:rank=2,positions=first",
    "ptuning:tokens=3,encoder=lstm,width=4",
)
REFUSED = {("bitfit", "llama"), ("bitfit", "modernbert"), ("bitfit", "t5"), *((spec, "albert") for spec in ("freeze", "freeze:blocks=2"))}
BASES = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)
EVERY = [(spec, family) for family in BASES for spec in SPECS if (spec, family) not in REFUSED]
TRAINED = {  # what the names of a method's own parameters are like
    "bitfit": r".*\.bias",
    "lora": r".*\.(down|up|magnitude)",
    "ia3": r".*\.scale",
    "houlsby": r".*\.adapter\.(down|up)\.(weight|bias)",
    "pfeiffer": r".*\.adapter\.(down|up)\.(weight|bias)",
    "parallel": r".*\.adapter\.(down|up)\.(weight|bias)",
    "reft": r".*\.edit\.(subspace|weight|bias)",
    "norms": r".*(norm|ln_|Norm).*\.(weight|bias)",
    "prompt": r"backbone\.prompt\.embedding",
    "ptuning": r"backbone\.prompt\.\w+\.?\w*",
    "prefix": r".*\.entries",
    "peft": r".*\.vera_lambda_[bd]\.default",
}
STAY = ("houlsby", "pfeiffer", "parallel", "reft", "prompt", "prefix")  # cannot be folded into the weights
READ_FIRST = ("prompt", "ptuning", "prefix")  # do not start where the base is: it reads their words


def start(source: Source, spec: str) -> Model:
    return tiny_models.start(source, ROWS, method=spec, max_length=LENGTH)


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
    elif method in TRAINED:
        found |= {name for name in names.values() if re.fullmatch(TRAINED[method], name)}
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
    model = start(tiny_source(family), spec)
    assert set(model.trainable()) == expected_names(model, spec)
    assert share_of(model.network, trainable_only=True) == sum(item.numel() for item in model.trainable().values())
    before = state(model)
    for _ in range(2):  # LoRA's first matrix moves after the second has left zero
        take_step(model)
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    trained, live = {item.data_ptr() for item in model.trainable().values()}, model.network.state_dict()
    assert {live[name].data_ptr() for name in moved} <= trained  # a table that is used twice has two names
    assert {"head.weight", "head.bias"} <= moved
    assert spec == "head" or any(name.startswith("backbone.") for name in moved) or spec == "freeze:blocks=2"


@pytest.mark.parametrize(("spec", "family"), EVERY)
def test_a_model_is_saved_and_loaded_exactly_and_merged_within_rounding(
    spec: str, family: str, tiny_source: Callable[[str], Source], tmp_path: Path
) -> None:
    model = start(tiny_source(family), spec)
    take_step(model)
    take_step(model)
    before = model.logits(ROWS)
    again = models.load(model.save(tmp_path / "model"))
    assert again.changes == model.changes == (make_method(spec),)
    assert set(again.trainable()) == set(model.trainable())
    np.testing.assert_array_equal(again.logits(ROWS), before)
    if spec.partition(":")[0] in STAY:
        with pytest.raises(InputError, match=r"cannot be folded into the weights. Save or export the model as it is"):
            again.merge()
        assert again.changes == model.changes
        return
    merged = again.merge()
    np.testing.assert_allclose(merged.logits(ROWS), before, atol=1e-5)
    assert not any(
        re.fullmatch(r".*\.(down|up|magnitude|codes|scale)|.*vera.*|.*\.mixer\..*", name) for name in merged.network.state_dict()
    )
    reloaded = models.load(merged.save(tmp_path / "merged"))
    np.testing.assert_array_equal(reloaded.logits(ROWS), merged.logits(ROWS))
    assert isinstance(reloaded.changes[0], Merged)


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in READ_FIRST])
def test_a_method_starts_where_the_base_is(method: str, family: str, tiny_source: Callable[[str], Source]) -> None:
    if (method, family) not in REFUSED:
        plain = start(tiny_source(family), "head")
        np.testing.assert_array_equal(start(tiny_source(family), method).logits(ROWS), plain.logits(ROWS))


@pytest.mark.parametrize("family", tiny_models.DECODERS)
def test_prompts_start_as_words_before_the_text(family: str, tiny_source: Callable[[str], Source]) -> None:
    plain = start(tiny_source(family), "head")
    plain.encoder.max_length = 24
    model = tiny_models.start(tiny_source(family), ROWS, method="head", max_length=LENGTH)
    model.apply(make_method("prompt:text=the good film").plan(model, ROWS))
    np.testing.assert_allclose(model.logits(ROWS), plain.logits([f"the good film {row.text}" for row in ROWS]), atol=1e-5)
    drawn = start(tiny_source(family), "prompt").logits(ROWS)
    for method in ("ptuning", "prefix"):  # the same words by the same seed
        np.testing.assert_allclose(start(tiny_source(family), method).logits(ROWS), drawn, atol=1e-5)


def sizes(family: str) -> dict[str, int]:
    """Of a tiny base, written out: blocks b, hidden d, table e, feed-forward f, keys k."""
    return {
        "b": 1 if family == "albert" else 2,
        "d": 32,
        "e": 16 if family in ("electra", "albert") else 32,
        "f": 48,
        "k": 16 if family == "llama" else 32,
    }


COUNTS: dict[str, Callable[..., int]] = {
    "head": lambda **_: 0,
    "ia3": lambda b, f, k, **_: b * (2 * k + f),
    "houlsby": lambda b, d, **_: b * 2 * (2 * d * 2 + 2 + d),
    "pfeiffer": lambda b, d, **_: b * (2 * d * 2 + 2 + d),
    "parallel": lambda b, d, **_: b * (2 * d * 2 + 2 + d),
    "reft": lambda b, d, **_: b * (2 * 4 * d + 4),
    "prompt": lambda e, **_: 20 * e,
    "ptuning": lambda e, **_: 20 * e + e * 128 + 128 + 128 * e + e,
    "prefix": lambda b, k, **_: b * 2 * 20 * k,
}


@pytest.mark.parametrize("family", BASES)
def test_a_method_trains_as_many_parameters_as_its_formula_says(family: str, tiny_source: Callable[[str], Source]) -> None:
    for method, count in COUNTS.items():
        model = start(tiny_source(family), method)
        head = sum(item.numel() for item in model.network.head.parameters())
        assert share_of(model.network, trainable_only=True) - head == count(**sizes(family)), method


OWN_GRAPH = ("houlsby", "parallel", "reft", "prompt", "prefix")  # the others' graphs are the base's, or like one of these
EXPORTED = [
    pytest.param(method, family, marks=() if method in OWN_GRAPH and family == "bert" else pytest.mark.slow)
    for method in METHODS
    for family in ("bert", "llama")
    if (method, family) not in REFUSED
]


@pytest.mark.parametrize(("method", "family"), EXPORTED)
def test_a_method_exports(method: str, family: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = start(tiny_source(family), method)
    take_step(model)
    expected = model.logits(ROWS)
    path = find_export("onnx").write(exporting.fold(model), tmp_path / "artifact")
    assert verify(expected, path, ROWS, find_export("onnx").tolerance).max_abs < 1e-4
    labels = [answer["label"] for answer in load_artifact(path).predict([row.text for row in ROWS])]
    assert labels == [answer["label"] for answer in model.predict([row.text for row in ROWS])]


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_training_is_training(method: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    options = TrainOptions(epochs=3, batch_size=4, device="cpu", precision="fp32", threads=1)
    whole = start(tiny_source("bert"), method)
    for _ in Training(whole, ROWS, (), options).steps():
        pass
    first = Training(start(tiny_source("bert"), method), ROWS, (), options)
    for fact in first.steps():
        if fact.step == 5:
            first.save(tmp_path)
            break
    model = start(tiny_source("bert"), method)
    again = Training(model, ROWS, (), options)
    assert again.restore(tmp_path) == 5
    for _ in again.steps():
        pass
    for name, item in whole.trainable().items():
        assert torch.equal(item, model.trainable()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_cannot_learn_is_told_so(method: str, tiny_source: Callable[[str], Source]) -> None:
    same = [dataclasses.replace(row, text="a film") for row in ROWS]  # so every answer is the same
    training = Training(start(tiny_source("bert"), method), same, same, TrainOptions(epochs=2, device="cpu", precision="fp32", threads=1))
    for _ in training.steps():
        pass
    assert [alarm.partition(":")[0] for alarm in training.alarms()] == ["The run did not learn"]
    assert f"it was {make_method(method).rate:g}" in training.alarms()[0]


def test_the_forecast_tells_how_much_is_trained(tiny_source: Callable[[str], Source]) -> None:
    model = start(tiny_source("bert"), "pfeiffer")
    forecast = Training(model, ROWS, (), TrainOptions(device="cpu", precision="fp32", threads=1)).forecast()
    assert forecast.trainable_parameters == sum(item.numel() for item in model.trainable().values())
    assert forecast.total_parameters == sum(item.numel() for item in model.network.parameters())


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


def test_what_does_not_fit_is_refused(tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(
        InputError, match=r"max-length is 24 and prompt puts 20 tokens before every text, but the base takes 40 in all. Give max-length 20"
    ):
        tiny_models.start(tiny_source("bert"), ROWS, method="prompt", max_length=24)
    with pytest.raises(InputError, match=r"reft:layers is 5, but the base has 2 blocks: give numbers from 0 to 1"):
        start(tiny_source("bert"), "reft:layers=0+5")
    with pytest.raises(InputError, match=r"drop-first is 1, but the base has 1 block: give less"):
        start(tiny_source("albert"), "pfeiffer:drop_first=1")
    with pytest.raises(InputError, match="prompt:text must be made token ids first"):
        start(tiny_source("bert"), "prompt:text=good")


def test_adapters_can_spare_the_first_blocks(tiny_source: Callable[[str], Source]) -> None:
    for method in ("houlsby", "pfeiffer", "parallel", "reft"):
        option = "layers=1" if method == "reft" else "drop_first=1"
        names = [name for name in start(tiny_source("bert"), f"{method}:{option}").trainable() if name.startswith("backbone.")]
        assert names
        assert all(name.startswith("backbone.encoder.layer.1.") for name in names)


def test_a_model_that_keeps_its_adapters_is_not_cut(tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match="adapted with Pfeiffer cannot be made smaller"):
        start(tiny_source("bert"), "pfeiffer").shrink(make_step("depth:layers=0"))


def test_a_budget_is_refused_before_such_a_method_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapted with Pfeiffer cannot be made smaller"):
        fit([{"text": "good", "label": "a"}], tmp_path / "run", method="pfeiffer", max_mb=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_leaves_the_texts_less_room(tiny_source: Callable[[str], Source]) -> None:
    rows = [{"text": row.text, "label": row.target} for row in tiny_models.make_rows(60)]
    recipe = {"model": str(tiny_source("bert").folder), "method": "prompt:text=the good film"}
    model = prepare(resolve({}, recipe), rows).model
    assert model.encoder.max_length == 37
    assert model.changes == (make_method("prompt:tokens=3,text=the good film,ids=5+20+13"),)
    with pytest.raises(InputError, match=r"takes at most 37 tokens beside the 3 of prompt"):
        prepare(resolve({}, {**recipe, "method": "prompt:tokens=3", "max_length": 38}), rows)


def test_what_can_be_folded_is_folded_beside_what_stays(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = start(tiny_source("bert"), "lora:rank=2")
    take_step(model)
    with pytest.raises(InputError, match=r"carries another method's parts around the same matrices. Merge it first"):
        model.apply(make_method("pfeiffer"))
    model.apply(make_method("prompt"))
    take_step(model)
    before = model.logits(ROWS)
    np.testing.assert_allclose(model.merge().logits(ROWS), before, atol=1e-5)
    assert model.changes == (Merged(("lora:rank=2",)), make_method("prompt"))
    again = models.load(model.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.logits(ROWS), model.logits(ROWS))


def test_orthonormal_rows() -> None:
    rows = orthonormal(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(rows @ rows.T, torch.eye(4))


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
