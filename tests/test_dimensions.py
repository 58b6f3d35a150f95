from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from lightune.architectures import blocks, share_of, stacks, word_embedding
from lightune.dimensions import Dimensions, cut, cut_each, describe, is_native
from lightune.errors import InputError

GROUPED = {**tiny_models.SIZES, "num_key_value_heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "xlm-roberta": tiny_models.SIZES, "mpnet": tiny_models.SIZES, "qwen2": GROUPED, "qwen3": {**GROUPED, "head_dim": 8}, "smollm3": GROUPED,
    "mistral": {**GROUPED, "head_dim": 16}, "gemma": {**GROUPED, "num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {**GROUPED, "head_dim": 8}, "umt5": tiny_models.TWO_STACKS["t5"], "mt5": tiny_models.TWO_STACKS["t5"],
}  # fmt: skip
ALL = {**tiny_models.FAMILIES, **tiny_models.TWO_STACKS, **OTHERS}
IDS = torch.tensor([[5, 9, 3, 22, 7, 11, 30, 8], [6, 4, 17, 9, 1, 1, 1, 1]])
MASK = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])


@pytest.fixture(autouse=True)
def quiet() -> None:
    torch.set_num_threads(1)


def make(family: str, **changes: Any) -> Any:
    ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(family, **{**tiny_models.TRANSFORMERS, **ALL[family], **ends, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        backbone = AutoModel.from_config(config, attn_implementation="eager").eval()
        for name, item in backbone.named_parameters():
            if item.ndim == 1 or "relative_attention_bias" in name:
                item.data += 0.3 * torch.randn(item.shape)
    return backbone


def read(backbone: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Vectors of the tokens that are no padding."""
    more = {"decoder_input_ids": ids[:, :3]} if backbone.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = backbone(input_ids=ids, attention_mask=MASK, **more).last_hidden_state
    return found if more else found[MASK.bool()]


def every(found: Dimensions) -> dict[str, Any]:
    return {
        **{f"heads {number}": part for number, part in enumerate(found.heads)},
        **{f"ffn {number}": part for number, part in enumerate(found.ffn)},
    }


@pytest.mark.parametrize("family", ALL)
def test_units_in_another_order_give_the_same_model(family: str) -> None:
    backbone = make(family)
    before, found, draw = read(backbone), describe(backbone), torch.Generator().manual_seed(0)
    for part in every(found).values():
        cut(part, torch.randperm(part.size, generator=draw).tolist())
    torch.testing.assert_close(read(backbone), before, atol=2e-5, rtol=1e-4)
    order = torch.randperm(found.hidden.size, generator=draw)
    cut(found.hidden, order.tolist())
    torch.testing.assert_close(read(backbone), before[..., order], atol=2e-5, rtol=1e-4)
    assert is_native(backbone)


@pytest.mark.parametrize("family", ALL)
def test_the_order_matters_where_an_axis_is_left_out(family: str) -> None:
    """What the test above would miss if every axis did not matter: one dimension without one of its uses."""
    backbone = make(family)
    before, part = read(backbone), describe(backbone).ffn[0]
    part = type(part)(part.size, part.uses[:-1], (), part.outlets)
    cut(part, list(reversed(range(part.size))))
    assert (read(backbone) - before).abs().max() > 1e-3


@pytest.mark.parametrize("family", ALL)
def test_half_of_every_dimension(family: str) -> None:
    backbone = make(family)
    size, found = share_of(backbone), describe(backbone)
    assert found.tokens.size == 64
    assert (found.positions is None) == (family in ("modernbert", *(name for name in ALL if name not in BERT_LIKE)))
    assert {part.size for part in found.ffn} == {48}
    assert {part.size * found.queries for part in found.heads} == {4}
    halves = every(found) | {"hidden": found.hidden}
    for part in halves.values():
        cut(part, range(0, part.size, 2))
    again = describe(backbone)
    assert [part.size for part in (again.hidden, *again.ffn)] == [16] + [24] * len(found.ffn)
    assert share_of(backbone) < 0.55 * size
    assert read(backbone).shape[-1] == backbone.config.hidden_size == 16
    assert backbone.config.num_attention_heads == 2
    assert is_native(backbone) == (family != "electra")  # whose projection from 16 to 16 its configuration does not make


BERT_LIKE = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "albert", "deberta-v2", "gpt2")


def test_tokens_and_positions() -> None:
    backbone = make("bert")
    before, found = read(backbone), describe(backbone)
    kept = sorted({0, 40, *IDS.flatten().tolist()})
    cut(found.tokens, kept)
    assert found.positions is not None
    cut(found.positions, range(8))
    ids = torch.tensor([[kept.index(token) for token in row] for row in IDS.tolist()])
    torch.testing.assert_close(read(backbone, ids), before)
    assert (backbone.config.vocab_size, backbone.config.max_position_embeddings) == (len(kept), 8)
    assert backbone.embeddings.position_ids.shape == backbone.embeddings.token_type_ids.shape == (1, 8)
    assert word_embedding(backbone).padding_idx == 0
    assert is_native(backbone)


def test_distances_stay_the_same_when_positions_go() -> None:
    backbone = make("deberta-v2")
    before, positions = read(backbone), describe(backbone).positions
    assert positions is not None
    cut(positions, range(8))
    assert backbone.config.max_relative_positions == 40
    torch.testing.assert_close(read(backbone), before)
    fresh = type(backbone)(backbone.config).eval()
    fresh.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(read(fresh), before)


def test_heads_that_share_positions_are_one_dimension() -> None:
    both = make("t5")
    assert [len(stack) for stack in stacks(both)] == [2, 2]
    encoder, decoder, *across = describe(both).heads
    assert [len(part.outlets) for part in (encoder, decoder, *across)] == [2, 2, 1, 1]
    assert len(describe(make("mpnet")).heads) == 1
    assert len(describe(make("umt5")).heads) == 6  # every block has its own table


def test_shared_and_frozen_parameters_stay_so() -> None:
    backbone = make("t5")
    backbone.shared.weight.requires_grad_(False)
    backbone.shared.weight.grad = torch.ones_like(backbone.shared.weight)
    cut(describe(backbone).hidden, range(16))
    assert backbone.encoder.embed_tokens.weight is backbone.decoder.embed_tokens.weight is backbone.shared.weight
    assert backbone.shared.weight.shape == (64, 16)
    assert not backbone.shared.weight.requires_grad
    assert backbone.shared.weight.grad is None
    assert backbone.decoder.embed_tokens.embedding_dim == 16


def test_a_single_key_head_stays_for_all_queries() -> None:
    backbone = make("gemma")
    found = describe(backbone)
    assert (found.queries, found.head_width, [part.size for part in found.heads]) == (1, 8, [4, 4])
    cut_each(found.heads, [(1, 2)] * 2, "heads")
    attention = blocks(backbone)[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features, attention.num_key_value_groups) == (16, 8, 2)
    assert is_native(backbone)
    read(backbone)


def test_sizes_that_follow_from_others_are_written_down() -> None:
    backbone = make("gpt2", n_inner=None)
    found = describe(backbone)
    assert found.ffn[0].size == 128
    cut(found.hidden, range(16))
    cut_each(describe(backbone).heads, [(0, 1)] * 2, "heads")
    assert backbone.config.n_inner == 128
    assert is_native(backbone)
    backbone = make("gpt2", n_inner=None)
    cut_each(describe(backbone).ffn, [range(20)] * 2, "ffn")
    assert backbone.config.n_inner == 20
    assert is_native(backbone)


def test_gemmas_factor_follows_its_size() -> None:
    backbone = make("gemma3_text")
    table = word_embedding(backbone)
    before = table(IDS)
    cut(describe(backbone).hidden, range(16))
    torch.testing.assert_close(table(IDS), before[..., :16])
    fresh = type(backbone)(backbone.config).eval()
    fresh.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(read(fresh), read(backbone))


@pytest.mark.parametrize(("family", "kept", "native"), [("bert", 2, False), ("llama", 1, True), ("t5", 3, True), ("qwen2", 1, False)])
def test_heads_alone_are_native_where_the_configuration_has_a_head_width(family: str, kept: int, native: bool) -> None:
    backbone = make(family)
    found = describe(backbone)
    assert found.bound == (not native)
    cut_each(found.heads, [range(kept)] * len(found.heads), "heads")
    read(backbone)
    assert is_native(backbone) == native


def test_a_shape_that_transformers_refuses_is_not_native() -> None:
    backbone = make("llama", num_key_value_heads=4)
    cut_each(describe(backbone).heads, [range(3)] * 2, "heads")  # 32 is no multiple of 3
    read(backbone)
    assert not is_native(backbone)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("olmo2", "layers.0.self_attn.q_norm has a norm over all heads"),
        ("gpt_neox", "layers.0.attention has an attention without a known head width"),
        ("phi3", "layers.0.mlp.gate_up_proj has a matrix that gives 96 entries where 48 are used"),
        ("mixtral", "0 matrices outside attention"),
    ],
)
def test_what_is_not_known_is_refused(family: str, message: str) -> None:
    config = AutoConfig.for_model(family, **{**tiny_models.TRANSFORMERS, **tiny_models.SIZES, "num_key_value_heads": 4})
    with pytest.raises(InputError, match=f"Cannot tell which axes of .* belong together: .*{message}.*depth:layers="):
        describe(AutoModel.from_config(config))


def test_layers_of_methods_are_refused() -> None:
    from lightune.methods import make_method

    with pytest.raises(InputError, match="Cannot tell which axes of BertModel"):
        describe(make_method("lora").apply(make("bert")))


@pytest.mark.parametrize("kept", [(), (0, 0), (-1,), (48,)])
def test_units_that_are_not_there(kept: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"of 48 units. Give different numbers from 0 to 47"):
        cut(describe(make("bert")).ffn[0], kept)


def test_unequal_lists() -> None:
    found = describe(make("bert")).ffn
    for kept in ([range(3)], [range(3), range(4)]):
        with pytest.raises(InputError, match=r"ffn:neurons has lists of .* Give one list of equal length for each of 2 parts"):
            cut_each(found, kept, "ffn:neurons")


def test_a_norm_without_weights_is_refused() -> None:
    backbone = make("bert")
    backbone.embeddings.LayerNorm = nn.LayerNorm(32, elementwise_affine=False)
    with pytest.raises(InputError, match=r"embeddings.LayerNorm has a norm without weights"):
        describe(backbone)
