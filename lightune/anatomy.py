"""What a pretrained model is made of: parameters, bytes and work of each part."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightune import architectures, models, sources
from lightune.errors import InputError
from lightune.predictors import find_folder

PARTS = ("token table", "other embeddings", "attention", "feed-forward", "norms and biases", "rest")


def describe_model(target: str) -> dict[str, Any]:
    """Facts on a base or a saved model, by part.

    A weight matrix of m × n costs m · n multiply-adds a token; a shared block (ALBERT) costs them once for each layer that uses it.
    """
    backbone = _backbone(target)
    config: Any = backbone.config
    blocks = architectures.blocks(backbone)
    layers = getattr(config, "num_hidden_layers", len(blocks))
    repeats = layers / len(blocks)
    inside = {id(item): name for block in blocks for name, item in block.named_parameters()}
    table = architectures.word_embedding(backbone).weight
    looked_up = {id(part.weight) for part in backbone.modules() if isinstance(part, nn.Embedding)}  # read, not multiplied
    count, work = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0)
    for name, item in backbone.named_parameters():
        part = "token table" if item is table else _part(inside.get(id(item)), name, item.ndim, id(item) in looked_up)
        count[part] += item.numel()
        if item.ndim >= 2 and id(item) not in looked_up:
            work[part] += item.numel() * (repeats if id(item) in inside else 1)
    total = sum(count.values())
    parts = [
        {
            "part": part,
            "parameters": count[part],
            "bytes": count[part] * 4,
            "share": count[part] / total,
            "multiply_adds_per_token": round(work[part]),
        }
        for part in PARTS
    ]
    return {
        "name": target, "type": config.model_type, "parameters": total, "bytes": total * 4, "blocks": layers, "hidden": config.hidden_size,
        "heads": getattr(config, "num_attention_heads", None), "vocabulary": table.shape[0],
        "longest_input": architectures.longest_input(config), "decoder": architectures.is_decoder(backbone), "parts": parts,
    }  # fmt: skip


def _backbone(target: str) -> nn.Module:
    try:
        folder = find_folder(target)
    except InputError:
        return models.load_backbone(sources.resolve_model(target))
    return models.load(folder if (folder / "model.json").exists() else folder.parents[1] / "model").network.backbone


def _part(inner: str | None, name: str, dimensions: int, looked_up: bool) -> str:
    """The part that a parameter belongs to, from its name inside its block."""
    if dimensions < 2:
        return "norms and biases"
    if inner is None:
        return "other embeddings" if looked_up or "embed" in name.lower() else "rest"
    return "attention" if "att" in inner.lower() else "feed-forward"
