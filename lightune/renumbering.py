"""A tokenizer with fewer tokens, renumbered from 0 in their old order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from lightune.errors import InputError
from lightune.vocabularies import Merges, Vocabulary


def cut_tokenizer(tokenizer: Tokenizer, ids: Sequence[int]) -> Tokenizer:
    """The tokenizer with only the tokens of these ids; the n-th of them gets the id n. Padding and truncation are off.

    Raises:
        InputError: an id that is missing or twice, a special token or byte left out, or a tokenizer whose ids cannot be chosen.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if list(ids) != sorted(set(ids)) or not vocabulary.essential <= set(ids) <= vocabulary.tokens.keys():
        raise InputError(f"{len(ids)} ids were given to keep, expected ids of the tokenizer in order, with those of all special tokens.")
    places = {number: place for place, number in enumerate(ids)}
    facts = json.loads(tokenizer.to_str())
    facts["model"] = _cut_model(facts["model"], places)
    facts["added_tokens"] = [item | {"id": places[item["id"]]} for item in facts["added_tokens"] if item["id"] in places]
    facts["post_processor"] = _renumber(facts["post_processor"], places)
    facts["padding"] = facts["truncation"] = None
    made = Tokenizer.from_str(json.dumps(facts))
    if made.get_vocab(with_added_tokens=True) != {vocabulary.tokens[number]: place for number, place in places.items()}:
        raise InputError("The tokenizer numbers its added tokens in a way of its own. Leave its vocabulary as it is.")
    return made


def _cut_model(model: dict[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    """The tokenizer's model with fewer tokens, and of BPE the merges whose tokens are all there."""
    tokens = model["vocab"]
    if isinstance(tokens, list):  # Unigram: a token's id is its place
        kept: Any = [entry for number, entry in enumerate(tokens) if number in places]
        return {**model, "vocab": kept, "unk_id": places.get(model["unk_id"])}
    kept = {token: places[number] for token, number in sorted(tokens.items(), key=lambda item: item[1]) if number in places}
    if "merges" not in model:
        return {**model, "vocab": kept}
    merges = Merges(model)
    left = [list(pair) for pair in merges.ranks if pair[0] in kept and pair[1] in kept and merges.joined(*pair) in kept]
    return {**model, "vocab": kept, "merges": left}


def _renumber(processor: Any, places: Mapping[int, int]) -> Any:
    """A post-processor, or any part of its JSON, with the new ids of the tokens that it adds."""
    if isinstance(processor, list):
        return [_renumber(part, places) for part in processor]
    if not isinstance(processor, dict):
        return processor
    changed = {name: _renumber(part, places) for name, part in processor.items()}
    changed |= {end: [processor[end][0], places[processor[end][1]]] for end in ("cls", "sep") if isinstance(processor.get(end), list)}
    if isinstance(processor.get("ids"), list):
        changed["ids"] = [places[number] for number in processor["ids"]]
    return changed
