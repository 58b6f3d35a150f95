"""A tokenizer as llama.cpp reads it: texts and kinds of tokens, merges or scores, and the name of the way in which it splits texts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lightune.errors import CheckFailed, InputError
from lightune.runtime.llama import Llama
from lightune.vocabularies import Merges, Vocabulary

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the kinds of tokens in GGUF
GPT2 = "gpt-2"
DIGIT = "digit"
BYTES = "bytes"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = rf"{_ENDINGS}\p{{N}}{{1,3}}{_REST}", rf"{_ENDINGS}\p{{N}}{_REST}"
SPLITTERS: dict[tuple[tuple[str, ...], bool], str] = {  # what splits, and whether whole words are taken without merging: llama.cpp's name
    ((GPT2, BYTES), False): "gpt-2",
    ((DIGIT, GPT2, BYTES), False): "smollm",
    ((LLAMA3, BYTES), True): "llama-bpe",
    ((QWEN2, BYTES), False): "qwen2",
}
CURE = "Export hf instead."
PROBES = (
    "The quick brown fox can't jump over 12345 lazy dogs; it'll try at 3.14 o'clock, they've said.",
    "find . -type f -name '*.txt' -mtime +7 -exec rm -f {} \\; | sort -u\n\n\tdef main(x: int) -> None:\r\n        return x**2  # 100 %\n",
    "Über Straße, l'été où naît la fête; новый фильм; 这部电影很好看。 한국어 日本語 😀👍🏽 ½ x²   \n  end ",
)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a model by id, as GGUF holds them.

    Attributes:
        model: gpt2 (BPE over bytes) or llama (BPE over characters with bytes for the rest, as SentencePiece makes it).
        splitter: llama.cpp's name for what splits texts into words; "default" for llama.
        texts, kinds: of each token.
        merges: for gpt2, in their order. scores: for llama, the higher the earlier a pair is merged into the token.
        space_first: whether a space is put before every text.
    """

    model: str
    splitter: str
    texts: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_first: bool = False

    def metadata(self) -> dict[str, Any]:
        """What is written, by key without ``tokenizer.ggml.``; lists are arrays."""
        facts: dict[str, Any] = {"model": self.model, "pre": self.splitter, "tokens": list(self.texts), "token_type": list(self.kinds)}
        if self.model == "gpt2":
            return facts | {"merges": list(self.merges)}
        return facts | {"scores": list(self.scores), "add_space_prefix": self.space_first}


def describe_tokens(tokenizer: Tokenizer, rows: int) -> Tokens:
    """The tokens of a tokenizer for a table of so many rows; rows beyond the tokenizer's get tokens that nothing leads to.

    Raises:
        InputError: a kind of tokenizer that llama.cpp has no equal of, or more tokens than rows.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if (most := max(vocabulary.tokens) + 1) > rows:
        raise InputError(
            f"The tokenizer has ids up to {most - 1}, but the token table has {rows} rows. Widen the table, or remove added tokens."
        )
    model = vocabulary.model
    if model["type"] == "BPE" and model.get("byte_fallback") and vocabulary.bytes:
        return _by_scores(vocabulary, rows)
    if model["type"] == "BPE" and not _marked(model):
        splitter = find_splitter(vocabulary.facts)
        texts, kinds = _filled(vocabulary, rows)
        return Tokens("gpt2", splitter, texts, kinds, merges=tuple(f"{left} {right}" for left, right in Merges(model).ranks))
    raise InputError(
        f"llama.cpp has no equal of this {model['type']} tokenizer, expected BPE over bytes, or with bytes for unknown characters. {CURE}"
    )


def find_splitter(facts: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a byte-level BPE splits texts into words.

    facts: the tokenizer's own JSON. A normalizer to NFC, as Qwen's tokenizers have, is left out, as llama.cpp does.

    Raises:
        InputError: a way that has no name there.
    """
    normalizer, whole = facts["normalizer"], bool(facts["model"].get("ignore_merges"))
    steps = tuple(_split_steps(facts["pre_tokenizer"]))
    name = SPLITTERS.get((steps, whole))
    if name is None or (normalizer is not None and normalizer["type"] != "NFC"):
        told = json.dumps({"normalizer": normalizer, "pre_tokenizer": facts["pre_tokenizer"], "ignore_merges": whole}, ensure_ascii=False)
        raise InputError(f"llama.cpp has no name for the way in which this tokenizer splits texts: {told[:300]}. {CURE}")
    return name


def check_tokens(path: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Prove that llama.cpp makes of texts the tokens that the tokenizer makes of them.

    path: the GGUF file. texts: some of what the model will read; a few in several scripts are read besides.

    Raises:
        CheckFailed: it does not; the message shows the first text that differs. IntegrityError: llama.cpp cannot load the file.
    """
    llama = Llama(path, threads=1, context=32, slots=1)
    try:
        for text in (unicodedata.normalize("NFC", text) for text in (*PROBES, *texts)):
            ours, theirs = tokenizer.encode(text, add_special_tokens=False).ids, list(llama.tokenize(text))
            if ours != theirs:
                place = next(
                    (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), min(len(ours), len(theirs))
                )
                raise CheckFailed(
                    f"llama.cpp reads {text[:60]!r} otherwise than this tokenizer: from token {place} on it has {theirs[place : place + 4]} in "
                    f"place of {ours[place : place + 4]}. {CURE}"
                )
    finally:
        llama.close()


def added_ends(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after every text by itself."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    start = next(place for place in range(len(whole) - len(plain) + 1) if whole[place : place + len(plain)] == plain)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def _split_steps(step: Mapping[str, Any] | None) -> Iterator[str]:
    """What a pre-tokenizer splits by, in order: a regular expression, or one of GPT2, DIGIT and BYTES; others under their own name."""
    if step is None:
        return
    kind = step["type"]
    if kind == "Sequence":
        for part in step["pretokenizers"]:
            yield from _split_steps(part)
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        yield from (*(GPT2,) * step["use_regex"], BYTES)
    elif kind == "Digits" and step["individual_digits"]:
        yield DIGIT
    elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        yield step["pattern"].get("Regex", "")
    else:
        yield kind


def _filled(vocabulary: Vocabulary, rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and kind of every id below `rows`."""
    added = {item["id"]: CONTROL if item["special"] else OWN for item in vocabulary.facts["added_tokens"]}
    texts = [vocabulary.tokens.get(number, f"[UNUSED{number}]") for number in range(rows)]
    kinds = [added.get(number, NORMAL) if number in vocabulary.tokens else UNUSED for number in range(rows)]
    return tuple(texts), tuple(kinds)


def _marked(model: Mapping[str, Any]) -> bool:
    return bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))


def _by_scores(vocabulary: Vocabulary, rows: int) -> Tokens:
    """BPE over characters: llama.cpp merges the pair with the highest score, so a token's score is its merge's rank, negative."""
    facts, merges = vocabulary.facts, Merges(vocabulary.model)
    texts, kinds = _filled(vocabulary, rows)
    ranks: dict[str, int] = {}
    for pair, rank in merges.ranks.items():
        ranks.setdefault(merges.joined(*pair), rank)
    scores = [-float(ranks.get(text, len(merges.ranks))) for text in texts]
    unknown = vocabulary.model.get("unk_token")
    kinds = tuple(
        BYTE if number in vocabulary.bytes else UNKNOWN if text == unknown else kind
        for number, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    )
    return Tokens("llama", "default", texts, kinds, scores=tuple(scores), space_first=_space_first(facts))


def _space_first(facts: Mapping[str, Any]) -> bool:
    """Whether spaces become ▁ and one is put first; other ways to prepare a text are refused."""
    normalizer, splitter = facts["normalizer"], facts["pre_tokenizer"]
    if normalizer is None and splitter is not None and splitter["type"] == "Metaspace":
        if (
            not splitter.get("split", True)
            and splitter["replacement"] == "▁"
            and splitter["prepend_scheme"] in ("first", "always", "never")
        ):
            return splitter["prepend_scheme"] != "never"
    elif normalizer is not None and (splitter is None or _harmless(splitter)):
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        known = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        if steps in (known, known[1:]):
            return len(steps) == 2
    told = json.dumps({"normalizer": normalizer, "pre_tokenizer": splitter}, ensure_ascii=False)
    raise InputError(f"llama.cpp has no equal of the way in which this tokenizer prepares texts: {told[:300]}. {CURE}")


def _harmless(splitter: Mapping[str, Any]) -> bool:
    """Gemma's splitter looks for spaces, of which its normalizer has left none."""
    return splitter["type"] == "Split" and splitter["pattern"] == {"String": " "}
