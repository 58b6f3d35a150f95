from __future__ import annotations

import pytest
from tiny_decoders import make_byte_tokenizer
from tiny_tokenizers import KINDS, SENTENCES

from lightune.runtime.token_table import make_table


@pytest.mark.parametrize("kind", ["byte-level", "every-split", "byte-fallback"])
@pytest.mark.parametrize("text", [*SENTENCES, "emoji 😀, שלום, tab\tand\nlines", " ", "x = {'a': [1, 2]}"])
def test_pieces_of_a_text_join_to_it(kind: str, text: str) -> None:
    table = make_table(KINDS[kind](), ())
    joined = b"".join(table.piece(token) for token in table.encode(text)).decode()
    assert joined == (f" {text}" if kind == "byte-fallback" else text)  # SentencePiece marks the beginning


def test_pieces_of_words_join_to_what_the_tokenizer_decodes() -> None:
    tokenizer = KINDS["words"]()
    table = make_table(tokenizer, ())
    ids = table.encode("the lower film was slower")
    assert b"".join(table.piece(token) for token in ids).decode() == " " + tokenizer.decode(ids)


def test_special_tokens_have_no_text_and_end_answers_where_they_are_named() -> None:
    tokenizer = make_byte_tokenizer()
    table = make_table(tokenizer, ("<|im_end|>", "\nUser:", ""))
    assert table.ends == {tokenizer.token_to_id("<|im_end|>")}
    assert table.stop == ("\nUser:",)
    ids = table.encode("<|im_start|>hi<|im_end|>")
    assert (ids[0], ids[-1]) == (tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>"))
    assert b"".join(table.piece(token) for token in ids) == b"hi"
    assert {ids[0], ids[-1]} <= table.special


def test_tokens_that_only_the_matrix_has_are_empty() -> None:
    table = make_table(make_byte_tokenizer(), ())
    assert table.piece(len(table.pieces) + 5) == b""


def test_a_lone_surrogate_is_no_error() -> None:
    table = make_table(make_byte_tokenizer(), ())
    assert b"".join(table.piece(token) for token in table.encode("a\ud800")).decode() == "a\ufffd"
