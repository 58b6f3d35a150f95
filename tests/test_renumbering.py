"""A cut tokenizer reads every text: as before where all tokens stayed, and without loss where the old one could read it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocabularies import SPELLED_BY_BYTES, count, read
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from lightune.errors import InputError
from lightune.renumbering import cut_tokenizer
from lightune.runtime.tokenization import Encoder
from lightune.vocabularies import Vocabulary, choose

WORDS = st.sampled_from(sorted({word for text in tiny_tokenizers.SENTENCES for word in text.split()}))
LETTERS = st.text(st.sampled_from(sorted(set("".join(tiny_tokenizers.SENTENCES)))), max_size=12)
TEXTS = st.lists(st.one_of(WORDS, LETTERS, st.text(max_size=12)), max_size=6).map(" ".join)


@cache
def cut(kind: str, share: float) -> tuple[Tokenizer, Tokenizer, dict[int, int]]:
    """The tokenizer, a smaller one, and the new ids of the kept tokens."""
    tokenizer, vocabulary = read(kind)
    least = len(vocabulary.essential.union(*vocabulary.characters.values()))
    keep = least + int(share * (tokenizer.get_vocab_size() - least))
    ids = choose(vocabulary, keep, count(tokenizer, tiny_tokenizers.TEXTS[:6]))
    return tokenizer, cut_tokenizer(tokenizer, ids), {number: place for place, number in enumerate(ids)}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_any_text_is_read_as_before_where_all_of_its_tokens_stayed(kind: str, share: float) -> None:
    tokenizer, small, places = cut(kind, share)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        before, after = tokenizer.encode(text), small.encode(text)
        assert all(number < len(places) for number in after.ids)
        if all(number in places for number in before.ids):
            assert after.ids == [places[number] for number in before.ids]
            assert after.offsets == before.offsets

    check()
    for text in tiny_tokenizers.TEXTS[:6] if kind != "words" and share > 0.4 else ():
        assert small.encode(text).tokens == tokenizer.encode(text).tokens


@pytest.mark.parametrize("kind", [kind for kind in tiny_tokenizers.KINDS if kind != "words"])
def test_no_text_becomes_unreadable(kind: str) -> None:
    tokenizer, vocabulary = read(kind)
    every = {number for forms in vocabulary.characters.values() for number in forms}
    ids = choose(vocabulary, len(vocabulary.essential | every), always=every)
    small, unknown = cut_tokenizer(tokenizer, ids), "<unk>"

    @settings(max_examples=200, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        before, after = tokenizer.encode(text, add_special_tokens=False), small.encode(text, add_special_tokens=False)
        assert unknown in before.tokens or unknown not in after.tokens
        if kind in SPELLED_BY_BYTES:
            assert small.decode(after.ids) == tokenizer.decode(before.ids)

    check()


def test_a_word_of_kept_characters_never_becomes_unknown() -> None:
    tokenizer, small, places = cut("wordpiece", 0.0)
    vocabulary = read("wordpiece")[1]
    kept = [character for character, forms in vocabulary.characters.items() if all(number in places for number in forms)]
    broken = [character for character, forms in vocabulary.characters.items() if 0 < sum(number in places for number in forms) < len(forms)]
    assert len(broken) <= 1  # where one place was left

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.sampled_from(kept), min_size=1, max_size=12))
    def check(word: str) -> None:
        assert "<unk>" not in small.encode(word).tokens or "<unk>" in tokenizer.encode(word).tokens

    check()


@pytest.mark.parametrize("kind", ["byte-level", "every-split", "wordpiece"])
def test_special_tokens_are_added_as_before(kind: str) -> None:
    tokenizer, small, _ = cut(kind, 0.5)
    for pair in (None, "newest room"):
        before, after = (each.encode("the film", pair) if pair else each.encode("the film") for each in (tokenizer, small))
        assert after.tokens == before.tokens
        assert after.type_ids == before.type_ids
        assert after.special_tokens_mask == before.special_tokens_mask


def test_added_tokens_beyond_the_vocabulary_move_with_it() -> None:
    tokenizer = tiny_tokenizers.make_byte_level()
    tokenizer.add_special_tokens(["<extra>"])
    tokenizer.add_tokens([AddedToken("hotelroom", single_word=True), "never"])
    vocabulary = Vocabulary.of(tokenizer)
    assert tokenizer.token_to_id("<extra>") in vocabulary.special
    assert tokenizer.token_to_id("hotelroom") not in vocabulary.special
    ids = choose(vocabulary, 300, count(tokenizer, ["a hotelroom"] * 9))
    small = cut_tokenizer(tokenizer, ids)
    assert small.get_vocab_size() == 300
    assert small.encode("a hotelroom <extra> never").tokens[:5] == ["<s>", "a", "Ġ", "hotelroom", "Ġ"]
    assert small.token_to_id("never") is None
    assert small.decode(small.encode("a hotelroom, never").ids) == "a hotelroom, never"


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_a_cut_tokenizer_is_saved_small_and_read_again(kind: str, tmp_path: Path) -> None:
    tokenizer, small, _ = cut(kind, 0.5)
    Encoder(tokenizer, 32).save(tmp_path / "whole.json")
    Encoder(small, 32).save(tmp_path / "small.json")
    again = Tokenizer.from_file(str(tmp_path / "small.json"))
    assert [again.encode(text).ids for text in tiny_tokenizers.SENTENCES] == [small.encode(text).ids for text in tiny_tokenizers.SENTENCES]
    assert (tmp_path / "small.json").stat().st_size < (tmp_path / "whole.json").stat().st_size


def test_twice_is_as_once() -> None:
    tokenizer, vocabulary = read("byte-level")
    counts = count(tokenizer, tiny_tokenizers.TEXTS)
    first = choose(vocabulary, 400, counts)
    middle = cut_tokenizer(tokenizer, first)
    second = choose(Vocabulary.of(middle), 320, counts[list(first)])
    once = choose(vocabulary, 320, counts)
    assert cut_tokenizer(middle, second).get_vocab() == cut_tokenizer(tokenizer, once).get_vocab()


def test_wrong_ids_are_refused() -> None:
    tokenizer, vocabulary = read("byte-level")
    ids = list(choose(vocabulary, 300))
    for wrong in (ids[::-1], ids[:-1] + ids[-2:], ids[5:], [*ids, 10_000]):
        with pytest.raises(InputError, match="expected ids of the tokenizer in order"):
            cut_tokenizer(tokenizer, wrong)


def test_merges_are_written_in_their_short_form_where_nothing_could_be_misread(tmp_path: Path) -> None:
    plain = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    spaced = Tokenizer(models.BPE({"a": 0, " ": 1, "a ": 2}, [("a", " ")]))
    marked = Tokenizer(models.BPE({"#version": 0, "b": 1, "#versionb": 2}, [("#version", "b")]))
    for tokenizer, text, merges in ((plain, "ab", ["a b"]), (spaced, "a ", [["a", " "]]), (marked, "b", [["#version", "b"]])):
        Encoder(tokenizer, 8).save(tmp_path / "tokenizer.json")
        assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"] == merges
        assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == tokenizer.encode(text).ids


def test_an_unknown_kind_of_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    monkeypatch.setattr("lightune.vocabularies.KINDS", ("BPE",))
    with pytest.raises(InputError, match="The tokenizer's model is 'WordLevel', expected BPE"):
        cut_tokenizer(tokenizer, [0])
