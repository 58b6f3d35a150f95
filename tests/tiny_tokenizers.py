"""Tokenizers of every kind, trained within a second on a few sentences in several scripts."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = (
    "the lower film was slower than the newest, and the widest room was the lowest of all rooms",
    "a newer and wider show, shown slowly to the few who know: 1 2 3 12 123, (so they say)",
    "Über die schöne Straße läuft ein größerer Hund; là-bas, l'été, où naît la fête",
    "这 部 电 影 很 好 看 , 酒店 的 服务 也 很 好",
    "новый фильм был лучше старого, новая гостиница была хуже",
)
TEXTS = [sentence for sentence in SENTENCES for _ in range(3)]
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
OPTIONS = {"show_progress": False, "vocab_size": 480}


def make_byte_level() -> Tokenizer:
    """As GPT-2 and RoBERTa: BPE over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=SPECIAL, **OPTIONS))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def make_every_split() -> Tokenizer:
    """As Llama 3: byte-level BPE that knows several merges to each token, takes whole words as they are, and begins with a token."""
    facts = json.loads(make_byte_level().to_str())
    vocabulary = facts["model"]["vocab"]
    facts["model"]["merges"] = [
        [token[:place], token[place:]]
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        if token not in SPECIAL
        for place in range(1, len(token))
        if token[:place] in vocabulary and token[place:] in vocabulary
    ]
    facts["model"]["ignore_merges"] = True
    facts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [facts["pre_tokenizer"]]}
    tokenizer = Tokenizer.from_str(json.dumps(facts))
    begin = processors.TemplateProcessing(single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return tokenizer


def make_byte_fallback() -> Tokenizer:
    """As Llama 2: BPE over characters, with bytes for those that it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=[*SPECIAL, *BYTES], **(OPTIONS | {"vocab_size": 640})))
    facts = json.loads(tokenizer.to_str())
    facts["added_tokens"] = facts["added_tokens"][: len(SPECIAL)]  # bytes are ordinary tokens
    tokenizer = Tokenizer.from_str(json.dumps(facts))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def make_end_of_word() -> Tokenizer:
    """As the first GPT: BPE over characters whose last one in a word is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=SPECIAL, end_of_word_suffix="</w>", **OPTIONS))
    return tokenizer


def make_continued() -> Tokenizer:
    """BPE over characters of which all but the first in a word are marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="@@"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=SPECIAL, continuing_subword_prefix="@@", **OPTIONS))
    return tokenizer


def make_unigram() -> Tokenizer:
    """As ALBERT and T5: Unigram over words whose beginning is marked."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(special_tokens=SPECIAL, unk_token="<unk>", **(OPTIONS | {"vocab_size": 240}))
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def make_wordpiece() -> Tokenizer:
    """As BERT, with tokens that no text leads to."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(special_tokens=SPECIAL, **OPTIONS)
    tokenizer.train_from_iterator(TEXTS, trainer)
    facts = json.loads(tokenizer.to_str())
    for token in ("[unused1]", "##影", "##,"):
        facts["model"]["vocab"][token] = len(facts["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(facts))
    tokenizer.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def make_words() -> Tokenizer:
    """One token for each word."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": make_byte_level, "every-split": make_every_split, "byte-fallback": make_byte_fallback, "end-of-word": make_end_of_word,
    "continued": make_continued, "unigram": make_unigram, "wordpiece": make_wordpiece, "words": make_words,
}  # fmt: skip
