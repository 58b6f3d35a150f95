"""The step static: token vectors and a window in the place of the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from tokenizers import Tokenizer, processors
from tokenizers import models as token_models

from lightune import exports, models
from lightune.data import Example
from lightune.errors import InputError
from lightune.exports import find_export
from lightune.methods import make_method
from lightune.models import Model
from lightune.recipes import TrainOptions
from lightune.runtime import load as load_artifact
from lightune.sources import Source
from lightune.steps import make_step
from lightune.steps.static import Static, StaticEncoder, find_separator, principal_components
from lightune.training import Training

ROWS = tiny_models.make_rows(40)
TEXTS = [row.text for row in ROWS]
PAIRS = tiny_models.make_rows(40, "pair")
EVERY = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)
SEPARATED = tuple(family for family in EVERY if family not in tiny_models.DECODERS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_static(source: Source, rows: list[Example] = ROWS, task: str = "classify", spec: str = "static=16") -> Model:
    return tiny_models.start(source, rows, task).shrink(make_step(spec))


def learn(model: Model, rows: list[Example], dev: list[Example]) -> float:
    """The accuracy on development rows after training from the labels alone."""
    training = Training(model, rows, dev, TrainOptions(epochs=8.0, threads=1, head_dropout=0.0, precision="fp32"))
    for _ in training.steps():
        pass
    return float((model.logits(dev).argmax(1) == model.task.targets(dev)).mean())


@pytest.mark.parametrize("family", EVERY)
def test_a_loaded_student_answers_as_the_saved_one(family: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = make_static(tiny_source(family), spec="static=1/2")
    with torch.no_grad():  # as training would
        for item in model.network.parameters():
            item += 0.1 * torch.randn(item.shape, generator=torch.Generator().manual_seed(item.numel()))
    loaded = models.load(model.save(tmp_path))
    assert loaded.changes[-1] == Static(keep=16)
    assert loaded.encoder.inputs == loaded.network.inputs == ("input_ids", "attention_mask")
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))


@pytest.mark.parametrize("task", ["classify", "pair"])
def test_padding_changes_no_answer(task: str, tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(40, task)
    model = make_static(tiny_source("bert"), rows, task)
    together = model.logits(rows)
    np.testing.assert_allclose(np.concatenate([model.logits([row]) for row in rows]), together, atol=1e-6)
    assert len(np.unique(together.round(5), axis=0)) > 30


@pytest.mark.parametrize(("target", "most"), [("onnx", 1e-5), ("onnx-int8", 0.05)])
@pytest.mark.parametrize("task", ["classify", "pair"])
def test_the_exported_student_answers_alike(
    task: str, target: str, most: float, tiny_source: Callable[[str], Source], tmp_path: Path
) -> None:
    rows = tiny_models.make_rows(40, task)
    model = make_static(tiny_source("bert"), rows, task, "static=32")
    folder = find_export(target).write(model, tmp_path / target)
    parity = exports.verify(model.logits(rows), folder, rows, find_export(target).tolerance)
    assert parity.max_abs <= most
    assert load_artifact(folder).encoder.inputs == ("input_ids", "attention_mask")


def test_it_learns(tiny_source: Callable[[str], Source]) -> None:
    assert learn(make_static(tiny_source("bert")), tiny_models.make_rows(600), tiny_models.make_rows(100, seed=1)) >= 0.9


def test_it_sees_the_order_of_neighbours(tiny_source: Callable[[str], Source]) -> None:
    draw = np.random.default_rng(0)

    def make(count: int) -> list[Example]:
        """The same words on both sides of a label; only which of two neighbours comes first tells."""
        ends = [" ".join(draw.choice(["the", "film", "was", "food"], size=draw.integers(1, 5))) for _ in range(2 * count)]
        order = [("good bad", "up"), ("bad good", "down")]
        return [
            Example(f"{ends[2 * row]} {order[row % 2][0]} {ends[2 * row + 1]}", None, order[row % 2][1], row + 1) for row in range(count)
        ]

    rows = make(400)
    assert learn(make_static(tiny_source("bert"), rows), rows, make(100)) >= 0.9


def test_it_learns_to_compare_two_texts(tiny_source: Callable[[str], Source]) -> None:
    rows, dev = tiny_models.make_rows(1500, "pair"), tiny_models.make_rows(200, "pair", seed=1)
    most_common = max(np.bincount(make_static(tiny_source("bert"), rows, "pair").task.targets(dev))) / len(dev)
    assert learn(make_static(tiny_source("bert"), rows, "pair", "static=32"), rows, dev) >= most_common + 0.1


@pytest.mark.parametrize("family", SEPARATED)
def test_both_texts_count_and_stay_apart(family: str, tiny_source: Callable[[str], Source]) -> None:
    model = make_static(tiny_source(family), PAIRS, "pair")
    rows = [("good film", "bad food"), ("bad food", "good film"), ("good film", "bad hotel"), ("good", "film bad food")]
    assert len(np.unique(model.logits(rows).round(6), axis=0)) == 4
    network = model.network
    hidden = network.read(
        **{name: torch.from_numpy(value) for name, value in model.encoder.pad(model.encoder.encode(*zip(*rows, strict=True))).items()}
    )
    first, second, apart, product = hidden.last_hidden_state[:, 0].chunk(4, dim=-1)
    torch.testing.assert_close(apart, (first - second).abs())
    torch.testing.assert_close(product, first * second)
    torch.testing.assert_close(first[0], first[2])


def test_two_texts_that_nothing_separates_are_refused(tiny_source: Callable[[str], Source]) -> None:
    with pytest.raises(InputError, match="does not separate"):
        make_static(tiny_source("gpt2"), PAIRS, "pair")


def test_a_separator_stands_behind_the_first_text_and_nowhere_before() -> None:
    def with_template(pair: str) -> Tokenizer:
        tokenizer = Tokenizer(token_models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
        tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)])
        return tokenizer

    assert find_separator(with_template("<s> $A </s> </s> $B </s>")) == 2
    assert find_separator(with_template("$A </s> $B </s>")) == 2
    assert find_separator(with_template("<s> $A <s> $B")) is None
    assert find_separator(with_template("$A $B")) is None


def test_an_untrained_student_is_always_the_same_and_draws_nothing(tiny_source: Callable[[str], Source]) -> None:
    model, other = (tiny_models.start(tiny_source("bert"), ROWS) for _ in range(2))
    before = torch.get_rng_state()
    model.shrink(make_step("static=16"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    np.testing.assert_array_equal(other.shrink(make_step("static=16")).logits(TEXTS), model.logits(TEXTS))


def test_principal_components_keep_the_distances_that_are_largest() -> None:
    draw = torch.Generator().manual_seed(0)
    table = (torch.randn(50, 6, generator=draw) * torch.tensor([5.0, 4.0, 3.0, 1e-4, 1e-4, 1e-4]) + 7).double()
    found = principal_components(table, 3)
    before, after = torch.cdist(table, table), torch.cdist(found, found)
    apart = ~torch.eye(50, dtype=torch.bool)
    ratio = after[apart] / before[apart]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0.0)
    assert float(found.square().sum(1).mean()) == pytest.approx(1.0)
    wide = principal_components(table, 8)
    assert not wide[:, 6:].any()
    torch.testing.assert_close(wide[:, :3].abs() / wide[0, 0].abs(), found.abs() / found[0, 0].abs(), rtol=1e-3, atol=1e-3)


def test_a_plan_is_explicit(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), PAIRS, "pair")
    planned = make_step("static=1/4").plan(model, None)
    assert planned == Static(keep=8, separator=model.encoder.tokenizer.token_to_id("[SEP]"))
    assert planned.plan(model, None) == planned
    with pytest.raises(InputError, match="static:keep is 33"):
        make_step("static=33").plan(model, None)


def test_orders_that_make_no_sense_are_refused(tiny_source: Callable[[str], Source]) -> None:
    model = make_static(tiny_source("bert"))
    with pytest.raises(InputError, match="depth cannot follow static"):
        model.shrink(make_step("depth=1"))
    with pytest.raises(InputError, match="static cannot follow static"):
        model.shrink(make_step("static=8"))
    adapted = tiny_models.start(tiny_source("bert"), ROWS, method="lora")
    with pytest.raises(InputError, match="Merge the model first"):
        adapted.shrink(make_step("static=8"))
    adapted.merge().shrink(make_step("static=8"))
    assert isinstance(adapted.network.backbone, StaticEncoder)


def test_a_trimmed_vocabulary_gives_a_trimmed_table(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    pytest.importorskip("lightune.steps.vocab")
    from lightune import importance

    model = tiny_models.start(tiny_source("bert"), ROWS)
    model.shrink(make_step("vocab=30"), importance.measure(model, ROWS)).shrink(make_step("static=16"))
    assert model.network.backbone.get_input_embeddings().num_embeddings == 30
    loaded = models.load(model.save(tmp_path))
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))


def test_a_method_may_train_part_of_it(tiny_source: Callable[[str], Source]) -> None:
    model = make_static(tiny_source("bert")).apply(make_method("head"))
    assert set(model.trainable()) == {"head.weight", "head.bias"}
