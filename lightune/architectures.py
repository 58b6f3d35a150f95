"""The one file that knows how pretrained models are built: blocks, embeddings, linear layers, norms.

It looks at structure, not at names of families, and says so loudly where the structure is not what it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightune.errors import InputError

STACKED = ("gpt2", "modernbert")  # their fused matrices hold query, key and value (or both halves of a gate) one after another
PLAIN_POSITIONS = (  # their layers are told a mask, and nothing of a token's place but its vector; they go through transformers' attention interface
    "bert", "roberta", "xlm-roberta", "camembert", "albert", "electra", "distilbert", "ernie",
)  # fmt: skip
KEYS, VALUES = ("k", "key"), ("v", "value")  # how the names of these matrices begin


@dataclass(frozen=True, eq=False)
class Span:
    """The entries `start` to `stop` of what a weight matrix gives."""

    layer: nn.Module
    start: int
    stop: int


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The transformer blocks, lowest first: the longest list of equal modules that is not inside another such list.

    ALBERT's shared block is one block. Of an encoder with a decoder the encoder's come first.
    """
    return [block for stack in stacks(backbone) for block in stack]


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


def feed_forward_ends(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The first weight matrix of a block's feed-forward part, which reads its input, and the last, which writes to the stream.

    Raises:
        InputError: the part is not built of two matrices, or of three with a gate.
    """
    layers = feed_forward(block)
    if len(layers) not in (2, 3):
        raise InputError(
            f"{type(block).__name__} has {len(layers)} matrices outside its attention, expected 2, or 3 with a gate. Use lora for this base."
        )
    return layers[0], layers[-1]


def keys_and_values(backbone: nn.Module, block: nn.Module) -> list[tuple[Span, Span]]:
    """Where every attention of a block makes its keys and its values.

    Raises:
        InputError: a fused matrix whose order is not known, or names that say nothing.
    """
    config: Any = backbone.config
    names = {layer: name.rpartition(".")[2].lower() for name, layer in linears(block)}
    found = []
    for where, (*readers, writer) in attentions(block).items():
        chosen = [[layer for layer in readers if names[layer].split("_")[0] in part] for part in (KEYS, VALUES)]
        width = features(writer)[0]
        if all(len(layers) == 1 for layers in chosen):
            key, value = (Span(layers[0], 0, features(layers[0])[1]) for layers in chosen)
            found.append((key, value))
        elif len(readers) == 1 and features(readers[0])[1] == 3 * width and config.model_type in STACKED:
            found.append((Span(readers[0], width, 2 * width), Span(readers[0], 2 * width, 3 * width)))
        else:
            told = ", ".join(names[layer] for layer in readers)
            raise InputError(f"Cannot tell keys from values in {where} of {type(backbone).__name__} ({told}). Use lora or pfeiffer.")
    return found


def features(layer: nn.Module) -> tuple[int, int]:
    """How many entries a weight matrix takes and gives."""
    rows, columns = layer.weight.shape  # type: ignore[misc, operator, union-attr]
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def exchange(root: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put `new[part]` in the place of every such part below `root`, in every place where it is used."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                setattr(parent, name, new[child])


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


def norms(module: nn.Module) -> list[nn.Module]:
    """The normalisation layers below `module`, by the names of their classes: LayerNorm, RMSNorm and families' own.

    Raises:
        InputError: there are none.
    """
    found = [part for part in module.modules() if "norm" in type(part).__name__.lower() and not list(part.children())]
    if not found:
        raise InputError(f"{type(module).__name__} has no normalisation layers. Use lora.")
    return found


def is_decoder(backbone: nn.Module) -> bool:
    """Whether every token sees only what comes before it."""
    config = backbone.config
    text_only = not getattr(config, "is_encoder_decoder", False)
    causal = any(getattr(module, "is_causal", False) is True for module in backbone.modules())
    return text_only and (causal or getattr(config, "is_decoder", False) is True)


def is_plain_encoder(config: Any) -> bool:
    """Whether a configuration is that of an encoder among `PLAIN_POSITIONS`."""
    return config.model_type in PLAIN_POSITIONS and not getattr(config, "is_decoder", False)


def pooled_layers(backbone: nn.Module) -> int:
    """How many layers, the uppermost, read pairs of tokens: see `steps.pool`."""
    return getattr(backbone, "pooled_layers", 0)


def longest_input(config: object) -> int | None:
    """The largest number of tokens that the model was made for; None where its configuration does not say.

    RoBERTa-like models keep the first `pad_token_id + 1` rows of the table for padding.
    """
    size = getattr(config, "max_position_embeddings", None)
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet"):
        padding = getattr(config, "pad_token_id", None)
        size = size and size - (1 if padding is None else padding) - 1
    return size


def stream_of(output: Any) -> Tensor:
    """The residual stream among what a block gives."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def hooked(hooks: Iterable[Any]) -> Iterator[None]:
    """While hooks on modules are registered, which they are at the beginning."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def share_of(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones counted once; those of quantized matrices are among them."""
    packed = 0 if trainable_only else sum(getattr(part, "packed", 0) for part in module.modules())
    return packed + sum(item.numel() for item in module.parameters() if item.requires_grad or not trainable_only)
