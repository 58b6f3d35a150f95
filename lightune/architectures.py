"""The one file that knows how pretrained models are built: blocks, embeddings, linear layers, norms.

It looks at structure, not at names of families, and says so loudly where the structure is not what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from torch import nn
from transformers.pytorch_utils import Conv1D

from lightune.errors import InputError


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The transformer blocks, lowest first: the longest list of equal modules that is not inside another such list.

    ALBERT's shared block is one block.
    """
    lists: list[tuple[str, nn.ModuleList]] = [
        (name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    outer: list[nn.ModuleList] = [
        module
        for name, module in lists
        if len({type(child) for child in module}) == 1
        and any(isinstance(part, (nn.Linear, Conv1D)) for part in module.modules())
        and not any(name.startswith(f"{other}.") for other, _ in lists if other != name)
    ]
    if not outer:
        raise InputError(f"Found no transformer blocks in {type(backbone).__name__}. Lightune needs a list of equal layers.")
    return list(max(outer, key=lambda found: len(list(found))))


def word_embedding(backbone: nn.Module) -> nn.Embedding:
    """The token table."""
    table = backbone.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        raise InputError(f"The token table of {type(backbone).__name__} is {type(table).__name__}, expected an embedding.")
    return table


def embeddings(backbone: nn.Module) -> list[nn.Module]:
    """Everything that runs before the first block: token, position and type tables with their norms and projections.

    These are the parts of the backbone that stand before the one that holds the blocks.
    """
    first, table = blocks(backbone)[0], word_embedding(backbone)
    found = list(takewhile(lambda child: all(part is not first for part in child.modules()), backbone.children()))
    return found if any(part is table for child in found for part in child.modules()) else [*found, table]


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every weight matrix (nn.Linear, GPT-2's Conv1D) below `module`."""
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, Conv1D)):
            yield name, part


def is_decoder(backbone: nn.Module) -> bool:
    """Whether every token sees only what comes before it."""
    config = backbone.config
    text_only = not getattr(config, "is_encoder_decoder", False)
    causal = any(getattr(module, "is_causal", False) is True for module in backbone.modules())
    return text_only and (causal or getattr(config, "is_decoder", False) is True)


def longest_input(config: object) -> int | None:
    """The largest number of tokens that the model was made for; None where its configuration does not say.

    RoBERTa-like models keep the first `pad_token_id + 1` rows of the table for padding.
    """
    size = getattr(config, "max_position_embeddings", None)
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet"):
        size = size and size - (getattr(config, "pad_token_id", 1) or 1) - 1
    return size


def share_of(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(item.numel() for item in module.parameters() if item.requires_grad or not trainable_only)
