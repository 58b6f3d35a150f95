"""One pass over a part of the data that notes, for every row, what the doctor's checks compare."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from lightune.data.examples import Example, Examples, fingerprint

# The first word of a letter's Unicode name, and the script that it tells.
SCRIPTS = {
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO"), "Chinese or Japanese"),
    **{
        name.upper(): name
        for name in (
            *("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Hangul", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya"),
            *("Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Georgian", "Armenian"),
            *("Ethiopic", "Khmer", "Mongolian", "Cherokee", "Thaana", "Syriac"),
        )
    },
}


@dataclass
class Survey:
    """What one pass noted of each row of a part, in order."""

    part: str
    examples: Examples
    rows: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # the same for the same normalised text and pair
    exact: list[int] = field(default_factory=list)  # the same for the same text and pair, word for word
    empty: list[bool] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)  # multilabel: a frozenset, so that the order of labels does not count
    scripts: list[str | None] = field(default_factory=list)
    disguised: list[int] = field(default_factory=list)  # rows with Cyrillic or Greek letters inside Latin words

    @cached_property
    def labels(self) -> Counter[str]:
        """How many rows have each label."""
        counts: Counter[str] = Counter()
        for target in self.targets:
            counts.update(() if target is None else target if isinstance(target, frozenset) else (target,))
        return counts


def survey(part: str, examples: Examples) -> Survey:
    """Look at every row of a part once."""
    seen = Survey(part, examples)
    for example in examples:
        script, disguised = _script(example.text)
        seen.rows.append(example.row)
        seen.keys.append(fingerprint(example))
        seen.exact.append(hash((example.text, example.pair)))
        seen.empty.append(_is_empty(example))
        seen.targets.append(frozenset(example.target) if isinstance(example.target, tuple) else example.target)
        seen.scripts.append(script)
        if disguised:
            seen.disguised.append(example.row)
    return seen


def _is_empty(example: Example) -> bool:
    return not example.text.strip() or (example.pair is not None and not example.pair.strip())


@lru_cache(maxsize=1 << 16)
def _script_of(character: str) -> str | None:
    return SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0]) if character.isalpha() else None


def _script(text: str) -> tuple[str | None, bool]:
    """The script of most of a text's letters, and whether letters of two scripts that look alike stand in one word."""
    if text.isascii():
        return ("Latin" if text.lower() != text.upper() else None), False
    counts = Counter(map(_script_of, text))
    del counts[None]
    if not counts:
        return None, False
    mixed = "Latin" in counts and "Cyrillic" in counts and any(_is_disguised(word) for word in text.split())
    return max(counts, key=counts.__getitem__), mixed


def _is_disguised(word: str) -> bool:
    """Whether neighbouring letters of a word are Latin and Cyrillic, as in 'pаypal' with a Cyrillic а."""
    if word.isascii():
        return False
    scripts = [_script_of(character) for character in word]
    return any({first, second} == {"Latin", "Cyrillic"} for first, second in itertools.pairwise(scripts))
