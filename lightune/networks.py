"""The modules that are trained and exported: a backbone with a head that answers for a text, or for every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightune import kernels
from lightune.token_losses import token_losses


class Network(nn.Module):
    """Token ids in, logits out.

    backbone: a transformers model that gives `last_hidden_state` [b, s, d].
    pooling: mean over the text's own tokens, cls (the first token) or last (the last token that is no padding).
    inputs: which of input_ids, attention_mask and token_type_ids the backbone takes.
    """

    def __init__(self, backbone: nn.Module, outputs: int, pooling: str, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.inputs = inputs
        self.dropout = kernels.Dropout(0.0)
        self.head = nn.Linear(backbone.config.hidden_size, outputs)  # type: ignore[union-attr, arg-type]

    def describe(self) -> dict[str, Any]:
        """What a saved model must tell beside its weights."""
        return {"pooling": self.pooling, "head_dropout": self.dropout.p}

    def set_head_dropout(self, rate: float) -> None:
        """Dropout before the head."""
        self.dropout.p = rate

    def release_head(self) -> None:
        """Let the head be trained, whatever the method: it is new."""
        self.head.requires_grad_(True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits float32 [b, k] from int64 [b, s] ids; a mask that is None means that no row is padded."""
        return self.answer(self.read(input_ids, attention_mask, token_type_ids).last_hidden_state, attention_mask)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **options: Any) -> Any:
        """What the backbone gives for a batch, with options of its own such as output_hidden_states."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.backbone(**{name: given[name] for name in self.inputs}, **options)

    def answer(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Logits float32 [b, k] from token vectors [b, s, d] and their mask [b, s]."""
        return self.head(self.dropout(self.pool(hidden, mask))).float()

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """One vector [b, d] for each text from its token vectors [b, s, d] and mask [b, s]."""
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            if mask is None:
                return hidden[:, -1]
            last = mask.sum(1, keepdim=True).clamp(min=1) - 1
            return hidden.gather(1, last[:, :, None].expand(-1, -1, hidden.shape[-1]))[:, 0]
        if mask is None:
            return hidden.mean(1)
        weight = mask[:, :, None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


class LanguageNetwork(nn.Module):
    """Token ids in, a score for every word of the vocabulary out, at every place.

    backbone: a transformers decoder that gives `last_hidden_state` [b, s, d].
    head: [d] to [v]; in many models its weight is that of the token table.
    inputs: which of input_ids and attention_mask the backbone takes.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.inputs = inputs

    @property
    def tied(self) -> bool:
        """Whether the head's weight is the token table."""
        return self.head.weight is self.backbone.get_input_embeddings().weight  # type: ignore[operator]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits float32 [b, s, v] from int64 [b, s] ids; those at place i are for the token after it."""
        return self.head(self.read(input_ids, attention_mask).last_hidden_state).float()

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """What the backbone gives for a batch, with options of its own such as position_ids."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.backbone(**{name: given[name] for name in self.inputs}, use_cache=False, **options)

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood float32 [m] of labels int64 [m], each predicted from its own vector of hidden [m, d]."""
        return token_losses(hidden, self.head.weight, self.head.bias, labels)

    def describe(self) -> dict[str, Any]:
        """What a saved model must tell beside its weights."""
        return {"head_bias": self.head.bias is not None, "tied": self.tied}

    def set_head_dropout(self, rate: float) -> None:
        """Nothing: a pretrained head has been trained without."""

    def release_head(self) -> None:
        """Train a head of its own where all of the backbone is trained; it is as much pretrained as the rest."""
        if not self.tied:
            self.head.requires_grad_(all(item.requires_grad for item in self.backbone.parameters()))


class TranslationNetwork(LanguageNetwork):
    """A language network whose backbone is an encoder and a decoder (T5): a row is a source with its end token, then the target with its own.

    backbone: gives `last_hidden_state` [b, t, d] of the decoder for `input_ids`, which the encoder reads, and `decoder_input_ids`.
    """

    @property
    def end(self) -> int:
        """The token that ends a source and a target."""
        return self.backbone.config.eos_token_id  # type: ignore[union-attr, return-value]

    @property
    def padding(self) -> int:
        """The token that fills rows on their right."""
        return self.backbone.config.pad_token_id  # type: ignore[union-attr, return-value]

    @property
    def start(self) -> int:
        """The token that the decoder reads first."""
        start = getattr(self.backbone.config, "decoder_start_token_id", None)
        return self.padding if start is None else start

    @property
    def scale(self) -> float:
        """By what the decoder's vectors are multiplied before the head (Raffel et al. 2020: d to the -1/2 where the head is the token table)."""
        config: Any = self.backbone.config
        return config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0

    def sources(self, ids: Tensor) -> Tensor:
        """How many tokens of each row [b, s] are its source, the end token included: int64 [b]. A row without one is all source."""
        ends = ids == self.end
        return (ends.cumsum(1) - ends.long() == 0).sum(1)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """As of a language network: the vector [b, s, d] at a place is for the token after it. Those inside a source are 0, nothing predicts it.

        What fills a row on its right must be `padding`.
        """
        counts = self.sources(input_ids)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        lengths = ((input_ids != self.padding) * (steps + 1)).amax(1)
        places = counts[:, None] - 1 + steps[: int((lengths - counts).max()) + 1]  # from which the target's tokens are predicted
        given = input_ids.gather(1, places.clamp(max=len(steps) - 1))
        given[:, 0] = self.start
        source = input_ids[:, : int(counts.max())]
        mask = (steps[: source.shape[1]] < counts[:, None]).long()
        found = self.backbone(input_ids=source, attention_mask=mask, decoder_input_ids=given, use_cache=False, **options)
        hidden = found.last_hidden_state * self.scale
        spread = hidden.new_zeros(
            len(hidden), len(steps) + hidden.shape[1], hidden.shape[2]
        )  # with room for what stands behind shorter targets
        found.last_hidden_state = spread.scatter(1, places[:, :, None].expand_as(hidden), hidden)[:, : len(steps)]
        return found


def tensors(batch: Mapping[str, object], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A padded batch of arrays as tensors on a device; a mask without any padding is left out, which is faster."""
    moved = {name: torch.from_numpy(value).to(device) for name, value in batch.items()}  # type: ignore[arg-type]
    if bool(moved["attention_mask"].all()) if "attention_mask" in moved else False:
        del moved["attention_mask"]
    return moved
