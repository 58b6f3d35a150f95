from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch
from torch import nn
from transformers import BertConfig, RobertaConfig

from lightune.architectures import blocks, embeddings, is_decoder, linears, longest_input, share_of, word_embedding
from lightune.errors import InputError
from lightune.models import load_backbone
from lightune.sources import Source

BEFORE_THE_BLOCKS = {
    "bert": "embeddings", "roberta": "embeddings", "distilbert": "embeddings", "electra": "embeddings embeddings_project", "albert": "embeddings",
    "modernbert": "embeddings", "deberta-v2": "embeddings", "gpt2": "wte wpe drop", "llama": "embed_tokens",
}  # fmt: skip


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_is_understood(family: str, tiny_source: Callable[[str], Source]) -> None:
    backbone = load_backbone(tiny_source(family))
    found = blocks(backbone)
    assert len(found) == (1 if family == "albert" else 2)
    assert len({type(block) for block in found}) == 1
    assert word_embedding(backbone).weight.shape[0] == 64
    names = {id(module): name for name, module in backbone.named_children()}
    assert " ".join(names[id(module)] for module in embeddings(backbone)) == BEFORE_THE_BLOCKS[family]
    assert is_decoder(backbone) == (family in tiny_models.DECODERS)
    assert longest_input(backbone.config) == (38 if family == "roberta" else 40)
    assert sum(1 for block in found for _ in linears(block)) >= 4 * len(found)


def test_a_base_inside_another_module_keeps_its_own_table_frozen() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(3)])

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = Decoder()

        def get_input_embeddings(self) -> nn.Embedding:
            return self.decoder.table

    outer = Outer()
    assert embeddings(outer) == [outer.decoder.table]
    assert blocks(outer) == list(outer.decoder.layers)


def test_the_longest_list_of_equal_layers_that_is_not_inside_another_is_chosen() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(8)])

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(4) for _ in range(9)])
            self.mixed = nn.ModuleList([nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4), nn.Identity()])
            self.layers = nn.ModuleList([Layer() for _ in range(3)])

    base = Base()
    assert blocks(base) == list(base.layers)


def test_a_model_without_blocks_or_table_is_told_loudly() -> None:
    with pytest.raises(InputError, match="Found no transformer blocks in Sequential"):
        blocks(nn.Sequential(nn.Linear(2, 2)))

    class Odd(nn.Module):
        def get_input_embeddings(self) -> nn.Module:
            return nn.Linear(2, 2)

    with pytest.raises(InputError, match="The token table of Odd is Linear, expected an embedding"):
        word_embedding(Odd())


def test_the_position_table_limits_the_length() -> None:
    assert longest_input(BertConfig(max_position_embeddings=512)) == 512
    assert longest_input(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert longest_input(object()) is None


def test_a_base_can_take_as_many_tokens_as_is_said_and_no_more(tiny_source: Callable[[str], Source]) -> None:
    for family in ("bert", "roberta", "gpt2"):
        backbone = load_backbone(tiny_source(family)).eval()
        most = longest_input(backbone.config)
        assert most is not None
        backbone(input_ids=torch.full((1, most), 9))
        with pytest.raises((IndexError, RuntimeError)):
            backbone(input_ids=torch.full((1, most + 1), 9))


def test_shared_parameters_are_counted_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    module[0].bias.requires_grad_(False)
    assert share_of(module) == 9 + 3 + 3
    assert share_of(module, trainable_only=True) == 9 + 3
