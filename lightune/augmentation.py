"""More text to distil on: the user's own rows with some words replaced; a teacher then says what the new rows mean.

Words are replaced by what a masked language model expects in their place (TinyBERT, Jiao et al. 2020, algorithm 1), or, where the base
has no such head, by neighbours in its token table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lightune.networks import tensors
from lightune.runtime.tokenization import Encoded, Encoder, batches

NEIGHBOURS = 8  # candidates for each word
BATCH = 64
Propose = Callable[[dict[str, np.ndarray], np.ndarray, np.random.Generator], np.ndarray]


def augment(encoded: Encoded, encoder: Encoder, propose: Propose, *, times: int, share: float = 0.3, seed: int = 0) -> Encoded:
    """`times` new versions of every row, in order of version and row; lengths and special tokens stay as they are.

    A token that stands in several places of a row becomes the same one in all of them. So two texts that are read together
    stay as similar as they were: of paraphrases with words replaced in each alone hardly any are still paraphrases.

    Args:
        propose: gives new ids [b, s] for a padded batch and the places [b, s] that are to be replaced.
        share: how many of a row's tokens are replaced.
    """
    draw = np.random.default_rng(seed)
    special = np.array(sorted(encoder.tokenizer.get_added_tokens_decoder()), dtype=np.int64)
    ids = [row for _ in range(times) for row in encoded.ids]
    types = None if encoded.types is None else [row for _ in range(times) for row in encoded.types]
    new = Encoded(ids, types, np.array([len(row) for row in ids], dtype=np.int64), 0)
    made: list[np.ndarray] = list(ids)
    for rows in batches(new.lengths, BATCH):
        batch = encoder.pad(new, rows)
        plain = ~np.isin(batch["input_ids"], special) & (np.arange(batch["input_ids"].shape[1]) < new.lengths[rows][:, None])
        first = _first_places(batch["input_ids"])
        chosen = plain & np.take_along_axis(draw.random(plain.shape) < share, first, 1)
        proposed = np.where(chosen, np.take_along_axis(propose(batch, chosen, draw), first, 1), batch["input_ids"])
        for place, row in enumerate(rows):
            made[row] = proposed[place, : new.lengths[row]].astype(np.int32)
    return Encoded(made, types, new.lengths, 0)


def _first_places(ids: np.ndarray) -> np.ndarray:
    """Where in its row each token stands first, int64 like ids [b, s]."""
    found = [np.unique(row, return_index=True, return_inverse=True) for row in ids]
    return np.stack([first[places] for _, first, places in found])


def neighbours_of(table: Tensor, tokens: np.ndarray) -> Propose:
    """Proposals from the nearest of the given tokens in an embedding table [V, d], by cosine; other tokens stay."""
    with torch.no_grad():
        vectors = nn.functional.normalize(table.detach()[torch.from_numpy(tokens)].float(), dim=1)
        count = min(NEIGHBOURS + 1, len(tokens))
        nearest = torch.cat([(part @ vectors.T).topk(count, dim=1).indices[:, 1:] for part in vectors.split(512)]).numpy()
    place = np.full(len(table), -1, dtype=np.int64)
    place[tokens] = np.arange(len(tokens))

    def propose(batch: dict[str, np.ndarray], chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        ids = batch["input_ids"]
        if nearest.shape[1] == 0:
            return ids
        found = tokens[nearest[place[ids], draw.integers(0, nearest.shape[1], ids.shape)]]
        return np.where(place[ids] >= 0, found, ids)

    return propose


def fillers_of(language_model: nn.Module, mask_id: int) -> Propose:
    """Proposals that a masked language model draws from the likeliest tokens in each place, all places of a row being hidden at once."""

    def propose(batch: dict[str, np.ndarray], chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        hidden = {**batch, "input_ids": np.where(chosen, mask_id, batch["input_ids"])}
        found = batch["input_ids"].copy()
        with torch.inference_mode():
            logits = language_model(**tensors(hidden)).logits[torch.from_numpy(chosen)]
            best = logits.topk(min(NEIGHBOURS, logits.shape[-1]), dim=-1)
            chances = best.values.softmax(-1).cumsum(-1).numpy()
        places = (draw.random((len(chances), 1)) > chances).sum(1).clip(max=chances.shape[-1] - 1)
        found[chosen] = best.indices.numpy()[np.arange(len(chances)), places]
        return found

    return propose


def translated(propose: Propose, ids: np.ndarray) -> Propose:
    """Proposals in other ids: token n of the new tokenizer is token ids[n] of that which `propose` knows; what has no new id stays."""
    new = np.full(int(ids.max()) + 1, -1, dtype=np.int64)
    new[ids] = np.arange(len(ids))

    def proposed(batch: dict[str, np.ndarray], chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        found = propose({**batch, "input_ids": ids[batch["input_ids"]]}, chosen, draw)
        known = new[found.clip(max=len(new) - 1)]
        return np.where((known >= 0) & (found < len(new)), known, batch["input_ids"])

    return proposed
