"""Fewer tokens and positions, on every family of models and on real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoConfig, AutoModel

from lightune import models
from lightune.architectures import longest_input, word_embedding
from lightune.data import Example
from lightune.dimensions import describe, is_native
from lightune.errors import InputError, LightuneError
from lightune.exports.onnx import write
from lightune.importance import measure
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.options import as_dict, build
from lightune.recipes import TrainOptions
from lightune.runtime import load as load_artifact
from lightune.runtime.tokenization import Encoder
from lightune.sources import Source, resolve_model
from lightune.steps import make_step
from lightune.steps.vocab import Vocab
from lightune.training import Training
from lightune.vocabularies import Vocabulary

FAMILIES = (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS)
KEPT = ("the", "film", "was", "good", "bad", "slow", "and", "room", "very")
TEXTS = ["the film was good", "bad", "the room was very slow and bad and the film was good", ("good film", "the room was bad"), ("bad", "")]
ROWS = [Example(text, None, mood, 1) for text, mood in ((" ".join(KEPT), "happy"), ("the film was bad", "sad"), ("slow", "tired"))]


@pytest.fixture
def start(tiny_source: Callable[[str], Source]) -> Callable[[str], Model]:
    def make(family: str, **options: Any) -> Model:
        model = tiny_models.start(tiny_source(family), ROWS, **options)
        model.network.eval()
        return model

    return make


def counts_of(model: Model, texts: list[Any]) -> SimpleNamespace:
    """What `importance.measure` says of tokens."""
    encoded = model.encoder.encode([text if isinstance(text, str) else " ".join(text) for text in texts])
    return SimpleNamespace(tokens=np.bincount(np.concatenate(encoded.ids), minlength=model.encoder.tokenizer.get_vocab_size()))


def fewest(model: Model) -> int:
    """Tokens that hold KEPT and what must stay."""
    named = {value for name, value in vars(model.network.backbone.config).items() if name.endswith("_token_id") and isinstance(value, int)}
    vocabulary = Vocabulary.of(model.encoder.tokenizer)
    ids = {model.encoder.tokenizer.token_to_id(word) for word in KEPT}
    return len(vocabulary.essential | (named & vocabulary.tokens.keys()) | ids | {model.encoder.pad_id})


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_stay_exactly_where_all_tokens_stay(family: str, start: Callable[..., Model], tmp_path: Path) -> None:
    model = start(family)
    before, native, count = model.logits(TEXTS), is_native(model.network.backbone), fewest(model)
    assert model.shrink(Vocab(keep=count), counts_of(model, [" ".join(KEPT)])) is model
    np.testing.assert_array_equal(model.logits(TEXTS), before)
    (step,) = model.changes[1:]
    assert len(step.ids) == count == model.encoder.tokenizer.get_vocab_size() == word_embedding(model.network.backbone).num_embeddings
    assert word_embedding(model.network.backbone).weight.shape[0] == model.network.backbone.config.vocab_size == count
    assert is_native(model.network.backbone) == native
    assert all(item.requires_grad for item in model.network.parameters())
    loaded = models.load(model.save(tmp_path))
    assert loaded.changes == model.changes
    np.testing.assert_array_equal(loaded.logits(TEXTS), before)
    assert "[UNK]" in loaded.encoder.tokenizer.encode("food").tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_tells_the_new_ids(family: str, start: Callable[..., Model]) -> None:
    model = start(family)
    old = {number: token for token, number in model.encoder.tokenizer.get_vocab().items()}
    configs = {id(part.config): part.config for part in model.network.backbone.modules() if hasattr(part, "config")}
    named = [(config, name, value) for config in configs.values() for name, value in vars(config).items() if name.endswith("_token_id")]
    pad = old.get(model.encoder.pad_id)
    model.shrink(Vocab(keep=fewest(model)), counts_of(model, [" ".join(KEPT)]))
    new = {number: token for token, number in model.encoder.tokenizer.get_vocab().items()}
    for config, name, value in named:
        now = getattr(config, name)
        assert (None if now is None else new[now]) == old.get(value)
    assert any(value is not None for _, _, value in named)
    assert new[model.encoder.pad_id] == pad


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_go_and_longer_texts_are_cut(family: str, start: Callable[..., Model], tmp_path: Path) -> None:
    model = start(family)
    short, native, limit = TEXTS[:2], is_native(model.network.backbone), longest_input(model.network.backbone.config)
    before = model.logits(short)
    sizes = describe(model.network.backbone).positions
    model.shrink(make_step("vocab:positions=8"))
    after = describe(model.network.backbone).positions
    assert (after is None) == (sizes is None)
    if sizes is not None and after is not None and limit is not None:
        assert after.size == sizes.size - limit + 8
    if limit is not None:
        assert longest_input(model.network.backbone.config) == 8
    assert is_native(model.network.backbone) == native
    np.testing.assert_array_equal(model.logits(short), before)
    assert model.encoder.max_length == 8
    assert model.truncated_tokens == 0
    assert np.isfinite(model.logits(["the film " * 20])).all()
    assert model.truncated_tokens > 0
    loaded = models.load(model.save(tmp_path))
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))
    assert loaded.encoder.to_dict() == model.encoder.to_dict()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_cut_model_trains_and_is_exported(family: str, start: Callable[..., Model], tmp_path: Path) -> None:
    model = start(family)
    model.shrink(make_step("vocab:keep=30,positions=16"), measure(model, ROWS))
    for _ in Training(model, ROWS * 4, ROWS, TrainOptions(epochs=1, batch_size=4)).steps():
        pass
    model.network.eval()
    assert len(models.load(model.save(tmp_path / "model")).logits(TEXTS)) == len(TEXTS)
    folder = write(model.network, model.answers, model.encoder, tmp_path / "artifact", base="tiny", name="tiny")
    np.testing.assert_allclose(load_artifact(folder).logits(TEXTS), model.logits(TEXTS), atol=1e-4)


@pytest.mark.parametrize(
    "specs",
    [
        ("vocab=40", "vocab:keep=25,positions=16"),
        ("depth=1", "vocab=25"),
        ("vocab=25", "depth=1"),
        ("hidden=1/2", "vocab=25", "ffn=1/2"),
        ("vocab:positions=16", "heads=1/2", "vocab=25"),
        ("factor=8", "vocab=25"),
        ("vocab=25", "factor=8", "vocab:positions=12"),
        ("vocab=25", "static=16"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "gpt2"])
def test_it_goes_with_other_steps(family: str, specs: tuple[str, ...], start: Callable[..., Model], tmp_path: Path) -> None:
    model = start(family)
    for spec in specs:
        model.shrink(make_step(spec), measure(model, ROWS))
    assert word_embedding(model.network.backbone).num_embeddings == 25 == model.encoder.tokenizer.get_vocab_size()
    loaded = models.load(model.save(tmp_path))
    np.testing.assert_array_equal(loaded.logits(TEXTS), model.logits(TEXTS))


@pytest.mark.parametrize("gone", [["one"], ["one", "two"]])
def test_positions_that_count_from_the_padding_id_move_with_it(gone: list[str]) -> None:
    vocabulary = {word: number for number, word in enumerate(("one", "two", "<pad>", "<unk>", "<s>", "</s>", "three", "four"))}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 5), ("<s>", 4))
    tokenizer.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    sizes = {**tiny_models.SIZES, "vocab_size": 8, "pad_token_id": 2, "bos_token_id": 4, "eos_token_id": 5}
    torch.manual_seed(0)
    network = Network(
        AutoModel.from_config(AutoConfig.for_model("roberta", **sizes), add_pooling_layer=False).eval(),
        3,
        "mean",
        ("input_ids", "attention_mask"),
    )
    network.head.weight.data.normal_()
    encoder = Encoder(tokenizer, 16, 2)
    model = Model(network.eval(), SimpleNamespace(answers=SimpleNamespace(outputs=3)), encoder, None, ())  # type: ignore[arg-type]
    before = model.logits(["three", "four three four"])
    model.shrink(Vocab(keep=8 - len(gone)), SimpleNamespace(tokens=np.array([0, 1, 0, 0, 5, 5, 2, 2])))
    assert not set(gone) & model.encoder.tokenizer.get_vocab().keys()
    assert model.encoder.pad_id == model.network.backbone.config.pad_token_id == 2 - len(gone)
    assert longest_input(model.network.backbone.config) == 37
    assert is_native(model.network.backbone)
    np.testing.assert_array_equal(model.logits(["three", "four three four"]), before)


def test_a_language_models_head_stays_tied(start: Callable[..., Model]) -> None:
    model = start("bert")
    network: Any = model.network
    network.words = nn.Linear(32, 64)
    network.words.weight = word_embedding(network.backbone).weight
    network.words.bias.data.copy_(torch.arange(64.0))
    with torch.no_grad():
        before = network.words(torch.ones(32))
    model.shrink(make_step("vocab=30"), counts_of(model, [" ".join(KEPT)]))
    assert network.words.weight is word_embedding(network.backbone).weight
    assert network.words.out_features == 30
    ids = list(model.changes[-1].ids)
    torch.testing.assert_close(network.words(torch.ones(32)), before[ids])
    with pytest.raises(InputError, match="also the language model's head"):
        model.shrink(make_step("factor=8"))


def test_lists_of_ids_and_generation_settings_follow(start: Callable[..., Model]) -> None:
    model = start("gpt2")
    config: Any = model.network.backbone.config
    end = model.encoder.tokenizer.token_to_id("dirty")
    config.eos_token_id = [end, 3, 5000]
    config.bos_token_id = None
    model.network.backbone.generation_config = SimpleNamespace(eos_token_id=end, bos_token_id=7000)
    model.shrink(make_step("vocab=30"), counts_of(model, [" ".join(KEPT)]))
    tokens = model.encoder.tokenizer
    assert [tokens.id_to_token(number) for number in config.eos_token_id] == ["dirty", "[SEP]"]
    assert tokens.id_to_token(model.network.backbone.generation_config.eos_token_id) == "dirty"
    assert config.bos_token_id is None
    assert model.network.backbone.generation_config.bos_token_id is None


def test_rotations_that_follow_the_longest_input_are_left_alone(start: Callable[..., Model]) -> None:
    model = start("llama")
    model.network.backbone.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model.shrink(make_step("vocab:positions=8"))
    assert model.network.backbone.config.max_position_embeddings == 40
    assert model.encoder.max_length == 8


def test_distances_keep_their_buckets_without_a_table_of_positions(tmp_path: Path) -> None:
    folder = tiny_models.save_base("deberta-v2", tmp_path / "base", position_biased_input=False)
    model = tiny_models.start(resolve_model(folder), ROWS)
    model.network.eval()
    before = model.logits(TEXTS[:2])
    model.shrink(make_step("vocab:positions=8"))
    assert (model.network.backbone.config.max_relative_positions, model.network.backbone.config.max_position_embeddings) == (40, 8)
    assert is_native(model.network.backbone)
    np.testing.assert_array_equal(model.logits(TEXTS[:2]), before)


def test_a_plan_is_explicit_and_can_be_written_down(start: Callable[..., Model]) -> None:
    model = start("bert")
    importance = measure(model, ROWS)
    planned = make_step("vocab:keep=1/2,positions=16").plan(model, importance)
    assert planned.plan(model, None) == planned
    assert planned.keep == len(planned.ids) == round(model.encoder.tokenizer.get_vocab_size() / 2)
    assert build(Vocab, json.loads(json.dumps(as_dict(planned))), "vocab") == planned
    model.shrink(planned)
    assert len(planned.narrow(importance).tokens) == len(planned.ids)
    assert planned.narrow(importance).tokens.sum() == importance.tokens.sum()


def test_all_that_the_tokenizer_has_stays_by_default(start: Callable[..., Model]) -> None:
    model = start("bert")
    whole = model.encoder.tokenizer.get_vocab_size()
    assert whole < word_embedding(model.network.backbone).num_embeddings  # rows that no token has
    before = model.logits(TEXTS)
    model.shrink(make_step("vocab"))
    assert word_embedding(model.network.backbone).num_embeddings == whole
    np.testing.assert_array_equal(model.logits(TEXTS), before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vocab=1000", "vocab:keep is 1000, expected a count from 1 to 46"),
        ("vocab=3", "would keep 3 tokens, expected 5 to 46"),
        ("vocab=0.01", "would keep 0 tokens|would keep 1 tokens"),
        ("vocab=10.5", "vocab:keep is 10.5, expected a count"),
        ("vocab=-1", "keep is -1, expected more than 0"),
        ("vocab:positions=3", "positions is 3, expected at least 4"),
        ("vocab:positions=41", r"vocab:positions is 41, expected 4 \(this tokenizer adds 3 tokens\) to 40"),
        ("vocab:characters=some", "characters is 'some', expected one of data, all"),
        ("vocab:position=8", "Did you mean 'positions'"),
    ],
)
def test_nonsense_is_refused(spec: str, message: str, start: Callable[..., Model]) -> None:
    model = start("bert")
    before, encoder = model.logits(TEXTS), model.encoder
    with pytest.raises(InputError, match=message):
        model.shrink(make_step(spec), measure(model, ROWS))
    np.testing.assert_array_equal(model.logits(TEXTS), before)
    assert model.encoder is encoder


def test_the_importance_of_another_vocabulary_is_refused(start: Callable[..., Model]) -> None:
    model = start("bert")
    stale = measure(model, ROWS)
    model.shrink(make_step("vocab=30"), stale)
    for spec in ("vocab=20", "factor=8"):
        with pytest.raises(InputError, match="The importance counts 64 tokens, but the model has 30"):
            model.shrink(make_step(spec), stale)


def read_rows(path: Path) -> list[Example]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Example(row["text"], None, str(row["label"]), number) for number, row in enumerate(map(json.loads, lines), 1)]


def start_real(name: str, rows: list[Example], **options: Any) -> Model:
    try:
        model = tiny_models.start(resolve_model(name), rows, **options)
    except LightuneError as error:
        pytest.skip(f"{name} cannot be had here: {error}")
    model.network.eval()
    return model


def teach(model: Model, rows: list[Example]) -> None:
    """Give the head the nearest mean of the rows of each label: as good as training, for this."""
    head = model.network.head
    wide = nn.Linear(head.in_features, head.in_features)
    wide.weight.data, wide.bias.data = torch.eye(head.in_features), torch.zeros(head.in_features)
    model.network.head = wide
    encoded = model.encoder.encode([row.text for row in rows])
    with torch.inference_mode():
        found = torch.cat([model.network(**tensors(model.encoder.pad(encoded, [place]))) for place in range(len(rows))])
    targets = torch.from_numpy(model.task.targets(rows))
    means = torch.stack([found[targets == label].mean(0) for label in range(head.out_features)])
    model.network.head = head
    head.weight.data, head.bias.data = means, -means.square().sum(1) / 2


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "data", "spec", "taught", "asked", "files"),
    [
        ("minilm", "banking77", "vocab:keep=8000,positions=100", 600, 300, 0.25),
        ("albert-tiny-zh", "chnsenticorp", "vocab=6000", 200, 200, 0.35),
    ],
)
def test_held_out_texts_keep_their_answers(
    name: str, data: str, spec: str, taught: int, asked: int, files: float, shared_data: Path, tmp_path: Path
) -> None:
    train, test = (read_rows(shared_data / data / f"{part}.jsonl") for part in ("train", "test"))
    model = start_real(name, train, max_length=128)
    teach(model, train[:: len(train) // taught])
    rows = test[:: len(test) // asked]
    model.encoder.save(tmp_path / "whole.json")
    before = model.logits(rows).argmax(1)
    assert (before == model.task.targets(rows)).mean() > 0.7
    model.shrink(make_step(spec), counts_of(model, [row.text for row in train]))
    assert (model.logits(rows).argmax(1) == before).mean() >= 0.995
    model.encoder.save(tmp_path / "small.json")
    assert (tmp_path / "small.json").stat().st_size < files * (tmp_path / "whole.json").stat().st_size


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(("name", "keep"), [("minilm", 4000), ("albert-tiny-zh", 9000)])
def test_every_character_can_stay_readable(name: str, keep: int) -> None:
    model = start_real(name, ROWS)
    whole = model.encoder.tokenizer
    known = sorted(Vocabulary.of(whole).characters)
    model.shrink(Vocab(keep=keep, characters="all"))
    small = model.encoder.tokenizer

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.one_of(st.text(max_size=20), st.text(st.sampled_from(known), max_size=20)), max_size=4).map(" ".join))
    def check(text: str) -> None:
        assert "[UNK]" in whole.encode(text).tokens or "[UNK]" not in small.encode(text).tokens
        assert len(model.encoder.encode([text]).ids[0]) >= 2

    check()
