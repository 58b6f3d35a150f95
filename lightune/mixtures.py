"""Models that differ by their LoRA and their head alone answer the texts of one batch in one pass.

The base's products are made once for all rows. Beside them the rows of each model, which lie together, go through its own thin matrices (as in
Punica, Chen et al. 2023, and S-LoRA, Sheng et al. 2023).
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
    """base(x), x [b, s, n], plus for every row the low-rank change of its own model's layer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.rows = 0
        self.segments: list[tuple[slice, LowRank]] = []  # which rows go through which layer, of each the rows together

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, n] → [b, s, m]."""
        given, found = x.reshape(self.rows, -1, x.shape[-1]), self.base(x)
        changed = found.view(self.rows, -1, found.shape[-1])
        for rows, layer in self.segments:
            changed[rows] += layer.change(given[rows])
        return found


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
        layers = [dict(self.models[name].network.named_modules()) for name in present]
        with self.lock, torch.inference_mode():
            for places in batches([len(ids) for ids in encoded.ids], BATCH):
                rows = places[np.argsort(owners[places], kind="stable")]
                ends = np.searchsorted(owners[rows], np.arange(len(present) + 1))
                parts = [(owner, slice(*ends[owner : owner + 2].tolist())) for owner in np.unique(owners[rows])]
                for name, mixed in self.layers.items():
                    mixed.rows, mixed.segments = len(rows), [(part, layers[owner][name]) for owner, part in parts]  # type: ignore[misc]
                batch = tensors(encoder.pad(encoded, rows), self.models[present[0]].device)
                hidden, mask = self.network.read(**batch).last_hidden_state, batch.get("attention_mask")
                for owner, part in parts:
                    head = self.models[present[owner]].network
                    logits = head.answer(hidden[part], None if mask is None else mask[part]).cpu().numpy()
                    for row, answer in zip(rows[part], logits, strict=True):
                        found[row] = answer
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
