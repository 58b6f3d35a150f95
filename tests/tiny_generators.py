"""Random decoders of a few thousand weights with a tokenizer and a chat format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_tokenizers import TEXTS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModel

from lightune import architectures
from lightune.exports.gguf.tokens import LLAMA3, QWEN2
from lightune.generation import TorchGenerator
from lightune.networks import LanguageNetwork
from lightune.runtime.chat import CHATML, ChatFormat
from lightune.runtime.tokenization import Encoder

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = ChatFormat(CHATML, "", "<|endoftext|>", ("<|im_end|>", "<|endoftext|>"))
PROMPTS = ("the lower film", "a newer and wider show, shown", "1 2 3 12 123", "Über die schöne Straße")
LENGTH = 48
BYTE_1 = "\u0101"  # how byte-level tokenizers write the byte 1

ROTARY = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "llama": ROTARY,
    "mistral": {**ROTARY, "sliding_window": None},
    "qwen2": {name: value for name, value in ROTARY.items() if name != "head_dim"},
    "qwen3": ROTARY,
    "gemma": {**ROTARY, "hidden_activation": "gelu_pytorch_tanh"},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 96, "initializer_range": 0.2},
}
SPLITS: dict[str, Callable[[], list[Any]]] = {
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": lambda: [_isolated(LLAMA3), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
    "qwen2": lambda: [_isolated(QWEN2), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
}


def plain(model: Any, max_length: int = 64) -> TorchGenerator:
    """The model itself as a generator."""
    return TorchGenerator(model.network, model.encoder, model.chat, name="plain", max_length=max_length)


def logits(network: LanguageNetwork, ids: Sequence[int] | np.ndarray) -> torch.Tensor:
    """Float32 [s, v] for one row of ids."""
    with torch.inference_mode():
        return network(torch.as_tensor(np.asarray(ids), dtype=torch.int64)[None])[0]


def make_words(split: str = "gpt-2", every_byte: bool = True) -> Tokenizer:
    """A byte-level BPE with ChatML's tokens, which splits texts as the models of that name in llama.cpp do."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    steps = SPLITS[split]()
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if every_byte or letter != BYTE_1]
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=SPECIAL, vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def make_language(family: str, *, tied: bool = True, rows: int | None = None, tokenizer: Tokenizer | None = None, **changes: Any) -> Any:
    """A model as far as the exports look at it: network, encoder, chat and base."""
    tokenizer = tokenizer or make_words()
    sizes = {"vocab_size": rows or tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **{**DECODERS[family], **sizes, "tie_word_embeddings": tied, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        backbone = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
        table = architectures.word_embedding(backbone)
        head = nn.Linear(table.embedding_dim, table.num_embeddings, bias=False)
        if tied:
            head.weight = table.weight
        network = LanguageNetwork(backbone, head, ("input_ids", "attention_mask"))
        with torch.no_grad():
            for item in network.parameters():  # biases and norms that are not 0 and 1, so that a test can see them
                if item.ndim == 1:
                    item.add_(torch.randn_like(item) * 0.1)
    return SimpleNamespace(network=network.eval(), encoder=Encoder(tokenizer, LENGTH), chat=CHAT, base=SimpleNamespace(name="tiny"))


def rows_of(tokenizer: Tokenizer, texts: Sequence[str] = TEXTS[::3]) -> list[np.ndarray]:
    """Token ids int32 [s] of texts, cut to what the tiny models read."""
    return [np.array(tokenizer.encode(text, add_special_tokens=False).ids[:LENGTH], dtype=np.int32) for text in texts]


def _isolated(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")
