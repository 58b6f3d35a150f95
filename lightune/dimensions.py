"""Which axis of which tensor belongs to which dimension of a model, and how a dimension is cut.

A dimension is what a transformer can have fewer of: entries of the residual stream, heads, feed-forward neurons, tokens, positions.
It runs along axes of many tensors at once; `describe` finds them all, or says loudly what it does not know, and `cut` keeps some units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.errors import InputError

HEAD_NORMS = ("q_norm", "k_norm")  # act inside every head
BIAS = "relative_attention_bias"  # a table with one column per head
POSITIONS = ("position_embeddings", "embed_positions", "wpe")
PER_POSITION = ("position_ids", "token_type_ids")  # buffers

HEAD_WIDTH = ("attention_head_size", "head_dim", "key_value_proj_dim")
HEADS = ("num_attention_heads", "num_heads", "n_heads")
HEADS_WIDTH = ("all_head_size", "inner_dim", "split_size")
HIDDEN = ("hidden_size", "embed_dim", "dim", "d_model", "pooler_hidden_size")
NEURONS = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "ffn_dim")


@dataclass(frozen=True, eq=False)
class Use:
    """One axis of one tensor of a module: `repeats` times one after another, the dimension's units with `unit` entries each."""

    module: nn.Module
    tensor: str
    axis: int
    repeats: int = 1
    unit: int = 1


@dataclass(frozen=True, eq=False)
class Fact:
    """An attribute of a module or configuration that follows from the dimension's size: scale · size + offset."""

    owner: Any
    name: str
    scale: int = 1
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Dimension:
    """All places of one dimension of `size` units; `outlets` are the matrices through which its units reach the residual stream."""

    size: int
    uses: tuple[Use, ...]
    facts: tuple[Fact, ...] = ()
    outlets: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, eq=False)
class Dimensions:
    """Every dimension of a backbone.

    Attributes:
        hidden: the residual stream, one for all blocks and stacks.
        heads: one for each attention, lowest block first. A unit is one head; with grouped queries it is one key/value head with its
            `queries` query heads. Attentions that share one table of relative positions (T5) are one dimension: head 3 of every block
            reads the same column.
        ffn: one for each block: its feed-forward neurons. ALBERT's shared block counts once.
        tokens: rows of the token table.
        positions: rows of the position table, which only a beginning of can stay; None where there is no table.
        queries: query heads in a unit of `heads`.
        head_width: entries of one head.
        bound: whether the configuration knows no head width of its own, so that hidden must be heads · head_width.
    """

    hidden: Dimension
    heads: tuple[Dimension, ...]
    ffn: tuple[Dimension, ...]
    tokens: Dimension
    positions: Dimension | None
    queries: int
    head_width: int
    bound: bool


def cut(dimension: Dimension, kept: Sequence[int]) -> None:
    """Keep some units of a dimension, in place: the tensors, the modules' own sizes and the configuration.

    Parameters stay the same objects, so that shared ones stay shared; their gradients are dropped.

    Raises:
        InputError: nothing is kept, a unit twice, or one that is not there.
    """
    if not len(kept) or len(set(kept)) < len(kept) or min(kept) < 0 or max(kept) >= dimension.size:
        raise InputError(f"Cannot keep {list(kept)[:5]} of {dimension.size} units. Give different numbers from 0 to {dimension.size - 1}.")
    units = torch.as_tensor(list(kept))
    done = set()
    for use in dimension.uses:
        tensor = getattr(use.module, use.tensor)
        if (id(tensor), use.axis) not in done:
            done.add((id(tensor), use.axis))
            before = tensor.shape[use.axis]
            tensor.data = tensor.detach().index_select(use.axis, _entries(use, units, dimension.size).to(tensor.device)).contiguous()
            tensor.grad = None
            if use.axis == 1 and hasattr(use.module, "scalar_embed_scale"):
                _rescale(use.module, before)
        _settle(use, list(kept))
    for fact in dimension.facts:
        setattr(fact.owner, fact.name, fact.scale * len(kept) + fact.offset)


def cut_each(found: Sequence[Dimension], kept: Sequence[Sequence[int]], what: str) -> None:
    """Keep as many units of each of several dimensions, which are those of all blocks.

    Raises:
        InputError: not one list for each, or lists of different lengths, which no configuration could tell.
    """
    if len(kept) != len(found) or len({len(units) for units in kept}) != 1:
        raise InputError(
            f"{what} has lists of {[len(units) for units in kept]}. Give one list of equal length for each of {len(found)} parts."
        )
    for dimension, units in zip(found, kept, strict=True):
        cut(dimension, units)


def _entries(use: Use, units: torch.Tensor, size: int) -> torch.Tensor:
    """The places along an axis that belong to the kept units."""
    repeats, inside = torch.arange(use.repeats) * size * use.unit, torch.arange(use.unit)
    return (repeats[:, None, None] + units[None, :, None] * use.unit + inside[None, None, :]).flatten()


def _settle(use: Use, kept: list[int]) -> None:
    """What a module knows of its own size."""
    module: Any = use.module
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Conv1d):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
        if use.axis == 0 and module.padding_idx is not None:
            module.padding_idx = kept.index(module.padding_idx) if module.padding_idx in kept else None
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(module.weight.shape)


def _rescale(table: Any, before: int) -> None:
    """Gemma multiplies what its table gives by √hidden: take the new factor and keep the product."""
    now = table.weight.shape[1]
    table.weight.data *= (before / now) ** 0.5
    table.scalar_embed_scale = now**0.5
    table.embed_scale.data = torch.tensor(now**0.5)


def is_native(backbone: nn.Module) -> bool:
    """Whether plain transformers makes the same shapes from the configuration alone."""
    kind, config = type(backbone), backbone.config
    options = {} if getattr(backbone, "pooler", True) is not None else {"add_pooling_layer": False}
    try:
        with torch.device("meta"):
            fresh = kind(type(config).from_dict(config.to_dict()), **options)  # type: ignore[union-attr, operator]
    except (
        ValueError,
        TypeError,
        StrictDataclassError,
    ):  # a configuration that transformers refuses, such as heads that do not divide the hidden size
        return False
    return _shapes(fresh) == _shapes(backbone)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def describe(backbone: nn.Module) -> Dimensions:
    """Find every dimension of a transformers backbone: encoder, decoder, or both.

    Raises:
        InputError: a part whose role is not known, or sizes that do not fit together.
    """
    return _Reader(backbone).read()


class _Reader:
    """Reads a backbone's dimensions from its matrices; every tensor must find its role."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.stacks = architectures.stacks(backbone)
        self.blocks = [block for stack in self.stacks for block in stack]
        owners = [part.config for part in backbone.modules() if isinstance(getattr(part, "config", None), PretrainedConfig)]
        self.configs: list[Any] = list({id(config): config for config in owners}.values())
        self.kind = self.configs[0].model_type if self.configs else ""
        self.hidden = self._agreed("hidden_size")
        self.head_width = 0
        self.queries = 1

    def read(self) -> Dimensions:
        """All of them."""
        heads = tuple(dimension for stack in self.stacks for dimension in self._heads_of_stack(stack))
        ffn = tuple(self._neurons(block) for block in self.blocks)
        bound = getattr(self.configs[0], "head_dim", None) is None
        hidden = self._stream(ffn[0].size)
        return Dimensions(hidden, heads, ffn, self._tokens(), self._positions(), self.queries, self.head_width, bound)

    def _heads_of_stack(self, stack: nn.ModuleList) -> list[Dimension]:
        """One dimension for each attention; one for all blocks where they share a table of relative positions."""
        found: dict[Any, list[Dimension]] = {}
        tables = [module for name, module in self.backbone.named_modules() if name.endswith(BIAS)]
        outside = [table for table in tables if all(table is not part for block in self.blocks for part in block.modules())]
        for number, block in enumerate(stack):
            for name, layers in architectures.attentions(block).items():
                owners = [other for other in stack if _tables(other.get_submodule(name))]
                shared = bool(outside) or 0 < len(owners) < len(stack)
                found.setdefault(name if shared else (name, number), []).append(self._heads(block.get_submodule(name), layers, outside))
        return [_joined(parts) for parts in found.values()]

    def _heads(self, attention: nn.Module, layers: list[nn.Module], tables: list[nn.Module]) -> Dimension:
        *readers, writer = layers
        width = architectures.features(writer)[0]
        self.head_width = head = _head_width(attention) or self._fail("an attention without a known head width", attention)
        heads, keys = width // head, min(architectures.features(reader)[1] for reader in readers) // head
        if heads * head != width or not keys or heads % min(keys, heads):
            self._fail(f"{width} entries for heads of {head}", attention)
        queries = heads // keys if 1 < keys < heads else 1  # a single key/value head stays for all queries
        self.queries = queries
        units = heads // queries
        uses = list(_takes(writer, unit=queries * head))
        for reader in readers:
            entries = architectures.features(reader)[1]
            if entries == width:
                uses += _gives(reader, unit=queries * head)
            elif entries == keys * head and keys < heads:
                uses += _gives(reader, unit=head) if keys > 1 else ()
            else:
                uses += _gives(reader, repeats=self._repeats(reader, width), unit=head)
        for table in [*tables, *_tables(attention)]:
            uses += _gives(table, unit=queries)
        values = dict.fromkeys(HEADS, heads) | dict.fromkeys(HEADS_WIDTH, width)
        values |= {"num_key_value_heads": keys} if keys > 1 else {"num_key_value_groups": heads}
        facts = [*_facts(attention.modules(), values, units), *self._configured(dict.fromkeys(HEADS, heads), units)]
        facts += _facts(self.configs, {"num_key_value_heads": keys} if keys > 1 else {}, units)
        return Dimension(units, tuple(uses), tuple(facts), (writer,))

    def _neurons(self, block: nn.Module) -> Dimension:
        layers = architectures.feed_forward(block)
        if len(layers) not in (2, 3):
            self._fail(f"{len(layers)} matrices outside attention in a block, expected 2, or 3 with a gate", block)
        *readers, writer = layers
        width = architectures.features(writer)[0]
        uses = [use for reader in readers for use in _gives(reader, repeats=self._repeats(reader, width))]
        values = dict.fromkeys(NEURONS, width)
        facts = [*_facts(block.modules(), values, width), *self._configured(values, width)]
        return Dimension(width, (*uses, *_takes(writer)), tuple(facts), (writer,))

    def _repeats(self, reader: nn.Module, width: int) -> int:
        """How often a matrix holds a dimension; more than once only in families whose order is known."""
        repeats, rest = divmod(architectures.features(reader)[1], width)
        if rest or repeats < 1 or (repeats > 1 and self.kind not in architectures.STACKED):
            self._fail(f"a matrix that gives {architectures.features(reader)[1]} entries where {width} are used", reader)
        return repeats

    def _stream(self, neurons: int) -> Dimension:
        """The residual stream: what blocks read from and write to, their norms, and what lies before and after them."""
        inside = {id(part) for block in self.blocks for part in block.modules()}
        rest = [
            (name, part) for name, part in self.backbone.named_modules() if id(part) not in inside and not isinstance(part, nn.ModuleList)
        ]
        projections = [place for place, (name, part) in enumerate(rest) if isinstance(part, nn.Linear) and "embed" in name]
        first = max(projections, default=-1)  # tables and norms before it are narrower than the stream
        uses = [use for block in self.blocks for use in self._stream_of_block(block)]
        for place, (_, part) in enumerate(rest):
            if place == first:
                uses += _gives(part)
            elif place > first:
                uses += self._stream_outside(part)
        values = dict.fromkeys(HIDDEN, self.hidden) | ({} if projections else {"embedding_size": self.hidden})
        facts = _facts([*self.backbone.modules(), *self.configs], values, self.hidden)
        facts += [
            Fact(config, "n_inner", 0, neurons) for config in self.configs if getattr(config, "n_inner", 0) is None
        ]  # it means 4 · hidden
        return Dimension(self.hidden, tuple(uses), tuple(facts))

    def _stream_of_block(self, block: nn.Module) -> Iterator[Use]:
        for group in (*architectures.attentions(block).values(), architectures.feed_forward(block)):
            *readers, writer = group
            if (
                any(architectures.features(reader)[0] != self.hidden for reader in readers)
                or architectures.features(writer)[1] != self.hidden
            ):
                self._fail(f"matrices that do not read and write {self.hidden} entries", block)
            yield from (use for reader in readers for use in _takes(reader))
            yield from _gives(writer)
        for name, part in block.named_modules():
            if not isinstance(part, (nn.Linear, Conv1D)) and not name.endswith((BIAS, *HEAD_NORMS)):
                yield from self._norm(part)
            elif name.endswith(HEAD_NORMS) and _own(part)["weight"].shape != (self.head_width,):
                self._fail("a norm over all heads", part)

    def _stream_outside(self, part: nn.Module) -> Iterator[Use]:
        if isinstance(part, nn.Embedding):
            if self._is_bias(part):
                return
            if part.embedding_dim != self.hidden:
                self._fail(f"a table of {part.embedding_dim} columns beside a stream of {self.hidden}", part)
            yield from _gives(part)
        elif isinstance(part, (nn.Linear, nn.Conv1d)):
            if part.weight.shape[:2] != (self.hidden, self.hidden):
                self._fail("a matrix outside the blocks", part)
            yield from (*_gives(part), *_takes(part))
        else:
            yield from self._norm(part)

    def _norm(self, part: nn.Module) -> Iterator[Use]:
        """A norm's weight and bias; a module without tensors of its own has no use."""
        if isinstance(part, nn.LayerNorm) and part.weight is None:
            self._fail("a norm without weights", part)
        for name, item in _own(part).items():
            if item.shape != (self.hidden,):
                self._fail(f"a tensor {name} of shape {tuple(item.shape)}", part)
            yield Use(part, name, 0)

    def _tokens(self) -> Dimension:
        table = architectures.word_embedding(self.backbone)
        uses = tuple(Use(part, "weight", 0) for part in self.backbone.modules() if getattr(part, "weight", None) is table.weight)
        facts = _facts([*self.backbone.modules(), *self.configs], {"vocab_size": table.num_embeddings}, table.num_embeddings)
        return Dimension(table.num_embeddings, uses, tuple(facts))

    def _positions(self) -> Dimension | None:
        tables = [
            part for name, part in self.backbone.named_modules() if name.rpartition(".")[2] in POSITIONS and isinstance(part, nn.Embedding)
        ]
        if not tables:
            return None
        rows = tables[0].num_embeddings
        uses = [Use(table, "weight", 0) for table in tables]
        for parent in self.backbone.modules():
            buffers = dict(parent.named_buffers(recurse=False))
            uses += [Use(parent, name, 1) for name in PER_POSITION if name in buffers and buffers[name].shape == (1, rows)]
        facts = [Fact(config, "max_position_embeddings", 1, config.max_position_embeddings - rows) for config in self.configs]
        for config in self.configs:  # DeBERTa's buckets of distances follow the longest input unless they are told
            if getattr(config, "max_relative_positions", 0) < 0:
                facts.append(Fact(config, "max_relative_positions", 0, config.max_position_embeddings))
        return Dimension(rows, tuple(uses), tuple(facts))

    def _is_bias(self, part: nn.Module) -> bool:
        return any(module is part and name.endswith(BIAS) for name, module in self.backbone.named_modules())

    def _configured(self, values: dict[str, int], size: int) -> list[Fact]:
        """The facts of every configuration, of which each must say the size."""
        facts = _facts(self.configs, values, size)
        facts += [Fact(config, "n_inner") for config in self.configs if "n_inner" in values and getattr(config, "n_inner", 0) is None]
        silent = [config for config in self.configs if all(fact.owner is not config for fact in facts)]
        if silent or not self.configs:
            self._fail(f"a configuration in which none of {', '.join(values)} is {next(iter(values.values()))}", self.backbone)
        return facts

    def _agreed(self, name: str) -> int:
        values = {getattr(config, name, None) for config in self.configs}
        if len(values) != 1 or not isinstance(value := values.pop(), int):
            self._fail(f"no single {name} in its configuration", self.backbone)
        return value

    def _fail(self, what: str, where: nn.Module) -> NoReturn:
        name = next((name for name, part in self.backbone.named_modules() if part is where and name), "the model")
        raise InputError(
            f"Cannot tell which axes of {type(self.backbone).__name__} belong together: {name} has {what}. "
            "Name the layers that stay (depth:layers=0+2+4), or choose a base of another family."
        )


def _gives(layer: nn.Module, repeats: int = 1, unit: int = 1) -> Iterator[Use]:
    """The uses along what a matrix or table gives: an axis of its weight, and its bias."""
    yield Use(layer, "weight", 1 if isinstance(layer, (Conv1D, nn.Embedding)) else 0, repeats, unit)
    if "bias" in _own(layer):
        yield Use(layer, "bias", 0, repeats, unit)


def _takes(layer: nn.Module, unit: int = 1) -> Iterator[Use]:
    """The use along what a matrix takes."""
    yield Use(layer, "weight", 0 if isinstance(layer, Conv1D) else 1, 1, unit)


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a module holds itself."""
    return dict(module.named_parameters(recurse=False))


def _facts(owners: Iterable[Any], values: Mapping[str, int], size: int) -> list[Fact]:
    """Which attributes of which owners say these values, as multiples of a size."""
    return [Fact(owner, name, value // size) for owner in owners for name, value in values.items() if getattr(owner, name, None) == value]


def _head_width(attention: nn.Module) -> int:
    found = [value for part in attention.modules() for name in HEAD_WIDTH if isinstance(value := getattr(part, name, None), int)]
    return found[0] if found else 0


def _tables(attention: nn.Module) -> list[nn.Module]:
    """The attention's own tables of relative positions."""
    return [part for name, part in attention.named_modules() if name.endswith(BIAS)]


def _joined(parts: list[Dimension]) -> Dimension:
    """Several equal dimensions that can only be cut as one."""
    uses, facts, outlets = ([item for part in parts for item in getattr(part, name)] for name in ("uses", "facts", "outlets"))
    return Dimension(parts[0].size, tuple(uses), tuple(facts), tuple(outlets))
