"""Random decoders of a few thousand weights, their tokenizer and their chat format."""

from __future__ import annotations

from typing import Any

import torch
from tiny_tokenizers import make_byte_level
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForCausalLM

from lightune.networks import LanguageNetwork
from lightune.runtime.chat import CHATML, ChatFormat
from lightune.runtime.tokenization import Encoder

CHAT = ChatFormat(CHATML, eos="<|im_end|>", stop=("<|im_end|>",))
LENGTH = 64
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": LENGTH,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "gemma": SIZES,
    "gemma2": {**SIZES, **SLIDING, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**SIZES, **SLIDING, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "n_inner": 48},
}


class Decoder(LanguageNetwork):
    """What is trained and exported. whole: the model of transformers that its parts belong to."""

    def __init__(self, whole: Any) -> None:
        super().__init__(whole.base_model, whole.get_output_embeddings(), ("input_ids", "attention_mask"))
        self.whole = whole
        self.eval()


def make_byte_tokenizer() -> Tokenizer:
    """Byte-level BPE of 480 tokens, and ChatML's two."""
    tokenizer = make_byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # no tokens around a text
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def make_encoder() -> Encoder:
    return Encoder(make_byte_tokenizer(), LENGTH, inputs=("input_ids", "attention_mask"))


def make_decoder(family: str, **changes: Any) -> Decoder:
    """A random model, always the same, whose greedy answers are no mere repetition."""
    tokens = {"bos_token_id": 0, "eos_token_id": 481, "pad_token_id": 2, "vocab_size": 488}
    config = AutoConfig.for_model(
        family, **{**FAMILIES[family], **tokens, "initializer_range": 0.3, "tie_word_embeddings": False, **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Decoder(AutoModelForCausalLM.from_config(config))
