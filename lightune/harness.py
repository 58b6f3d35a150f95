"""A generator as a model of EleutherAI's lm-evaluation-harness (the package lm_eval), so that its tasks measure a run or an artefact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import log
from typing import Any

import numpy as np

from lightune.errors import InputError, MissingExtra
from lightune.language_evaluation import answer, cut_rows, perplexity, score_continuations, split_pair
from lightune.runtime.generation import GenerationOptions, Generator, Message, Prompt

SURE = log(0.5)  # a token more likely than this is the likeliest
LENGTH = 256  # tokens of an answer where a task names none, as in lm_eval's own models
CHAT = "\x00chat\x00"  # begins the text that stands for a conversation


def as_harness_model(generator: Generator, *, prefix: str = "") -> Any:
    """An `lm_eval.api.model.LM` for ``lm_eval.simple_evaluate(model=..., tasks=...)``.

    Args:
        prefix: a token's text, such as ``<|endoftext|>``, that stands before texts which have no context.

    Requests that are longer than the generator takes lose tokens of their context on the left, as in lm_eval's own models; the returned
    model's `truncated_tokens` counts them. A conversation (``apply_chat_template=True``) goes through the generator's own template.

    Raises:
        MissingExtra: lm_eval is not installed. Later, InputError: a text without context and no prefix, or options that are not known.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise MissingExtra("evaluating with lm_eval", "lm-eval", "harness") from None

    class HarnessModel(LM):
        truncated_tokens = 0
        tokenizer_name = generator.name

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            asked = [request.args for request in requests]
            pairs = [_pair(generator, prefix, context, continuation) for context, continuation in asked]
            self.truncated_tokens += sum(max(0, len(head) + len(rest) - generator.max_length) for head, rest in pairs)
            scored = score_continuations(generator, [(head[-max(generator.max_length - len(rest), 1) :], rest) for head, rest in pairs])
            greedy = _find_greedy(generator, asked, scored)
            return [(float(chances.sum(dtype=np.float64)), same) for chances, same in zip(scored, greedy, strict=True)]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            _need(prefix)
            return [_score_text(generator, request.args[0], prefix) for request in requests]

        def generate_until(self, requests: list[Any]) -> list[str]:
            groups: dict[str, list[int]] = {}
            for place, request in enumerate(requests):
                groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
            found: dict[int, str] = {}
            for places in groups.values():
                prompts = [_prompt(requests[place].args[0]) for place in places]
                made = generator.generate(prompts, read_options(requests[places[0]].args[1]))
                found |= {place: one.text for place, one in zip(places, made, strict=True)}
            return [found[place] for place in range(len(requests))]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise InputError(
                    "The task begins the assistant's answer itself (gen_prefix), which a conversation here cannot. Leave it out."
                )
            return CHAT + json.dumps(chat_history)

    return HarnessModel()


def read_options(wanted: Mapping[str, Any]) -> GenerationOptions:
    """lm_eval's generation arguments (until, max_gen_toks, do_sample, temperature, ...) as options; InputError for one that is not known."""
    values = dict(wanted)
    until = values.pop("until", None) or ()
    length = next((values.pop(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in values), LENGTH)
    if not values.pop("do_sample", values.get("temperature", 0) > 0):
        values["temperature"] = 0.0
    known = {item.name for item in fields(GenerationOptions)}
    if strange := sorted(values.keys() - known):
        raise InputError(f"The task asks for generation with {', '.join(strange)}, which is not known; known: {', '.join(sorted(known))}.")
    stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    return GenerationOptions(**{**values, "stop": stop, "max_tokens": int(length)})


def _prompt(context: str) -> Prompt:
    """A context as it is asked: a conversation where `apply_chat_template` wrote it, plain text else."""
    if not context.startswith(CHAT):
        return context
    turns = json.loads(context.removeprefix(CHAT))
    extras = [{key: value for key, value in turn.items() if key not in ("role", "content")} for turn in turns]
    return [Message(turn["role"], turn["content"], extra) for turn, extra in zip(turns, extras, strict=True)]


def _pair(generator: Generator, prefix: str, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    if context.startswith(CHAT):
        return generator.encode_prompt(_prompt(context)), generator.encode(continuation)
    head, rest = split_pair(generator, context, continuation)
    if len(head):
        return head, rest
    _need(prefix)
    return generator.encode(prefix), rest


def _need(prefix: str) -> None:
    if not prefix:
        raise InputError("The task scores a text without a context: give the token that stands before it, such as prefix='<|endoftext|>'.")


def _score_text(generator: Generator, text: str, prefix: str) -> float:
    """The log-probability of a whole text after the prefix; a long one in parts, each beginning with the last token of the one before."""
    rows = cut_rows(generator, [text], prefix=prefix)
    if not rows:
        return 0.0
    found = perplexity(generator, rows, resamples=0)
    return -log(found.per_token.value) * found.tokens


def _find_greedy(generator: Generator, asked: Sequence[tuple[str, str]], scored: Sequence[np.ndarray]) -> list[bool]:
    """Which continuations are what the generator itself would write.

    A continuation whose every token has more than half of the probability is. For the others the generator writes once for every context;
    where the context had to be cut it cannot, and they count as not.
    """
    sure = [bool((chances > SURE).all()) for chances in scored]
    bare = [context if context.startswith(CHAT) else context.rstrip() for context, _ in asked]
    wanted = [context[len(head) :] + rest for (context, rest), head in zip(asked, bare, strict=True)]
    lengths: dict[str, int] = {}
    for head, chances, known in zip(bare, scored, sure, strict=True):
        if not known and head:
            lengths[head] = max(lengths.get(head, 0), len(chances))
    written: dict[str, str] = {}
    for length in set(lengths.values()):
        heads = [head for head, most in lengths.items() if most == length]
        made = answer(generator, [_prompt(head) for head in heads], GenerationOptions(max_tokens=length))
        written |= {head: one.text for head, one in zip(heads, made, strict=True) if one}
    return [known or (head in written and written[head].startswith(rest)) for head, rest, known in zip(bare, wanted, sure, strict=True)]
