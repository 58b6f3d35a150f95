from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_artifacts import make_tokenizer

from lightune.errors import InputError, IntegrityError
from lightune.runtime.tokenization import INPUTS, Encoder, batches, texts_and_pairs


def make_encoder(max_length: int = 8) -> Encoder:
    return Encoder(make_tokenizer(), max_length, 0, INPUTS)


def test_special_tokens_and_types() -> None:
    encoded = make_encoder().encode(["good film", "bad"], [None, "room"])
    assert [row.tolist() for row in encoded.ids] == [[2, 4, 6, 3], [2, 5, 3, 7, 3]]
    assert encoded.types is not None
    assert [row.tolist() for row in encoded.types] == [[0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert encoded.truncated_tokens == 0


def test_a_long_text_is_cut_counted_and_keeps_its_end_token() -> None:
    encoded = make_encoder(5).encode(["good bad film room the", "good"])
    assert [row.tolist() for row in encoded.ids] == [[2, 4, 5, 6, 3], [2, 4, 3]]
    assert encoded.lengths.tolist() == [7, 3]
    assert encoded.truncated_tokens == 2


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(9, 2, (3, 2)), (2, 9, (2, 3)), (9, 9, (2, 3)), (9, 8, (3, 2)), (9, 0, (5, 0)), (0, 9, (0, 5))],
)
def test_of_a_pair_the_longer_text_is_cut(first: int, second: int, kept: tuple[int, int]) -> None:
    encoded = make_encoder(8).encode(["good " * first], ["bad " * second])
    ids = encoded.ids[0].tolist()
    assert (ids.count(4), ids.count(5)) == kept
    assert encoded.truncated_tokens == first + second - 5


def test_padding_fills_on_the_right() -> None:
    encoder = Encoder(make_tokenizer(), 8, 1, INPUTS)
    batch = encoder.pad(encoder.encode(["good", "good bad film"]))
    assert batch["input_ids"].tolist() == [[2, 4, 3, 1, 1], [2, 4, 5, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert all(array.dtype == np.int64 for array in batch.values())


def test_padding_takes_the_rows_that_are_named() -> None:
    encoder = make_encoder()
    encoded = encoder.encode(["good bad film room", "good", "bad"])
    assert encoder.pad(encoded, [2, 1])["input_ids"].tolist() == [[2, 5, 3], [2, 4, 3]]


def test_only_the_inputs_of_the_model() -> None:
    encoder = Encoder(make_tokenizer(), 8)
    encoded = encoder.encode(["good"])
    assert encoded.types is None
    assert set(encoder.pad(encoded)) == {"input_ids", "attention_mask"}


def test_a_text_without_tokens_becomes_one() -> None:
    tokenizer = make_tokenizer()
    tokenizer.post_processor = None
    encoder = Encoder(tokenizer, 8, 0, INPUTS)
    encoded = encoder.encode(["", "good"])
    assert [row.tolist() for row in encoded.ids] == [[0], [4]]
    assert encoder.pad(encoded)["attention_mask"].tolist() == [[1], [1]]
    assert encoded.truncated_tokens == 0


def test_long_emoji_and_right_to_left_texts() -> None:
    encoded = make_encoder(8).encode(["good " * 20_000, "😀", "שלום 😀", "x" * 100_000, "a\x00b"])
    assert [len(row) for row in encoded.ids] == [8, 3, 4, 3, 3]
    assert encoded.truncated_tokens == 20_002 - 8


def test_a_lone_surrogate_is_read_as_a_replacement() -> None:
    encoder = make_encoder()
    assert encoder.encode(["good \ud800"]).ids[0].tolist() == encoder.encode(["good \ufffd"]).ids[0].tolist()
    assert encoder.encode(["\ud83d\ude00"]).ids[0].tolist() == encoder.encode(["😀"]).ids[0].tolist()


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(InputError, match=r"Example 1 is 7 of type int"):
        make_encoder().encode(["good", 7])  # type: ignore[list-item]


def test_a_length_without_room_for_text() -> None:
    with pytest.raises(InputError, match=r"max-length is 3, expected more than 3"):
        make_encoder(3)


def test_no_texts() -> None:
    encoder = make_encoder()
    encoded = encoder.encode([])
    assert len(encoded) == 0
    assert encoder.pad(encoded)["input_ids"].shape == (0, 0)


def test_saved_and_opened_again(tmp_path: Path) -> None:
    encoder = make_encoder()
    encoder.save(tmp_path / "tokenizer.json")
    again = Encoder.from_file(tmp_path / "tokenizer.json", **encoder.to_dict())
    assert again.encode(["good 😀 שלום"]).ids[0].tolist() == encoder.encode(["good 😀 שלום"]).ids[0].tolist()
    assert "\n" not in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match="no readable tokenizer"):
        Encoder.from_file(tmp_path / "tokenizer.json", 8)


@given(st.lists(st.tuples(st.text(max_size=40), st.none() | st.text(max_size=40)), max_size=6), st.integers(4, 12))
def test_any_text_fits_and_nothing_is_lost_uncounted(rows: list[tuple[str, str | None]], limit: int) -> None:
    encoded = Encoder(make_tokenizer(), limit, 0, INPUTS).encode(*texts_and_pairs(rows))
    assert all(1 <= len(ids) <= limit for ids in encoded.ids)
    assert encoded.truncated_tokens == int(encoded.lengths.sum()) - sum(len(ids) for ids in encoded.ids)


@given(st.lists(st.integers(0, 600), max_size=80), st.integers(1, 9), st.integers(1, 900))
def test_batches_hold_every_example_once_and_keep_their_limits(lengths: list[int], rows: int, tokens: int) -> None:
    groups = batches(lengths, rows, tokens)
    assert sorted(place for group in groups for place in group.tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or (len(group) <= rows and len(group) * max(lengths[place] for place in group) <= tokens)


def test_examples_in_every_form() -> None:
    rows = ["a", ("b", "c"), ["d", "e"], SimpleNamespace(text="f", pair=None), SimpleNamespace(text="g")]
    assert texts_and_pairs(rows) == (["a", "b", "d", "f", "g"], [None, "c", "e", None, None])
    assert texts_and_pairs(["a"]) == (["a"], None)


def test_a_single_text_is_no_list_of_texts() -> None:
    with pytest.raises(InputError, match=r"Write \[text\]"):
        texts_and_pairs("good")
    with pytest.raises(InputError, match=r"Example 0 is 3, expected a text"):
        texts_and_pairs([3])
