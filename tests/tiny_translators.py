"""A random encoder with a decoder, sources with targets that it can learn, and how `fit` is quick with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_conversations import QUICK as QUICK_ANSWERS
from tiny_conversations import write_echoes
from tiny_tokenizers import make_unigram
from tokenizers import decoders, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

QUICK: dict[str, Any] = QUICK_ANSWERS | {"task": "translate"}
SIZES: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 2, "pad_token_id": 2,
    "eos_token_id": 1, "dropout_rate": 0.0,
}  # fmt: skip

__all__ = ["QUICK", "make_tokenizer", "write_echoes", "write_translator"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """As T5's: Unigram, an end token after a text."""
    tokenizer = make_unigram()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def write_translator(folder: Path, *, tied: bool = False, **changes: Any) -> Path:
    """A random T5 as transformers saves one; `tied`: its head is its token table, and its vectors are scaled."""
    tokenizer = make_tokenizer()
    config = T5Config(**{**SIZES, "vocab_size": len(tokenizer) + 4, "tie_word_embeddings": tied, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = T5ForConditionalGeneration(config)
        with torch.no_grad():
            for item in model.parameters():
                item.copy_(torch.randn_like(item) * 0.3 if item.ndim > 1 else 1 + 0.1 * torch.randn_like(item))
            if not tied:
                model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
