"""Which tokens stay: what is essential, what the data use, and what they are likely to use."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tiny_tokenizers
from tokenizers import Tokenizer, models

from lightune.errors import InputError
from lightune.vocabularies import Vocabulary, choose, likelihood

SPELLED_BY_BYTES = ("byte-level", "every-split", "byte-fallback")


@cache
def read(kind: str) -> tuple[Tokenizer, Vocabulary]:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    return tokenizer, Vocabulary.of(tokenizer)


def count(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    ids = [number for text in texts for number in tokenizer.encode(text).ids]
    return np.bincount(ids, minlength=tokenizer.get_vocab_size())


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_a_choice_has_the_count_that_was_asked_and_all_that_is_essential(kind: str) -> None:
    tokenizer, vocabulary = read(kind)
    counts = count(tokenizer, tiny_tokenizers.TEXTS[:3])
    whole = tokenizer.get_vocab_size()
    for keep in (len(vocabulary.essential), len(vocabulary.essential) + 1, whole // 2 + 160, whole - 1, whole):
        chosen = choose(vocabulary, min(keep, whole), counts)
        assert len(chosen) == min(keep, whole)
        assert list(chosen) == sorted(set(chosen))
        assert vocabulary.essential <= set(chosen) <= vocabulary.tokens.keys()
    assert {vocabulary.tokens[number] for number in vocabulary.essential} >= {"<s>", "</s>", "<pad>", "<unk>"}


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_bytes_or_characters_spell_every_text(kind: str) -> None:
    _, vocabulary = read(kind)
    assert len(vocabulary.bytes) == (256 if kind in SPELLED_BY_BYTES else 0)
    assert vocabulary.bytes <= vocabulary.essential
    assert bool(vocabulary.characters) == (kind not in (*SPELLED_BY_BYTES, "words"))
    if kind in ("end-of-word", "continued", "wordpiece"):
        assert max(map(len, vocabulary.characters.values())) == 2  # within a word, and at its end or beginning
    if kind == "unigram":
        assert "▁" in vocabulary.characters


def test_byte_tokens_that_are_not_all_there_spell_nothing() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "<0x00>": 1}, [], byte_fallback=True))
    vocabulary = Vocabulary.of(tokenizer)
    assert not vocabulary.bytes
    assert vocabulary.characters == {"a": (0,)}


def test_the_most_used_tokens_come_first() -> None:
    tokenizer, vocabulary = read("words")
    counts = count(tokenizer, ["room room room was was film"])
    least = len(vocabulary.essential)
    for extra, words in ((1, {"room"}), (2, {"room", "was"}), (3, {"room", "was", "film"})):
        chosen = {vocabulary.tokens[number] for number in choose(vocabulary, least + extra, counts)}
        assert chosen - set(tiny_tokenizers.SPECIAL) == words


def test_without_counts_the_order_of_the_vocabulary_decides() -> None:
    _, vocabulary = read("words")
    assert choose(vocabulary, 20) == tuple(range(20))


def test_characters_of_the_data_stay_before_tokens_that_are_used_as_often() -> None:
    tokenizer, vocabulary = read("wordpiece")
    counts = count(tokenizer, [tiny_tokenizers.SENTENCES[4]])
    used = {character for character in tiny_tokenizers.SENTENCES[4] if character in vocabulary.characters}
    ascii_forms = sum(len(forms) for character, forms in vocabulary.characters.items() if character.isascii())
    needed = {number for character in used for number in vocabulary.characters[character]}
    chosen = set(choose(vocabulary, len(vocabulary.essential) + len(needed) + ascii_forms, counts))
    assert needed <= chosen


def test_what_no_text_leads_to_comes_last() -> None:
    tokenizer, vocabulary = read("wordpiece")
    names = {vocabulary.tokens[number] for number in vocabulary.unreachable}
    assert {"[unused1]", "##影", "##,"} <= names
    chosen = choose(vocabulary, len(vocabulary.tokens) - len(vocabulary.unreachable), count(tokenizer, tiny_tokenizers.TEXTS))
    assert not vocabulary.unreachable & set(chosen)
    assert all(number in chosen for text in tiny_tokenizers.TEXTS for number in tokenizer.encode(text).ids)


@pytest.mark.parametrize("kind", ["byte-level", "every-split", "byte-fallback", "end-of-word", "continued"])
def test_merges_stay_whole(kind: str) -> None:
    tokenizer, vocabulary = read(kind)
    longest = max(vocabulary.tokens.keys() - vocabulary.essential, key=lambda number: len(vocabulary.tokens[number]))
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    counts[longest] = 100
    parts = vocabulary.parts(longest)
    assert len(set(parts)) > 2
    chosen = choose(vocabulary, len(vocabulary.essential.union(parts, *vocabulary.characters.values())), counts)
    assert set(parts) <= set(chosen)


def test_impossible_counts_are_refused() -> None:
    _, vocabulary = read("byte-level")
    whole = len(vocabulary.tokens)
    with pytest.raises(InputError, match=rf"would keep 100 tokens, expected 260 to {whole}: it has {whole}, and needs 260"):
        choose(vocabulary, 100)
    with pytest.raises(InputError, match=rf"would keep {whole + 1} tokens, expected 260 to {whole}"):
        choose(vocabulary, whole + 1)
    with pytest.raises(InputError, match=rf"would keep 260 tokens, expected 261 to {whole}"):
        choose(vocabulary, 260, always=[400])
    assert 400 in choose(vocabulary, 261, always=[400])


def test_tokens_like_those_that_occur_are_likely() -> None:
    draw = np.random.default_rng(0)
    about_food = np.arange(200) < 60
    table = draw.normal(size=(200, 8)) + 3 * np.outer(about_food, draw.normal(size=8))
    seen = about_food & (np.arange(200) % 2 == 0)
    chances = likelihood(table, seen)
    assert chances[about_food & ~seen].min() > chances[~about_food].max()
    np.testing.assert_allclose(likelihood(table * 7 + 5, seen), chances, atol=1e-9)  # units and origin do not matter
    assert not likelihood(table, np.zeros(200, dtype=bool)).any()
    assert not likelihood(table, np.ones(200, dtype=bool)).any()
    assert not likelihood(np.zeros((4, 2)), np.array([True, False, True, False])).any()


def test_a_table_tells_which_unseen_tokens_stay() -> None:
    tokenizer, vocabulary = read("words")
    counts = count(tokenizer, ["film room"])
    number = {token: place for place, token in vocabulary.tokens.items()}
    table = np.zeros((len(number), 4))
    table[[number["film"], number["room"], number["hotel" if "hotel" in number else "show"]]] = 1.0
    chosen = choose(vocabulary, len(vocabulary.essential) + 3, counts, table)
    assert number["show"] in chosen
    assert number["show"] not in choose(vocabulary, len(vocabulary.essential) + 3, counts)
