"""Several models on one base: what they have in common is in memory once, and every text names the model that answers it.

Models that were adapted by LoRA answer the texts of a mixed batch in one pass; others model by model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from lightune.errors import InputError, unknown
from lightune.mixtures import Mixture, kinship
from lightune.models import Model

Key = tuple[tuple[int, ...], torch.dtype, bytes]


class Switchboard:
    """Models by name, whose equal frozen weights share their memory.

    A model that was adapted by LoRA, adapters, prompts and the like adds only what its method trained. Models may have different methods,
    labels and tasks. They are kept for answering, not for training.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models: dict[str, Model] = {}
        self._shared: dict[Key, torch.Tensor] = {}
        self._kin: dict[str, Hashable] = {}
        self._mixtures: dict[Hashable, Mixture] = {}  # made when they are first needed
        for name, model in models.items():
            self.add(name, model)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self._models)

    @property
    def bytes(self) -> int:
        """What all weights take in memory together."""
        storages = {
            item.data_ptr(): item.numel() * item.element_size() for model in self._models.values() for item in model.network.parameters()
        }
        return sum(storages.values())

    def add(self, name: str, model: Model) -> None:
        """Take a model, whose frozen weights that are here already are exchanged for these.

        Raises:
            InputError: the name is taken.
        """
        if name in self._models:
            raise InputError(f"There is a model named {name!r} already. Remove it first, or choose another name.")
        for item in model.network.parameters():
            if not item.requires_grad:
                item.data = self._shared.setdefault(_key(item), item.data)
        model.network.eval()
        self._models[name] = model
        self._kin[name] = kinship(model)
        self._mixtures.pop(self._kin[name], None)

    def remove(self, name: str) -> Model:
        """Give a model back; what it shares with others stays.

        Raises:
            InputError: there is none of that name.
        """
        found = self[name]
        del self._models[name]
        self._mixtures.pop(self._kin.pop(name), None)
        used = {item.data_ptr() for model in self._models.values() for item in model.network.parameters()}
        self._shared = {key: value for key, value in self._shared.items() if value.data_ptr() in used}
        return found

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            raise unknown("model", name, self._models)
        return self._models[name]

    def predict(self, texts: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """One answer for each text or (text, pair) from the model that is named beside it, in their order.

        Raises:
            InputError: not as many names as texts, or an unknown one.
        """
        if len(texts) != len(names):
            raise InputError(f"{len(texts)} texts came with {len(names)} names. Name one model for each text.")
        wanted = {name: self[name] for name in dict.fromkeys(names)}
        groups: dict[Hashable, list[str]] = {}
        for name in wanted:
            groups.setdefault(self._kin[name] or name, []).append(name)
        found: dict[int, dict[str, Any]] = {}
        for kin, group in groups.items():
            places = [place for place, name in enumerate(names) if name in group]
            chosen = [texts[place] for place in places]
            answers = self[group[0]].predict(chosen) if len(group) == 1 else self._mix(kin, chosen, [names[place] for place in places])
            found |= dict(zip(places, answers, strict=True))
        return [found[place] for place in range(len(texts))]

    def _mix(self, kin: Hashable, texts: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """The answers of several models of one kin, from one pass."""
        if kin not in self._mixtures:
            self._mixtures[kin] = Mixture({name: model for name, model in self._models.items() if self._kin[name] == kin})
        logits = self._mixtures[kin].logits(texts, names)
        return [self[name].answers.explain(row[None])[0] for name, row in zip(names, logits, strict=True)]


def _key(item: torch.Tensor) -> Key:
    """What two tensors have in common only if they are equal."""
    return tuple(item.shape), item.dtype, hashlib.sha256(item.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()
