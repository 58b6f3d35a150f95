"""New versions of rows: what changes, what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tiny_models
import torch

from lightune import architectures, augmentation
from lightune.runtime.tokenization import Encoded

if TYPE_CHECKING:
    from lightune.models import Model
    from lightune.sources import Source


def read(model: Model, count: int = 12) -> Encoded:
    rows = tiny_models.make_rows(count)
    return model.encoder.encode([row.text for row in rows])


def test_lengths_and_special_tokens_stay_and_words_change(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20))
    encoded = read(model)
    table = architectures.word_embedding(model.network.backbone).weight
    propose = augmentation.neighbours_of(table, np.unique(np.concatenate(encoded.ids)))
    new = augmentation.augment(encoded, model.encoder, propose, times=3, share=0.5)
    special = {0, 1, 2, 3, 4}
    assert [len(row) for row in new.ids] == [len(row) for row in encoded.ids] * 3
    changed = 0
    for old, row in zip([*encoded.ids] * 3, new.ids, strict=True):
        for before, after in zip(old, row, strict=True):
            assert (before in special) == (after in special) or before not in special
            changed += before != after
            if before in special:
                assert before == after
    assert changed > 0.25 * sum(len(row) - 2 for row in new.ids)
    assert new.types is not None
    assert len(new.types) == len(new.ids)


def test_what_two_texts_share_they_share_afterwards(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20))
    texts = [row.text[:20] for row in tiny_models.make_rows(20)]
    encoded = model.encoder.encode(texts, texts)
    table = architectures.word_embedding(model.network.backbone).weight
    propose = augmentation.neighbours_of(table, np.unique(np.concatenate(encoded.ids)))
    new = augmentation.augment(encoded, model.encoder, propose, times=2, share=0.5)
    assert new.types is not None
    halves = [(row[types == 0][1:-1], row[types == 1][:-1]) for row, types in zip(new.ids, new.types, strict=True)]
    assert all((first == second).all() for first, second in halves)
    assert any((row != old).any() for row, old in zip(new.ids, [*encoded.ids] * 2, strict=True))


def test_the_same_seed_gives_the_same_versions(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20))
    encoded = read(model)
    propose = augmentation.neighbours_of(
        architectures.word_embedding(model.network.backbone).weight, np.unique(np.concatenate(encoded.ids))
    )
    one, same, other = (augmentation.augment(encoded, model.encoder, propose, times=1, seed=seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one.ids, same.ids, strict=True))
    assert any((a != b).any() for a, b in zip(one.ids, other.ids, strict=True))


def test_neighbours_are_the_nearest_by_cosine() -> None:
    table = torch.eye(40) + 0.01
    table[7] = table[9] * 3 + 0.001  # the nearest of 9, whatever its length
    propose = augmentation.neighbours_of(table, np.array([7, 9]))
    ids = np.array([[7, 9, 3]])
    found = propose({"input_ids": ids}, np.ones_like(ids, dtype=bool), np.random.default_rng(0))
    assert found.tolist() == [[9, 7, 3]]  # 3 is not among the tokens: it stays


def test_a_language_model_proposes_for_hidden_places_alone() -> None:
    class Certain(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> object:
            logits = torch.zeros(*input_ids.shape, 10)
            logits[..., 6] = 50.0
            assert (input_ids == 4).sum() == 1
            return type("Output", (), {"logits": logits})()

    propose = augmentation.fillers_of(Certain(), mask_id=4)
    chosen = np.array([[False, True, False]])
    batch = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}
    assert propose(batch, chosen, np.random.default_rng(0)).tolist() == [[1, 6, 3]]


def test_proposals_are_translated_into_the_ids_of_a_smaller_vocabulary() -> None:
    def propose(batch: dict[str, np.ndarray], chosen: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        assert batch["input_ids"].tolist() == [[10, 30]]
        return np.array([[30, 40]])  # 40 has no new id

    proposed = augmentation.translated(propose, np.array([10, 20, 30]))
    batch = {"input_ids": np.array([[0, 2]])}
    assert proposed(batch, np.ones((1, 2), dtype=bool), np.random.default_rng(0)).tolist() == [[2, 2]]
