"""What a generator is worth: perplexity, multiple choice by likelihood, and its answers against references. No torch is needed for it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightune.data import Conversation
from lightune.errors import InputError
from lightune.evaluation import WORST, Score
from lightune.judging import choose_metrics, group_references, score_answers
from lightune.metrics import bootstrap
from lightune.recipes import ProgramOptions
from lightune.runtime.generation import Generated, GenerationOptions, Generator, Message, Prompt
from lightune.sandbox.problems import Problem, pass_at_k, read_problem, run_samples

SAMPLES = 10  # answers shown
ROWS_AT_ONCE = 64  # rows of token ids handed over in one call
DRAWN_AT = 0.8  # the temperature at which several programs are drawn (Chen et al. 2021, section 3.3)


@dataclass(frozen=True)
class TokenRow:
    """Token ids int32 [s]; trained: bool [s], which of them are scored (the first never is: nothing stands before it).

    bytes: how many bytes of UTF-8 the scored tokens stand for, where that is known.
    """

    ids: np.ndarray
    trained: np.ndarray
    bytes: float | None = None


@dataclass(frozen=True)
class Perplexity:
    """per_token: exp of the mean loss of a token. per_byte: exp of the loss of a byte, None where no row knows its bytes.

    tokens, bytes: how many were scored. Intervals come from a bootstrap over rows. losses: float [n], the sum of each row's. sizes: float [n],
    its bytes, None where no row knows them.
    """

    per_token: Score
    per_byte: Score | None
    tokens: int
    bytes: float | None
    losses: np.ndarray
    sizes: np.ndarray | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        facts = {"perplexity": self.per_token.to_dict(), "byte_perplexity": self.per_byte.to_dict() if self.per_byte else None}
        return {**facts, "tokens": self.tokens, "bytes": None if self.bytes is None else round(self.bytes)}


@dataclass(frozen=True)
class Question:
    """A question with several continuations of which one, number `gold`, is right. prompt and choice are read as they stand, joined by a blank."""

    prompt: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Questions:
    """Different questions, each once.

    conversations: the first that asks each. prompts: what is asked, all before the last answer. references: every right answer of each.
    available: how many different questions there were to draw from.
    """

    conversations: tuple[Conversation, ...]
    prompts: tuple[tuple[Message, ...], ...]
    references: tuple[tuple[str, ...], ...]
    available: int


def cut_rows(generator: Generator, texts: Iterable[str], *, prefix: str = "", length: int | None = None) -> list[TokenRow]:
    """Plain texts as rows of at most `length` tokens (by default all that the generator takes), every token but a text's first scored once.

    A row begins with the last token of the one before. prefix: a token's text, such as ``<|endoftext|>``, that is put before each text, so that
    its first token is scored too; without it that token's share of the bytes is left out. Bytes are shared out among a text's rows by tokens.
    """
    most = length or generator.max_length
    if not 2 <= most <= generator.max_length:
        raise InputError(
            f"Rows of {most} tokens were asked for, expected 2 to {generator.max_length}, the most that {generator.name} takes."
        )
    rows, before = [], generator.encode(prefix) if prefix else np.empty(0, np.int32)
    for text in texts:
        tokens = generator.encode(text)
        ids, size = np.concatenate([before[-1:], tokens]), len(text.encode("utf-8", "surrogatepass")) / max(len(tokens), 1)
        for start in range(0, len(ids) - 1, most - 1):
            part = ids[start : start + most]
            rows.append(TokenRow(part, np.ones(len(part), bool), size * (len(part) - 1)))
    return rows


def perplexity(generator: Generator, rows: Sequence[TokenRow], *, resamples: int = 300, seed: int = 0) -> Perplexity:
    """Perplexity over the trained tokens of all rows.

    Raises:
        InputError: no token is scored.
    """
    masks = [row.trained[1:].astype(bool) for row in rows]
    counts = np.array([mask.sum() for mask in masks], float)
    if not counts.sum():
        raise InputError(f"None of the tokens of {len(rows)} rows is scored, expected at least one trained token after a row's first.")
    scored = zip(score_rows(generator, [row.ids for row in rows]), masks, strict=True)
    losses = np.array([-chances[mask].sum(dtype=np.float64) for chances, mask in scored])
    sizes = None if any(row.bytes is None for row in rows) else np.array([row.bytes for row in rows], float)

    def measure(chosen: np.ndarray) -> dict[str, float]:
        total = losses[chosen].sum()
        units = {"token": counts[chosen].sum()} | ({"byte": sizes[chosen].sum()} if sizes is not None else {})
        return {name: float(np.exp(total / unit)) if unit else float("nan") for name, unit in units.items()}

    scores = _with_intervals(measure, len(rows), resamples, seed)
    whole = None if sizes is None else float(sizes.sum())
    return Perplexity(scores["token"], scores.get("byte"), int(counts.sum()), whole, losses, sizes)


def score_rows(generator: Generator, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`token_logprobs` of many rows, ROWS_AT_ONCE in a call, those of like length together; in the rows' order."""
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    for start in range(0, len(order), ROWS_AT_ONCE):
        places = order[start : start + ROWS_AT_ONCE]
        found |= zip(places, generator.token_logprobs([rows[place] for place in places]), strict=True)
    return [found[place] for place in range(len(rows))]


def score_continuations(generator: Generator, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """The log-probability of every token of a continuation after its context; pairs of token ids as `split_pair` gives them.

    Raises:
        InputError: a pair longer than the generator takes, or an empty context or continuation.
    """
    longest = max((len(context) + len(rest) for context, rest in pairs), default=0)
    if longest > generator.max_length:
        raise InputError(
            f"A context with its continuation has {longest} tokens, {generator.name} takes {generator.max_length}. Shorten it."
        )
    if any(not len(context) or not len(rest) for context, rest in pairs):
        raise InputError(
            "A context or a continuation is empty, expected at least one token in each. Give a prefix token for empty contexts."
        )
    scored = score_rows(generator, [np.concatenate(pair) for pair in pairs])
    return [chances[len(context) - 1 :] for chances, (context, _) in zip(scored, pairs, strict=True)]


def split_pair(generator: Generator, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a context and of what follows it, as they stand in the ids of both together.

    Where a token spans the seam it belongs to the continuation, so that none goes unscored; blanks at the context's end do as well.
    """
    bare = context.rstrip()
    whole, head = generator.encode(context + continuation), generator.encode(bare)
    shared = min(len(whole), len(head))
    differ = np.flatnonzero(whole[:shared] != head[:shared])
    seam = int(differ[0]) if len(differ) else shared
    return whole[:seam], whole[seam:]


def read_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Rows with query or question, choices, and gold or answer (the right one's number, from 0). The prompt ends in ``Answer:``."""
    questions = []
    for number, row in enumerate(rows, 1):
        query, gold = row.get("query", row.get("question")), row.get("gold", row.get("answer"))
        choices = row.get("choices")
        if (
            not isinstance(query, str)
            or not isinstance(choices, (list, tuple))
            or not isinstance(gold, int)
            or not 0 <= gold < len(choices)
        ):
            raise InputError(
                f"Row {number} is no question: expected query, choices (a list) and gold (a number below their count), got {row!r:.200}"
            )
        query = query if query.startswith("Question:") else f"Question: {query}"
        questions.append(Question(f"{query}\nAnswer:", tuple(choices), gold))
    return questions


def multiple_choice(
    generator: Generator, questions: Sequence[Question], *, limit: int | None = None, resamples: int = 300, seed: int = 0
) -> dict[str, Any]:
    """Accuracy of the choice with the largest log-probability (`accuracy`), and per byte of the choice (`accuracy_norm`).

    The same as lm-evaluation-harness's acc and acc_norm. Also `predictions`, the numbers of the choices by both.
    limit: at most so many questions, drawn by the seed.

    Raises:
        InputError: there are no questions, or one does not fit the generator.
    """
    if not questions:
        raise InputError("There are no questions, expected at least one.")
    available = len(questions)
    questions = [questions[place] for place in np.sort(np.random.default_rng(seed).permutation(available)[:limit])]
    pairs = [split_pair(generator, question.prompt, f" {choice}") for question in questions for choice in question.choices]
    sums = iter([float(chances.sum(dtype=np.float64)) for chances in score_continuations(generator, pairs)])
    picks = np.empty((len(questions), 2), int)
    for place, question in enumerate(questions):
        totals = np.array([next(sums) for _ in question.choices])
        sizes = np.array([max(len(choice.encode()), 1) for choice in question.choices])
        picks[place] = totals.argmax(), (totals / sizes).argmax()
    right = picks == np.array([question.gold for question in questions])[:, None]
    names = ("accuracy", "accuracy_norm")
    scores = _with_intervals(lambda rows: dict(zip(names, right[rows].mean(0).tolist(), strict=True)), len(questions), resamples, seed)
    scored = {name: score.to_dict() for name, score in scores.items()}
    facts = {"rows": len(questions), "available": available}
    return {**facts, "scores": {"primary": "accuracy", **scored}, "predictions": picks.tolist()}


def answer(generator: Generator, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated | None]:
    """The answers to prompts in their order; None where a prompt leaves no room for an answer."""
    sizes = [generator.count_tokens(prompt) for prompt in prompts]
    fits = [place for place, size in enumerate(sizes) if size < generator.max_length]
    found = dict(zip(fits, generator.generate([prompts[place] for place in fits], options), strict=True)) if fits else {}
    return [found.get(place) for place in range(len(prompts))]


def ask(conversation: Conversation) -> tuple[tuple[Message, ...], str]:
    """A conversation as a question and its reference: the turns before its last answer, and that answer.

    Raises:
        InputError: it has no answer, or nothing before it.
    """
    last = max((place for place, turn in enumerate(conversation.messages) if turn.role == "assistant"), default=0)
    if not last:
        raise InputError(f"Row {conversation.row} has no answer to a question, expected an assistant's turn after another. Leave it out.")
    return conversation.messages[:last], conversation.messages[last].content


def evaluate_generation(
    generator: Generator,
    conversations: Sequence[Conversation],
    *,
    options: GenerationOptions | None = None,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    part: str = "test",
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """Generate the last answer of every conversation and score it; the record is ready for `evaluation.json`.

    Rows with the same question are one, with all their answers as references. A question that leaves no room for an answer counts with an
    empty one.

    Args:
        metrics: names in `judging.METRICS`, the first decides; by default what suits the references.
        limit: at most so many different questions, drawn by the seed.

    Returns:
        part; rows (different questions asked); available (all that there are); scores {primary, name: {value, low, high}}; metrics, options;
        too_long, without_tools (rows whose tools the prompt cannot carry); finishes (count by reason), empty (answers without text),
        prompt_tokens, tokens, seconds; worst and samples: rows with text, target (list), answer, finish, tokens and every metric's value.
    """
    if not conversations:
        raise InputError(f"The {part} data have no rows, expected at least one conversation with an answer.")
    questions = draw_questions(conversations, limit=limit, seed=seed)
    start = time.perf_counter()
    made = answer(generator, questions.prompts, options or GenerationOptions())
    seconds = time.perf_counter() - start
    return score_questions(questions, made, metrics, part=part, resamples=resamples, seed=seed) | {"seconds": round(seconds, 3)}


def draw_questions(conversations: Sequence[Conversation], *, limit: int | None = None, seed: int = 0) -> Questions:
    """The last questions of conversations, each different one once; at most so many of them, drawn by the seed."""
    asked = [ask(conversation) for conversation in conversations]
    keys = [repr([turn.to_dict() for turn in prompt]) for prompt, _ in asked]
    firsts, references = group_references(keys, [reference for _, reference in asked])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(firsts))[:limit])
    rows = [firsts[place] for place in chosen]
    texts = tuple(references[place] for place in chosen)
    return Questions(tuple(conversations[row] for row in rows), tuple(asked[row][0] for row in rows), texts, len(firsts))


def score_questions(
    questions: Questions,
    made: Sequence[Generated | None],
    metrics: Sequence[str] | None = None,
    *,
    part: str = "test",
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """The record that `evaluate_generation` returns, of answers that were made: what `answer` gives for the questions' prompts."""
    names = tuple(metrics or choose_metrics(questions.references))
    judged = score_answers([one.text if one else "" for one in made], questions.references, names, resamples=resamples, seed=seed)
    table = zip(questions.conversations, questions.prompts, questions.references, made, strict=True)
    rows = [
        _describe(*row) | {name: round(float(found.rows[place]), 6) for name, found in judged.items()} for place, row in enumerate(table)
    ]
    values = {name: Score(found.value, found.low, found.high).to_dict() for name, found in judged.items()}
    facts = {"part": part, "rows": len(rows), "available": questions.available, "scores": {"primary": names[0], **values}}
    return facts | _count(made, questions.conversations) | _show(rows, names[0])


def read_ks(metrics: Sequence[str]) -> tuple[int, ...]:
    """The k of each ``pass@k``; none where no metric is one.

    Raises:
        InputError: a k that is no number above 0, or another metric beside them.
    """
    if not any(name.startswith("pass@") for name in metrics):
        return ()
    if wrong := [name for name in metrics if not re.fullmatch(r"pass@[1-9]\d*", name)]:
        raise InputError(
            f"The metrics are {', '.join(metrics)}, of which {wrong[0]} is no pass@k. Name pass@k alone, as in pass@1 pass@10."
        )
    return tuple(int(name.removeprefix("pass@")) for name in metrics)


def evaluate_programs(
    generator: Generator,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    ks: Sequence[int],
    programs: ProgramOptions,
    *,
    max_tokens: int = 512,
    limit: int | None = None,
    part: str = "test",
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """The chance that of k programs for a problem one at least passes its tests (Chen et al. 2021), the mean over problems, for each k.

    The problem is asked as a question, through the chat template. Programs run in `sandbox`.

    Args:
        rows: numbers and columns of problems, see `sandbox.problems.read_problem`. limit: at most so many, drawn by the seed.

    Returns:
        as `evaluate_generation`; also draws, temperature and outcomes (count of programs by `sandbox.Outcome.reason`). The answer that is
        shown of a problem is the first that fails, else the first.

    Raises:
        InputError: a row that is no problem, fewer draws than k, or several draws that would all be the same.
    """
    draws = programs.draws or max(ks)
    temperature = programs.temperature if programs.temperature is not None else DRAWN_AT * (draws > 1)
    if draws < max(ks) or (draws > 1 and not temperature):
        raise InputError(
            f"pass@{max(ks)} was asked for, with draws {draws} and temperature {temperature:g}; expected at least {max(ks)} draws, and a "
            "temperature above 0 where there are several."
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])
    problems = [read_problem(rows[place][1]) for place in chosen]
    options = GenerationOptions(max_tokens=max_tokens, temperature=temperature, seed=seed)
    prompts = [(Message("user", problem.prompt),) for problem in problems for _ in range(draws)]
    start = time.perf_counter()
    made = answer(generator, prompts, options)
    seconds = time.perf_counter() - start
    tried = [
        _try(rows[place][0], problem, made[begin : begin + draws], ks, programs.test_seconds)
        for place, problem, begin in zip(chosen, problems, range(0, len(made), draws), strict=True)
    ]
    names = [f"pass@{k}" for k in ks]
    table = np.array([[row[name] for name in names] for row, _ in tried])
    scores = _with_intervals(lambda picked: dict(zip(names, table[picked].mean(0).tolist(), strict=True)), len(tried), resamples, seed)
    values = {name: score.to_dict() for name, score in scores.items()}
    outcomes = dict(sorted(Counter(reason for _, reasons in tried for reason in reasons).items()))
    facts = {"part": part, "rows": len(tried), "available": len(rows), "scores": {"primary": names[0], **values}}
    drawn = {"draws": draws, "temperature": temperature, "outcomes": outcomes, "seconds": round(seconds, 3)}
    return facts | _count(made, ()) | drawn | _show([row for row, _ in tried], names[0])


def _try(
    number: int, problem: Problem, made: Sequence[Generated | None], ks: Sequence[int], seconds: float
) -> tuple[dict[str, Any], list[str]]:
    """What is told of a problem, and how each of its programs ended."""
    outcomes = run_samples(problem, [one.text if one else "" for one in made], seconds=seconds)
    place = next((place for place, outcome in enumerate(outcomes) if not outcome.passed), 0)
    passed = sum(outcome.passed for outcome in outcomes)
    told = {"row": number, "text": problem.prompt, "target": [problem.after], **_tell(made[place])}
    told |= {"passed": passed, "reason": outcomes[place].reason, "detail": outcomes[place].detail}
    return told | {f"pass@{k}": pass_at_k(len(made), passed, k) for k in ks}, [outcome.reason for outcome in outcomes]


def _describe(conversation: Conversation, prompt: Sequence[Message], references: Sequence[str], made: Generated | None) -> dict[str, Any]:
    text = "\n".join(f"{turn.role}: {turn.content}" for turn in prompt) if len(prompt) > 1 else prompt[0].content
    return {"row": conversation.row, "text": text, "target": list(references), **_tell(made)}


def _tell(made: Generated | None) -> dict[str, Any]:
    """An answer, or that there was no room for one."""
    return (
        {"answer": made.text, "finish": made.finish, "tokens": made.tokens} if made else {"answer": "", "finish": "too_long", "tokens": 0}
    )


def _count(made: Sequence[Generated | None], conversations: Sequence[Conversation]) -> dict[str, Any]:
    there = [one for one in made if one]
    return {
        "too_long": len(made) - len(there),
        "without_tools": sum(bool(conversation.tools) for conversation in conversations),
        "finishes": dict(sorted(Counter(one.finish for one in there).items())),
        "empty": sum(not one.text.strip() for one in there),
        "prompt_tokens": sum(one.prompt_tokens for one in there),
        "tokens": sum(one.tokens for one in there),
    }


def _show(rows: list[dict[str, Any]], primary: str) -> dict[str, Any]:
    """The rows that scored least, full marks aside, and some taken at equal distances."""
    worst = [row for row in sorted(rows, key=lambda row: row[primary]) if row[primary] < 1][:WORST]
    places = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int))
    return {"worst": worst, "samples": [rows[place] for place in places]}


def _with_intervals(measure: Any, count: int, resamples: int, seed: int) -> dict[str, Score]:
    values = measure(np.arange(count))
    ranges = bootstrap(measure, count, resamples=resamples, seed=seed)
    return {name: Score(value, *ranges.get(name, (value, value))) for name, value in values.items()}
