"""What the structural steps (depth, ffn, heads, hidden) must do, on every family of models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, T5Model

from lightune import models
from lightune.architectures import blocks, share_of, stacks, word_embedding
from lightune.dimensions import describe, is_native
from lightune.errors import InputError
from lightune.exports.onnx import trace, write
from lightune.importance import Importance, measure
from lightune.models import Model
from lightune.options import as_dict, build
from lightune.recipes import TrainOptions
from lightune.runtime import load as load_artifact
from lightune.sources import Source
from lightune.steps import find_step, make_step, step_name
from lightune.steps.depth import strongest_spread
from lightune.training import Training

ROWS = tiny_models.make_rows(12)
FAMILIES = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)
SPECS = ("depth=1", "ffn:keep=1/2,multiple=1", "heads=2", "hidden=1/2", "hidden:keep=1/2,heads=false")
WHOLE = ("depth=2", "ffn=48", "heads=4", "hidden=32")
EVERY = [(spec, family) for family in FAMILIES for spec in SPECS]
OWN_HEAD_WIDTH = ("llama", "t5")  # their configurations say it
NOT_NATIVE = {
    *((spec, family) for family in FAMILIES if family not in OWN_HEAD_WIDTH for spec in ("heads=2", SPECS[4])),
    ("hidden=1/2", "electra"),  # 16 is also the width of its embeddings, which its configuration then does not project
}


@pytest.fixture(scope="module")
def importances(tiny_source: Callable[[str], Source]) -> Callable[[str], Importance]:
    known: dict[str, Importance] = {}

    def of(family: str) -> Importance:
        if family not in known:
            known[family] = measure(tiny_models.start(tiny_source(family), ROWS), ROWS, leave_out=True)
        return known[family]

    return of


def sizes(model: Model) -> tuple[int, int, int, int]:
    """Layers, query heads, neurons and dimensions, as the weights have them."""
    found, config = describe(model.network.backbone), model.network.backbone.config
    assert len({part.size for part in found.heads}) == len({part.size for part in found.ffn}) == 1
    assert config.num_attention_heads == found.heads[0].size * found.queries
    assert config.hidden_size == found.hidden.size == model.network.head.in_features
    return config.num_hidden_layers, found.heads[0].size * found.queries, found.ffn[0].size, found.hidden.size


@pytest.mark.parametrize(("spec", "family"), EVERY)
def test_a_step_gives_the_shape_it_says(
    spec: str, family: str, start: Callable[[str], Model], importances: Callable[[str], Importance]
) -> None:
    model, importance = start(family), importances(family)
    before = share_of(model.network)
    model.shrink(make_step(spec), importance)
    expected = {"depth=1": (1, 4, 48, 32), SPECS[1]: (2, 4, 24, 32), "heads=2": (2, 2, 48, 32), "hidden=1/2": (2, 2, 48, 16)}
    assert sizes(model) == expected.get(spec, (2, 4, 48, 16))
    assert share_of(model.network) < before or (spec, family) == ("depth=1", "albert")
    assert is_native(model.network.backbone) == ((spec, family) not in NOT_NATIVE)
    together, alone = model.logits(ROWS), np.concatenate([model.logits([row]) for row in ROWS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.isfinite(together).all()


@pytest.mark.parametrize(("spec", "family"), EVERY)
def test_a_model_is_saved_and_loaded_exactly(
    spec: str, family: str, start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model = start(family).shrink(make_step(spec), importances(family))
    again = models.load(model.save(tmp_path / "model"))
    assert again.changes == model.changes
    np.testing.assert_array_equal(again.logits(ROWS), model.logits(ROWS))
    planned = model.changes[-1]
    assert planned.plan(model, None) is planned  # explicit, so that nothing is chosen again
    assert build(type(planned), as_dict(planned), "step") == planned


@pytest.mark.parametrize(("spec", "family"), [pair for pair in EVERY if pair not in NOT_NATIVE])
def test_plain_transformers_loads_a_native_shape(
    spec: str, family: str, start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model = start(family).shrink(make_step(spec), importances(family))
    backbone: Any = model.network.backbone
    backbone.save_pretrained(tmp_path)
    cls = AutoModelForTextEncoding if family == "t5" else AutoModel
    options = {"add_pooling_layer": False} if getattr(backbone, "pooler", 0) is None else {}
    theirs = cls.from_pretrained(tmp_path, **options).eval()
    encoded = model.encoder.encode([row.text for row in ROWS])
    batch = models.tensors(model.encoder.pad(encoded))
    with torch.no_grad():
        found, expected = (part(**batch).last_hidden_state[batch["attention_mask"].bool()] for part in (theirs, backbone))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_and_heads_that_do_nothing_go_without_a_trace(family: str, start: Callable[[str], Model]) -> None:
    model, draw = start(family), np.random.default_rng(0)
    found = describe(model.network.backbone)
    for part in (*found.heads, *found.ffn):
        dead = draw.permutation(part.size)[: part.size // 2]
        for outlet in part.outlets:
            weight: Any = outlet.weight
            inputs = weight.data if isinstance(outlet, nn.Linear) else weight.data.T  # [outputs, inputs]
            inputs.unflatten(1, (part.size, -1))[:, dead] = 0
    before = model.logits(ROWS)
    importance = measure(model, ROWS)
    assert all((np.sort(scores)[: len(scores) // 2] == 0).all() for scores in (*importance.heads, *importance.ffn))
    model.shrink(make_step("ffn:keep=1/2,multiple=1"), importance).shrink(make_step("heads=1/2"), importance)
    assert sizes(model)[1:3] == (2, 24)
    np.testing.assert_allclose(model.logits(ROWS), before, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_nothing_changes_nothing(
    family: str, start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model = start(family)
    before, size = model.logits(ROWS), share_of(model.network)
    for spec in WHOLE:
        model.shrink(make_step(spec), importances(family))
        np.testing.assert_array_equal(model.logits(ROWS), before)
    assert share_of(model.network) == size
    assert is_native(model.network.backbone)
    np.testing.assert_array_equal(models.load(model.save(tmp_path / "model")).logits(ROWS), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_depth_equals_skipping(family: str, layer: int, start: Callable[[str], Model]) -> None:
    model, calls = start(family), itertools.count()

    def skip(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if next(calls) % 2 == layer:
            return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
        return None

    handles = [block.register_forward_hook(skip) for block in blocks(model.network.backbone)]
    expected = model.logits(ROWS)
    for handle in handles:
        handle.remove()
    model.shrink(make_step(f"depth:layers={1 - layer}"))
    np.testing.assert_allclose(model.logits(ROWS), expected, atol=1e-6)
    assert is_native(model.network.backbone) == ((family, layer) != ("modernbert", 0))  # whose first layer has no norm


@pytest.mark.parametrize("family", ["gpt2", "llama", "modernbert"])
def test_layers_have_new_numbers_and_keep_their_kind(family: str, start: Callable[[str], Model]) -> None:
    model = start(family).shrink(make_step("depth:layers=1"))
    numbers = {part.layer_idx for part in model.network.backbone.modules() if hasattr(part, "layer_idx")}
    assert numbers == {0}
    if family == "modernbert":
        assert model.network.backbone.config.layer_types == ["sliding_attention"]
        assert [block.attention_type for block in blocks(model.network.backbone)] == ["sliding_attention"]


def test_the_first_layer_stays_where_the_configuration_needs_it(
    start: Callable[[str], Model], importances: Callable[[str], Importance]
) -> None:
    scores = np.array([0.0, 1.0])
    importance = importances("modernbert")
    importance = type(importance)(**{**vars(importance), "blocks": scores, "without": scores[::-1]})
    assert make_step("depth:keep=1,by=influence").plan(start("modernbert"), importance).layers == (0,)
    assert make_step("depth:keep=1,by=influence").plan(start("bert"), importance).layers == (1,)
    assert make_step("depth=1").plan(start("bert"), importance).layers == (0,)
    assert make_step("depth:keep=1,by=task").plan(start("bert"), importance).layers == (0,)


def test_an_encoders_layers_go_evenly_where_the_task_alone_would_take_neighbours() -> None:
    scores = [0.6, 1.1, 0.1, 1.7, 1.8, 1.5]  # the task misses the last three most
    assert strongest_spread(scores, 3) == (1, 3, 4)
    for size, count in ((6, 1), (6, 2), (6, 4), (6, 5), (7, 3), (12, 5), (30, 25)):
        values = np.random.default_rng(size + count).random(size).tolist()
        gaps = -(-(size - count) // (count + 1))
        spread = [kept for kept in itertools.combinations(range(size), count) if max(np.diff([-1, *kept, size])) - 1 <= gaps]
        assert strongest_spread(values, count) == max(spread, key=lambda kept: sum(values[place] for place in kept))


@pytest.mark.parametrize(("family", "expected"), [("bert", (1, 2)), ("llama", (2, 3))])
def test_decoders_lose_the_layers_that_the_task_misses_least(family: str, expected: tuple[int, ...], start: Callable[[str], Model]) -> None:
    model = start(family)
    (stack,) = stacks(model.network.backbone)
    stack.extend([stack[0], stack[1]])
    importance: Any = SimpleNamespace(blocks=np.array([0.9, 0.1, 0.2, 0.3]), without=np.array([0.1, 0.2, 0.9, 0.8]))
    assert make_step("depth=2").plan(model, importance).layers == expected
    assert make_step("depth:keep=2,by=spread").plan(model, importance).layers == (1, 2)
    assert make_step("depth:keep=2,by=task").plan(model, importance).layers == (2, 3)
    assert make_step("depth:keep=2,by=influence").plan(model, importance).layers == (0, 3)


def test_counts_are_rounded_up_to_what_runtimes_like(start: Callable[[str], Model], importances: Callable[[str], Importance]) -> None:
    importance = importances("bert")
    for spec, expected in (("ffn=1/4", (2, 4, 32, 32)), ("hidden=20", (2, 3, 48, 24)), ("hidden:keep=9,multiple=16", (2, 2, 48, 16))):
        assert sizes(start("bert").shrink(make_step(spec), importance)) == expected
    assert sizes(start("llama").shrink(make_step("heads=1"), importances("llama"))) == (2, 2, 48, 32)  # a key/value head has two queries
    assert sizes(start("llama").shrink(make_step("hidden=3/4"), importances("llama"))) == (2, 4, 48, 32)


@pytest.mark.parametrize(
    ("family", "order"), [("bert", order) for order in itertools.permutations(SPECS[:4])] + [(name, SPECS[:4]) for name in FAMILIES]
)
def test_steps_follow_one_another_in_any_order(
    family: str, order: tuple[str, ...], start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model, importance = start(family), importances(family)
    for spec in order:
        model.shrink(make_step(spec), importance)
        importance = model.changes[-1].narrow(importance)
    assert sizes(model) == (1, 1 if family in OWN_HEAD_WIDTH else 2, 24, 16)  # those can lose heads twice
    assert is_native(model.network.backbone) == (family != "electra")
    measured = measure(model, ROWS)
    assert [len(scores) for scores in importance.ffn] == [len(scores) for scores in measured.ffn]
    assert [len(scores) for scores in importance.heads] == [len(scores) for scores in measured.heads]
    assert importance.hidden.shape == measured.hidden.shape
    np.testing.assert_array_equal(models.load(model.save(tmp_path / "model")).logits(ROWS), model.logits(ROWS))


@pytest.mark.parametrize(
    "order", [("factor=8", "hidden=1/2"), ("hidden=1/2", "factor=8"), ("vocab=40", "hidden=1/2"), ("hidden=1/2", "vocab=40")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_cut_before_and_after_the_table(
    family: str, order: tuple[str, str], start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model, importance = start(family), importances(family)
    for spec in order:
        model.shrink(make_step(spec), importance)
        importance = model.changes[-1].narrow(importance)
    assert sizes(model) == (2, 2, 48, 16)
    assert measure(model, ROWS).hidden.shape == importance.hidden.shape
    np.testing.assert_array_equal(models.load(model.save(tmp_path / "model")).logits(ROWS), model.logits(ROWS))


def test_the_same_step_twice(start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path) -> None:
    model, importance = start("bert"), importances("bert")
    for spec in ("ffn=32", "ffn:keep=8,multiple=1", "hidden=3/4", "hidden=8"):
        model.shrink(make_step(spec), importance)
        importance = model.changes[-1].narrow(importance)
    assert sizes(model) == (2, 1, 8, 8)
    np.testing.assert_array_equal(models.load(model.save(tmp_path / "model")).logits(ROWS), model.logits(ROWS))


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "llama", "t5"])
def test_training_goes_on_after_a_cut(
    family: str, start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model, importance = start(family), importances(family)
    for spec in ("hidden=1/2", "ffn:keep=1/2,multiple=1"):
        model.shrink(make_step(spec), importance)
    table = word_embedding(model.network.backbone)
    before = table.weight.detach().clone()
    options = TrainOptions(epochs=1, batch_size=len(ROWS), threads=1, precision="fp32", rate=1e-2)
    (step,) = Training(model, ROWS, [], options).steps()
    assert np.isfinite(step.loss)
    assert step.gradient_norm > 0
    moved = (table.weight.detach() != before).any(1)
    assert 0 < moved.sum() < (65 if family == "t5" else 64)  # the rows that the batch touched; T5's table is held twice
    np.testing.assert_array_equal(models.load(model.save(tmp_path / "model")).logits(ROWS), model.logits(ROWS))


@pytest.mark.parametrize(
    "family", ["bert", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in ("bert", "llama"))]
)
def test_the_exported_file_answers_as_the_model_does(
    family: str, start: Callable[[str], Model], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    model, importance = start(family), importances(family)
    for spec in ("heads=2", "ffn:keep=1/2,multiple=1", "hidden:keep=1/2,heads=false", "depth=1"):  # not native for most
        model.shrink(make_step(spec), importance)
        importance = model.changes[-1].narrow(importance)
    graph = trace(model.network, model.encoder.inputs)
    path = write(graph, model.answers, model.encoder, tmp_path / "artifact", base="base", name="name")
    np.testing.assert_allclose(load_artifact(path, threads=1).logits(ROWS), model.logits(ROWS), atol=1e-4)


def test_an_unmerged_change_is_refused_and_a_merged_one_is_not(
    tiny_source: Callable[[str], Source], importances: Callable[[str], Importance], tmp_path: Path
) -> None:
    for spec in SPECS:
        model = tiny_models.start(tiny_source("bert"), ROWS, method="lora")
        with pytest.raises(
            InputError, match=f"{step_name(make_step(spec))} cannot cut a base that still carries LoRA.*Merge the model first"
        ):
            model.shrink(make_step(spec), importances("bert"))
        model.merge().shrink(make_step(spec), importances("bert"))
        np.testing.assert_array_equal(models.load(model.save(tmp_path / spec[:5])).logits(ROWS), model.logits(ROWS))


@pytest.mark.parametrize("last", ["Magnitude", "Static"])
@pytest.mark.parametrize("spec", SPECS)
def test_nothing_structural_follows_a_final_step(
    last: str, spec: str, start: Callable[[str], Model], importances: Callable[[str], Importance]
) -> None:
    model = start("bert")
    model.changes = (*model.changes, type(last, (), {})())
    with pytest.raises(InputError, match=f"{step_name(make_step(spec))} cannot follow {last.lower()}, because"):
        model.shrink(make_step(spec), importances("bert"))
    assert sizes(model) == (2, 4, 48, 32)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("depth=3", "depth:keep is 3, expected a count from 1 to 2 or a share between 0 and 1"),
        ("ffn=49", "ffn:keep is 49, expected a count from 1 to 48"),
        ("heads=5", "heads:keep is 5, expected a count from 1 to 4"),
        ("hidden=33", "hidden:keep is 33, expected a count from 1 to 32"),
        ("depth:layers=2", r"depth:layers is \[2\], expected different numbers from 0 to 1, lowest first"),
        ("depth:layers=1+0", r"depth:layers is \[1, 0\]"),
        ("depth:layers=a+b", "depth:layers is .*, expected numbers of layers from 0, as in 0.2.4"),
        ("depth:by=luck", "by is 'luck', expected one of auto, spread, influence, task"),
        ("ffn=0", "keep is 0, expected more than 0"),
        ("ffn:multiple=0", "multiple is 0, expected at least 1"),
        ("heads=half", "keep is 'half'"),
    ],
)
def test_what_cannot_be_cut_is_told(
    spec: str, message: str, start: Callable[[str], Model], importances: Callable[[str], Importance]
) -> None:
    model = start("bert")
    with pytest.raises(InputError, match=message):
        model.shrink(make_step(spec), importances("bert"))
    assert sizes(model) == (2, 4, 48, 32)


@pytest.mark.parametrize("name", ["depth", "ffn", "heads", "hidden"])
def test_a_step_must_know_what_matters(name: str, start: Callable[[str], Model], importances: Callable[[str], Importance]) -> None:
    with pytest.raises(InputError, match=f"{name} must know what matters. Give it importance.measure"):
        start("bert").shrink(make_step(name))
    other = make_step("depth:layers=1").narrow(importances("bert"))
    other = make_step("hidden:keep=1/2,heads=false").plan(start("bert"), importances("bert")).narrow(other)
    with pytest.raises(InputError, match=f"The importance that {name} was given is that of another shape"):
        start("bert").shrink(make_step(name), other)


def test_depth_by_task_needs_the_loss_without_each_layer(start: Callable[[str], Model]) -> None:
    model = start("bert")
    with pytest.raises(InputError, match="Measure the importance with leave_out=True"):
        model.shrink(make_step("depth:keep=1,by=task"), measure(model, ROWS, rows=2))


def test_layers_that_cannot_change_their_places(tmp_path: Path) -> None:
    for changes, family, message in (
        ({"scale_attn_by_inverse_layer_idx": True}, "gpt2", "scales its attention by the layer's number"),
        ({"num_hidden_groups": 2}, "albert", "whose layers share 2 blocks"),
    ):
        source = models.sources.resolve_model(tiny_models.save_base(family, tmp_path / family, **changes))
        with pytest.raises(InputError, match=message):
            tiny_models.start(source, ROWS).shrink(make_step("depth:layers=0"))


def both_stacks(**changes: Any) -> Any:
    """A network-like thing around a whole encoder-decoder, which no task runs."""
    config = AutoConfig.for_model("t5", **{**tiny_models.TRANSFORMERS, **tiny_models.TWO_STACKS["t5"], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SimpleNamespace(backbone=T5Model(config).eval(), head=nn.Linear(32, 2))


def decode(backbone: Any) -> torch.Tensor:
    ids, mask = torch.tensor([[5, 9, 3, 22], [6, 4, 1, 1]]), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    with torch.no_grad():
        return backbone(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :3]).last_hidden_state


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (("depth", {"layers": ((1,), (0, 2))}), (1, 2, 4, 48, 32)),
        (("depth", {"layers": (0, 2)}), (2, 2, 4, 48, 32)),
        (("ffn", {"neurons": (tuple(range(5)),) * 6}), (3, 3, 4, 5, 32)),
        (("heads", {"heads": ((0, 3),) * 5}), (3, 3, 2, 48, 32)),  # two of self-attention, three of cross-attention
        (("hidden", {"dimensions": tuple(range(16)), "kept_heads": ((1, 2),) * 5}), (3, 3, 2, 48, 16)),
    ],
)
def test_both_stacks_of_an_encoder_decoder(step: tuple[str, dict[str, Any]], expected: tuple[int, ...], tmp_path: Path) -> None:
    network = both_stacks(num_layers=3)
    find_step(step[0])(**step[1]).apply(network)
    config = network.backbone.config
    assert (config.num_layers, config.num_decoder_layers, config.num_heads, config.d_ff, config.d_model) == expected
    assert network.backbone.decoder.config.num_layers == expected[1]
    assert network.head.in_features == expected[-1]
    assert is_native(network.backbone)
    found = decode(network.backbone)
    assert found.shape == (2, 3, expected[-1])
    network.backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(decode(AutoModel.from_pretrained(tmp_path).eval()), found)


def test_the_same_share_of_each_stack() -> None:
    network = both_stacks(num_layers=4, num_decoder_layers=2)
    importance = SimpleNamespace(blocks=np.array([0.4, 0.1, 0.2, 0.3, 0.1, 0.2]))
    assert make_step("depth=1/2").plan(SimpleNamespace(network=network), importance).layers == ((0, 3), (1,))
    with pytest.raises(InputError, match="has 1 lists for 2 stacks"):
        find_step("depth")(layers=((0,),)).apply(network)
