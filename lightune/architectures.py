"""The one file that knows how pretrained models are built: blocks, embeddings, linear layers, norms.

It looks at structure, not at names of families, and says so loudly where the structure is not what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightune.errors import InputError


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The transformer blocks, lowest first: the longest list of equal modules that is not inside another such list.

    ALBERT's shared block is one block.
    """
    return list(_longest_list(backbone))


def stacks(backbone: nn.Module) -> list[nn.ModuleList]:
    """The lists that hold the blocks: one for most models; the encoder's and the decoder's where a model has both."""
    halves = [getattr(backbone, name, None) for name in ("encoder", "decoder")]
    if all(isinstance(half, PreTrainedModel) for half in halves):
        return [_longest_list(half) for half in halves if half is not None]
    return [_longest_list(backbone)]


def _longest_list(backbone: nn.Module) -> nn.ModuleList:
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
    return max(outer, key=len)


def attentions(block: nn.Module) -> dict[str, list[nn.Module]]:
    """The weight matrices of every attention inside a block by the name of its module there, in the order in which they are declared.

    The last of each writes to the residual stream, those before it read from it. A decoder block has two attentions where it also
    looks at an encoder.
    """
    found: dict[str, list[nn.Module]] = {}
    for name, layer in linears(block):
        if where := _attention_of(name):
            found.setdefault(where, []).append(layer)
    return found


def feed_forward(block: nn.Module) -> list[nn.Module]:
    """The weight matrices of a block outside its attentions, in the order in which they are declared; the last writes to the stream."""
    return [layer for name, layer in linears(block) if not _attention_of(name)]


def _attention_of(name: str) -> str | None:
    """The first part of a dotted name that speaks of attention, with all before it."""
    parts = name.split(".")
    place = next((number for number, part in enumerate(parts) if "att" in part.lower()), None)
    return None if place is None else ".".join(parts[: place + 1])


def word_embedding(backbone: nn.Module) -> nn.Embedding:
    """The token table; of a factored one the thin table, which a matrix widens."""
    whole = backbone.get_input_embeddings()  # type: ignore[operator]
    tables = [part for part in whole.modules() if isinstance(part, nn.Embedding)] if isinstance(whole, nn.Module) else []
    if len(tables) != 1:
        raise InputError(f"The token table of {type(backbone).__name__} is {type(whole).__name__}, expected an embedding.")
    return tables[0]


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
        padding = getattr(config, "pad_token_id", None)
        size = size and size - (1 if padding is None else padding) - 1
    return size


def share_of(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(item.numel() for item in module.parameters() if item.requires_grad or not trainable_only)
