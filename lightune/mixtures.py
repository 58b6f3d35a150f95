"""Models that differ by their LoRA and their head alone answer the texts of one batch in one pass.

The base's products are made once for all rows. Beside them every row goes through the thin matrices of its own model, which are gathered
and multiplied as a batch (after Punica, Chen et al. 2023, and S-LoRA, Sheng et al. 2023).
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.methods.layers import Around
from lightune.methods.lowrank import LowRank
from lightune.methods.quantized import Quantized
from lightune.models import BATCH, Model
from lightune.networks import tensors
from lightune.runtime.tokenization import batches, texts_and_pairs


class Mixed(Around):
    """base(x), x [b, s, n], plus for every row the low-rank change of the layer that it has chosen."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.owners = torch.zeros(0, dtype=torch.int64)

    def offer(self, layers: Sequence[LowRank]) -> None:
        """Take the thin matrices of these layers, [a, r, n] and [a, m, r], smaller ranks filled up with zeros."""
        rank = max(len(layer.down) for layer in layers)
        self.down = torch.stack([nn.functional.pad(layer.down, (0, 0, 0, rank - len(layer.down))) for layer in layers])
        self.up = torch.stack([nn.functional.pad(layer.up * layer.scale, (0, rank - layer.up.shape[1])) for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, n] → [b, s, m], for the rows' `owners`, int64 [b]."""
        rows = x.reshape(len(self.owners), -1, x.shape[-1])
        plain = self.base(x)
        change = rows @ self.down[self.owners].transpose(1, 2) @ self.up[self.owners].transpose(1, 2)
        return plain + change.view_as(plain)


class Mixture:
    """Models of equal `kinship` in one network; the weights are theirs, not copies."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = dict(models)
        first = next(iter(self.models.values())).network
        shared: dict[int, Any] = {id(item): item for item in (*first.parameters(), *first.buffers())}
        self.network = copy.deepcopy(first, shared).eval()
        self.layers = {name: Mixed(part.base) for name, part in self.network.named_modules() if isinstance(part, LowRank)}
        found = dict(self.network.named_modules())
        architectures.exchange(self.network, {found[name]: layer for name, layer in self.layers.items()})
        self.lock = threading.Lock()  # the layers hold the rows of one batch

    def logits(self, texts: Sequence[Any], names: Sequence[str]) -> list[np.ndarray]:
        """Float32 [k] for each text or (text, pair) from the model that is named beside it, in their order."""
        present = list(dict.fromkeys(names))
        owners = np.array([present.index(name) for name in names], dtype=np.int64)
        encoder = self.models[present[0]].encoder
        encoded = encoder.encode(*texts_and_pairs(texts))
        cut = np.maximum(encoded.lengths - encoder.max_length, 0)
        for place, name in enumerate(present):
            self.models[name].truncated_tokens += int(cut[owners == place].sum())
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        with self.lock, torch.inference_mode():
            parts = [dict(self.models[name].network.named_modules()) for name in present]
            for name, layer in self.layers.items():
                layer.offer([part[name] for part in parts])  # type: ignore[misc]
            for rows in batches([len(ids) for ids in encoded.ids], BATCH):
                batch = tensors(encoder.pad(encoded, rows), self.models[present[0]].device)
                for place, answer in self._answer(batch, owners[rows], [self.models[name] for name in present]):
                    found[rows[place]] = answer
        return found

    def _answer(self, batch: dict[str, Tensor], owners: np.ndarray, models: Sequence[Model]) -> list[tuple[int, np.ndarray]]:
        """Place and logits [k] of every row of a padded batch: one pass through the base, then each model's own head."""
        for layer in self.layers.values():
            layer.owners = torch.from_numpy(owners).to(layer.down.device)
        hidden, mask = self.network.read(**batch).last_hidden_state, batch.get("attention_mask")
        found = []
        for owner in np.unique(owners):
            places = np.flatnonzero(owners == owner)
            chosen = torch.from_numpy(places).to(hidden.device)
            logits = models[owner].network.answer(hidden[chosen], None if mask is None else mask[chosen])
            found += list(zip(places.tolist(), logits.cpu().numpy(), strict=True))
        return found


def kinship(model: Model) -> Hashable | None:
    """What models must have in common to be mixed, their frozen weights being shared already; None for one that answers alone."""
    network, encoder = model.network, model.encoder
    parts = {name: part for name, part in network.named_modules() if isinstance(part, LowRank)}
    own = {f"{name}.{thin}" for name in parts for thin in ("down", "up")} | {"head.weight", "head.bias"}
    plain = all(type(part) is LowRank and not isinstance(part.base, Quantized) for part in parts.values())
    config: Any = network.backbone.config
    if not parts or not plain or set(model.trainable()) != own or getattr(config, "relative_attention", False):
        return None  # DeBERTa's matrices also read a table of positions, which has no rows to choose by
    frozen = tuple(item.data_ptr() for item in network.parameters() if not item.requires_grad)
    words = hashlib.sha256(encoder.tokenizer.to_str().encode()).digest()
    return tuple(parts), frozen, network.pooling, words, encoder.max_length, encoder.pad_id, encoder.inputs
