"""Factor: the token table V × d becomes the product of a thinner table V × r and one matrix r × d (Lan et al. 2020, section 3.1).

The product is the best of its rank for the tokens as often as the data use them: what is lost is the weighted squared distance of the
rows, and its least value lies in the principal directions of the weighted rows (Eckart and Young 1936).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightune.architectures import word_embedding
from lightune.errors import InputError
from lightune.networks import LanguageNetwork, Network
from lightune.options import check, option
from lightune.steps import kept_count
from lightune.steps.vocab import token_counts

# What widens the embeddings behind a norm that is as thin as the table.
PROJECTIONS = {"albert": "encoder.embedding_hidden_mapping_in", "electra": "embeddings_project"}
CHUNK = 8192  # rows of a table that are summed at a time


@dataclass(frozen=True)
class Factor:
    """A thinner token table."""

    keep: float = option(0.5, "columns of the table that stay (its rank): a count, or a share below 1", above=0)
    counts: tuple[Any, ...] = option((), "how often the data use each token: rare ones may lose more")

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Factor:
        """Fix the rank, and what each token weighs; all the same where no importance is given.

        Raises:
            InputError: a rank that saves nothing, the importance of another vocabulary, or a model that generates.
        """
        if self.counts:
            return self
        if isinstance(model.network, LanguageNetwork):
            raise InputError(
                "factor cannot thin the token table of a model that generates: no runtime of these reads two tables. Use vocab."
            )
        width = word_embedding(model.network.backbone).embedding_dim
        rank = kept_count(self.keep, width, "factor:keep")
        if not 2 <= rank < width:
            raise InputError(f"factor:keep is {self.keep:g}, expected 2 to {width - 1} columns: the token table has {width}.")
        counts = token_counts(model, importance)
        return dataclasses.replace(self, keep=rank, counts=() if counts is None else tuple(counts.tolist()))

    def apply(self, network: Network) -> Network:
        """Replace the table, in the model's own form where it has one.

        Raises:
            InputError: a language model's head shares the table.
        """
        backbone: Any = network.backbone
        table = word_embedding(backbone)
        if any(isinstance(part, nn.Linear) and part.weight is table.weight for part in network.modules()):
            raise InputError("factor cannot thin a token table that is also the language model's head. Use vocab instead.")
        weights = torch.tensor(self.counts or [0] * table.num_embeddings, dtype=torch.float64, device=table.weight.device) + 1
        factorize = _thin_before_norm if backbone.config.model_type in PROJECTIONS else _split_table
        with torch.no_grad():
            factorize(backbone, int(self.keep), weights)
        return network

    def narrow(self, importance: Any) -> Any:
        """The importance of what this explicit step leaves: all of it."""
        return importance


class Factored(nn.Module):
    """Token ids [...] to vectors [..., d]: rows of a thin table [V, r], widened by one matrix [d, r]."""

    def __init__(self, table: Tensor, widening: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=padding_idx)
        wide, thin = widening.shape
        self.embed_proj = nn.Linear(thin, wide, bias=False, device=widening.device, dtype=widening.dtype)
        self.embed_proj.weight.copy_(widening)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] → [..., d]."""
        return self.embed_proj(self.table(ids))


def _split_table(backbone: Any, rank: int, weights: Tensor) -> None:
    """A `Factored` in the place of the token table."""
    old, whole = word_embedding(backbone), backbone.get_input_embeddings()
    rows = whole(torch.arange(old.num_embeddings, device=old.weight.device))  # what it gives, which may be scaled or factored already
    axes = principal_axes(second_moment(rows, weights), rank)
    thin = (rows.double() @ axes).to(rows.dtype)
    backbone.set_input_embeddings(Factored(thin, axes.to(rows.dtype).contiguous(), old.padding_idx))


def _thin_before_norm(backbone: Any, rank: int, weights: Tensor) -> None:
    """Thinner tables, norm and projection of a model that widens its embeddings behind their norm.

    A norm of e columns sees the centred sum x of tables as x / sqrt(|x|² / e + ε). Let U [e, r - 1] hold the principal directions of
    centred rows and R [r, r - 1] any orthonormal basis without a mean. Then s R Uᵀ x with s² = r / e has mean 0 and the variance
    |Uᵀ x|² / e, so that a norm of r columns divides it by the same root, and W diag(γ) U Rᵀ / s behind it gives what W diag(γ) gave: all of
    it, where the rows lie in the span of U.
    """
    tables = [part for part in backbone.embeddings.modules() if isinstance(part, nn.Embedding)]
    norm, place = backbone.embeddings.LayerNorm, PROJECTIONS[backbone.config.model_type]
    owner, _, name = place.rpartition(".")
    width, hidden = tables[0].embedding_dim, backbone.config.hidden_size
    old = getattr(backbone.get_submodule(owner), name, None)  # ELECTRA has none where the table is as wide as the stream
    matrix, bias = (old.weight, old.bias) if old is not None else (torch.eye(width).to(norm.weight), torch.zeros(hidden).to(norm.weight))
    shares = [weights if table is word_embedding(backbone) else torch.ones_like(table.weight[:, 0]) for table in tables]
    moments = [second_moment(_centred(table.weight), share) for table, share in zip(tables, shares, strict=True)]
    turn = principal_axes(torch.stack(moments).sum(0), rank - 1) @ _without_mean(rank).to(weights).T
    scale = math.sqrt(rank / width)
    widen = nn.Linear(rank, hidden, device=matrix.device, dtype=matrix.dtype)
    widen.weight.copy_((matrix * norm.weight).double() @ turn / scale)
    widen.bias.copy_(bias + matrix @ norm.bias)
    setattr(backbone.get_submodule(owner), name, widen)
    for table in tables:
        table.weight.data = (table.weight.double() @ turn * scale).to(table.weight.dtype)
        table.embedding_dim, table.weight.grad = rank, None
    norm.weight.data, norm.bias.data = torch.ones_like(norm.weight[:rank]), torch.zeros_like(norm.bias[:rank])
    norm.weight.grad = norm.bias.grad = None
    norm.normalized_shape, backbone.config.embedding_size = (rank,), rank


def second_moment(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of x xᵀ over rows x [n, d]: float64 [d, d]."""
    shares = (weights / weights.sum()).double()
    chunks = zip(rows.split(CHUNK), shares.split(CHUNK), strict=True)
    return torch.stack([(part.double() * share[:, None]).T @ part.double() for part, share in chunks]).sum(0)


def principal_axes(moment: Tensor, count: int) -> Tensor:
    """The directions with the largest moments, the largest first: [d, count], orthonormal."""
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :count]


def _centred(rows: Tensor) -> Tensor:
    """Rows less the mean of their own columns, as a layer norm sees them."""
    return rows - rows.mean(1, keepdim=True)


def _without_mean(size: int) -> Tensor:
    """An orthonormal basis [size, size - 1] of the vectors whose entries sum to 0."""
    ones = torch.ones(size, 1, dtype=torch.float64)
    return torch.linalg.qr(torch.cat([ones, torch.eye(size, dtype=torch.float64)[:, : size - 1]], dim=1)).Q[:, 1:]
