"""Random models of a few thousand weights, one of each family, and rows that they can learn from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from lightune import models as lightune_models
from lightune import sources
from lightune.data import Example
from lightune.methods import make_method
from lightune.tasks import find_task

TEXT = """
    the a an is was it this that film food hotel room staff we they good great lovely fine bad awful poor dull very quite not and but
    then again here there today again on in of with slow quick clean dirty
"""
WORDS = TEXT.split()
MOODS = {
    "good": "happy",
    "great": "happy",
    "lovely": "happy",
    "bad": "sad",
    "awful": "sad",
    "poor": "sad",
    "slow": "tired",
    "dull": "tired",
}

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40}
TRANSFORMERS = {"initializer_range": 0.1, "vocab_size": 64, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": {**SIZES, "type_vocab_size": 1, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
    "electra": {**SIZES, "embedding_size": 16},
    "albert": {**SIZES, "embedding_size": 16},
    "modernbert": {**SIZES, "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "n_inner": 48},
    "llama": {**SIZES, "num_key_value_heads": 2},
}
TWO_STACKS: dict[str, dict[str, Any]] = {  # of which text classification uses the encoder
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48, "feed_forward_proj": "gated-gelu"},
}
DECODERS = ("gpt2", "llama")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """One token for each of WORDS, letters' case ignored; decoders get no special tokens and no padding token, as GPT-2 has none."""
    special = ("[UNK]", "[PAD]", *SPECIAL[2:]) if family == "roberta" else SPECIAL
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys((*special, *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if family in DECODERS:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]")
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_base(family: str, folder: Path, **changes: Any) -> Path:
    """A folder as `save_pretrained` writes it, with random weights that are always the same."""
    config = AutoConfig.for_model(family, **{**TRANSFORMERS, **(FAMILIES | TWO_STACKS)[family], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModel.from_config(config)
    with torch.no_grad():  # biases and norms that are not 0 and 1, so that a test can see them
        for name, item in model.named_parameters():
            if item.ndim == 1:
                item += torch.linspace(-0.1, 0.1, item.numel()) if name.endswith("bias") else torch.linspace(0.0, 0.1, item.numel())
    model.save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder


def make_rows(count: int, task: str = "classify", seed: int = 0) -> list[Example]:
    """Sentences of 3 to 14 words whose target depends on the words in them."""
    draw, rows = random.Random(seed), []
    plain = [word for word in WORDS if word not in MOODS]
    for number in range(count):
        words = draw.choices(plain, k=draw.randint(2, 12))
        chosen = draw.sample(sorted(MOODS), k=draw.randint(1, 2) if task == "multilabel" else 1)
        for word in chosen:
            words.insert(draw.randrange(len(words) + 1), word)
        text, other = " ".join(words), draw.choice(sorted(MOODS))
        mood = MOODS[chosen[0]]
        pair = f"it is {other}" if task in ("pair", "regress") else None
        target: Any = {
            "classify": mood,
            "pair": "same" if MOODS[other] == mood else "other",
            "multilabel": tuple(sorted({MOODS[word] for word in chosen} - {"tired"})),
            "regress": 3.0 + sorted(MOODS).index(chosen[0]) / 2,
        }[task]
        rows.append(Example(text, pair, target, number + 1))
    return rows


def start(
    source: sources.Source, rows: list[Example], task: str = "classify", method: str = "full", *, max_length: int = 24, seed: int = 0
) -> lightune_models.Model:
    """A model on a base, described by its rows, with a method applied."""
    model = lightune_models.start(source, find_task(task).describe(rows), max_length=max_length, seed=seed)
    torch.manual_seed(seed)
    return model.apply(make_method(method))
