"""ONNX for models that generate: a graph that reads tokens after those it has read, by the keys and values that it is given back.

A decoder is one graph. An encoder with a decoder is two: `encoder.onnx` reads a source once, `model.onnx` writes. Whatever torch can trace is
held, adapters that no GGUF file and no configuration of transformers tells among it; `lightune.runtime.onnx_generation` runs it without torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from lightune import __version__
from lightune.errors import InputError
from lightune.exports.block_quantization import quantize_blocks
from lightune.exports.generative import Graph, describe
from lightune.exports.onnx import capture_call, save, tidy
from lightune.exports.staging import staged
from lightune.generation import name_cache, remembers
from lightune.networks import LanguageNetwork, TranslationNetwork
from lightune.runtime import manifest
from lightune.runtime.chat import ChatFormat
from lightune.runtime.tokenization import Encoder

LABELS = {32: "fp32", 8: "int8", 4: "int4"}
Example = dict[str, Tensor | Sequence[Tensor]]
ROWS, READ, NEW, SOURCE = 2, 5, 3, 7  # sizes of what is traced; none of them stays in the graph


def write(
    network: LanguageNetwork,
    encoder: Encoder,
    chat: ChatFormat,
    folder: str | Path,
    *,
    base: str,
    name: str,
    options: Graph,
    sample: Sequence[Any] = (),
) -> Path:
    """Write a language network as a folder that `lightune.runtime.onnx_generation.load_onnx` runs.

    Args:
        sample: not looked at; weights are rounded to the nearest value.

    Raises:
        InputError: a network that cannot go on from what it has read or that torch cannot trace, or a folder that cannot be written.
    """
    _check(network, encoder)
    translates = isinstance(network, TranslationNetwork)
    graphs = {"encoder": _trace_encoder(network), "model": _trace_writer(network)} if translates else {"model": _trace_decoder(network)}
    facts = {"start": network.start, "end": network.end} if isinstance(network, TranslationNetwork) else {}
    with staged(folder) as draft:
        for file, graph in graphs.items():
            save(graph if options.bits == 32 else quantize_blocks(graph, options.bits), draft / f"{file}.onnx")
        encoder.save(draft / "tokenizer.json")
        kind = "translate" if translates else "generate"
        task = describe(encoder, chat, base=base, name=name, quantization=LABELS[options.bits], kind=kind, **facts)
        (draft / "task.json").write_text(json.dumps(task, ensure_ascii=False, indent=1), encoding="utf-8")
        manifest.write(draft, __version__)
    return Path(folder)


def _check(network: LanguageNetwork, encoder: Encoder) -> None:
    config: Any = network.backbone.config
    if not isinstance(network, TranslationNetwork) and not remembers(network.backbone):
        raise InputError(
            "This model reads its whole text anew for every token, so no graph can go on from what it has read. "
            "Choose a method that changes or adds weights (lora, houlsby), or merge."
        )
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < encoder.max_length:
        raise InputError(
            f"{config.model_type} looks back {window} tokens in some layers, the model takes texts of {encoder.max_length}. "
            f"Export it with a max-length of at most {window}, or as gguf."
        )


class _Decoder(nn.Module):
    """One step of a decoder; names of what comes in are those of the graph."""

    def __init__(self, network: LanguageNetwork) -> None:
        super().__init__()
        self.backbone, self.head, self.cache = network.backbone, network.head, name_cache(network.backbone)

    def forward(self, tokens: Tensor, positions: Tensor, bias: Tensor, places: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Logits float32 [b, m, v] at places int64 [b, m] among tokens int64 [b, s], and all keys and values [b, h, t, d].

        positions: int64 [b, s] of the tokens. bias: float32 [b, 1, s, t], added to the scores of attention, very low where nothing may be seen.
        past: keys and values [b, h, t - s, d] of each layer in turn.
        """
        cache = _fill(past)
        found = self.backbone(input_ids=tokens, position_ids=positions, attention_mask=bias, use_cache=True, **{self.cache: cache})
        logits = self.head(_pick(found.last_hidden_state, places)).float()
        cap = getattr(self.backbone.config, "final_logit_softcapping", None)
        return (torch.tanh(logits / cap) * cap if cap else logits, *_flatten(cache))


class _Reader(nn.Module):
    """The encoder of two stacks, and what the decoder's layers make of its vectors."""

    def __init__(self, network: TranslationNetwork) -> None:
        super().__init__()
        self.backbone = network.backbone

    def forward(self, source: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Keys and values [b, h, s, d] of each of the decoder's layers in turn, for source int64 [b, s] with its mask int64 [b, s]."""
        backbone: Any = self.backbone
        hidden = backbone.encoder(input_ids=source, attention_mask=mask).last_hidden_state
        layers = [block.layer[1].EncDecAttention for block in backbone.decoder.block]
        made = [matrix(hidden).unflatten(-1, (-1, layer.key_value_proj_dim)) for layer in layers for matrix in (layer.k, layer.v)]
        return tuple(item.transpose(1, 2) for item in made)


class _Writer(nn.Module):
    """One step of the decoder of two stacks."""

    def __init__(self, network: TranslationNetwork) -> None:
        super().__init__()
        backbone: Any = network.backbone
        self.decoder, self.cache = backbone.decoder, name_cache(backbone.decoder)
        self.head, self.scale = network.head, network.scale

    def forward(self, tokens: Tensor, mask: Tensor, places: Tensor, cross: list[Tensor], past: list[Tensor]) -> tuple[Tensor, ...]:
        """As of `_Decoder`; mask: int64 [b, s] of the source, cross: what `_Reader` gives."""
        cache = EncoderDecoderCache(_fill(past), _fill(cross))
        cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
        found = self.decoder(
            input_ids=tokens, use_cache=True, encoder_attention_mask=mask, **{self.cache: cache},
            encoder_hidden_states=mask[:, :, None].float(),  # only their number is looked at, the keys and values are there
        )  # fmt: skip
        logits = self.head(_pick(found.last_hidden_state * self.scale, places)).float()
        return (logits, *_flatten(cache.self_attention_cache))


def _fill(flat: list[Tensor]) -> DynamicCache:
    """A cache that holds keys and values."""
    cache = DynamicCache()
    for layer, pair in enumerate(zip(flat[::2], flat[1::2], strict=True)):
        cache.update(*pair, layer)
    return cache


def _flatten(cache: Any) -> list[Tensor]:
    """The keys and values of a cache, layer by layer."""
    return [item for layer in cache.layers for item in (layer.keys, layer.values)]


def _pick(hidden: Tensor, places: Tensor) -> Tensor:
    """Vectors [b, m, d] at places [b, m] of [b, s, d]."""
    return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[-1]))


def _trace_decoder(network: Any) -> ir.Model:
    cache, word = DynamicCache(), torch.ones(1, 1, dtype=torch.long, device=network.head.weight.device)
    with torch.inference_mode():
        network.backbone(input_ids=word, use_cache=True, **{name_cache(network.backbone): cache})
    past = [torch.zeros(ROWS, item.shape[1], READ, item.shape[3]) for item in _flatten(cache)]
    example: Example = {
        "tokens": torch.ones(ROWS, NEW, dtype=torch.long), "positions": READ + torch.arange(NEW).repeat(ROWS, 1),
        "bias": torch.zeros(ROWS, 1, NEW, READ + NEW), "places": torch.zeros(ROWS, 1 + NEW, dtype=torch.long), "past": past,
    }  # fmt: skip
    axes = {"tokens": (0, 1), "positions": (0, 1), "bias": (0, 2, 3), "places": (0, 1), "past": (0, 2)}
    return tidy(capture_call(_Decoder(network).eval(), example, axes, _outputs(len(past))))


def _trace_encoder(network: Any) -> ir.Model:
    example = {"source": torch.ones(ROWS, SOURCE, dtype=torch.long), "mask": torch.ones(ROWS, SOURCE, dtype=torch.long)}
    outputs = [f"cross_{place}" for place in range(2 * len(network.backbone.decoder.block))]
    return tidy(capture_call(_Reader(network).eval(), example, {"source": (0, 1), "mask": (0, 1)}, outputs))


def _trace_writer(network: Any) -> ir.Model:
    layers = [block.layer[1].EncDecAttention for block in network.backbone.decoder.block]
    heads = [layer.k.out_features // layer.key_value_proj_dim for layer in layers for _ in range(2)]
    size = layers[0].key_value_proj_dim
    example: Example = {
        "tokens": torch.ones(ROWS, NEW, dtype=torch.long), "mask": torch.ones(ROWS, SOURCE, dtype=torch.long),
        "places": torch.zeros(ROWS, 1 + NEW, dtype=torch.long), "cross": [torch.zeros(ROWS, head, SOURCE, size) for head in heads],
        "past": [torch.zeros(ROWS, head, READ, size) for head in heads],
    }  # fmt: skip
    axes = {"tokens": (0, 1), "mask": (0, 1), "places": (0, 1), "cross": (0, 2), "past": (0, 2)}
    return tidy(capture_call(_Writer(network).eval(), example, axes, _outputs(len(heads))))


def _outputs(count: int) -> list[str]:
    return ["logits", *(f"present_{place}" for place in range(count))]
