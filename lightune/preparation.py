"""Data and base made ready: read, split, examined, encoded; and what the long jobs on them share: what they tell, how they stop."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from lightune import architectures, models, sources
from lightune.data import Example, Splits, doctor, read, read_parts, split
from lightune.errors import InputError, LightuneError
from lightune.methods import make_method
from lightune.models import Model
from lightune.recipes import Recipe
from lightune.tasks import GENERATIVE, find_task
from lightune.training import Evaluation, Forecast, Step

LONGEST = 512  # tokens: the default limit of bases that could take more
LEAST_LENGTH = 16  # tokens, until the base is loaded and says what it can take


class Interrupted(LightuneError):
    """Training was stopped by a signal; the run can be resumed."""

    exit_code = 130


@dataclass(frozen=True)
class Told:
    """A sentence for the user: a stage that begins, something that was guessed, or a warning."""

    text: str
    level: str = "note"


class Stoppable(Protocol):
    """Long work that can end early and be resumed."""

    def request_stop(self) -> None: ...


Watch = Callable[[Told | Forecast | Step | Evaluation | Any], None]


@dataclass(frozen=True)
class Prepared:
    """Data that were read, split and examined, and the model that will be trained on them."""

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    model: Model
    facts: dict[str, Any]
    truncated_tokens: int
    unlabelled: Sequence[Example] = field(default=(), kw_only=True)


def prepare(recipe: Recipe, source: Any, watch: Watch = lambda fact: None) -> Prepared:
    """Read, split and examine the data, load the base and put the method on it; nothing is trained or written.

    Raises:
        InputError: every error that the doctor found, or a base, column or option that is wrong.
    """
    prepared, method = _prepare(recipe, source, watch)
    _apply(prepared.model, method, recipe)
    return prepared


def prepare_base(recipe: Recipe, source: Any, watch: Watch = lambda fact: None) -> Prepared:
    """All that `prepare` does, but for putting the method on the model: see `put_method`."""
    return _prepare(recipe, source, watch)[0]


def put_method(model: Model, recipe: Recipe, rows: Sequence[Example]) -> None:
    """Put a recipe's method on a model, what it draws being drawn from the recipe's seed; one that looks at data is given these rows."""
    _apply(model, plan_method(model, recipe, rows), recipe)


def _apply(model: Model, method: Any, recipe: Recipe) -> None:
    torch.manual_seed(recipe.train.seed)
    model.apply(method)


def plan_method(model: Model, recipe: Recipe, rows: Sequence[Example]) -> Any:
    """A recipe's method with what it chooses by the model and the rows; texts may then be as long as it leaves room for."""
    method = make_method(recipe.method)
    if hasattr(method, "plan"):
        model.encoder.max_length = longest_text(recipe, model)
        method = method.plan(model, rows)
    model.encoder.max_length = longest_text(recipe, model, getattr(method, "taken", 0))
    return method


def _prepare(recipe: Recipe, source: Any, watch: Watch) -> tuple[Prepared, Any]:
    """Data, base and the planned method, which is not put on yet."""
    if recipe.train.packing == "on":
        raise InputError("packing is on, but only the rows of a model that generates are packed. Leave it out, or give task generate.")
    watch(Told("Reading the data"))
    splits = read_all(recipe, source)
    parts = {name: part for name, part in splits.parts.items() if name == "train" or len(part)}
    for sentence in splits.facts["told"]:
        watch(Told(sentence))
    for sentence in splits.facts.get("warnings", ()):
        watch(Told(sentence, "warning"))
    task = find_task(parts["train"].columns.task)
    examined = {**parts, **({"unlabelled": splits.unlabelled} if len(splits.unlabelled) else {})}
    _stop_on_errors(doctor.examine(examined))
    base = sources.resolve_model(recipe.model, tell=lambda sentence: watch(Told(sentence)))
    described = task.describe(parts["train"])
    watch(Told(f"Loading the base {recipe.model}"))
    model = models.start(base, described, max_length=LEAST_LENGTH, pooling=recipe.pooling, seed=recipe.train.seed)
    method = plan_method(model, recipe, parts["train"])
    lengths = {name: model.encoder.encode([e.text for e in part], [e.pair for e in part]).lengths for name, part in parts.items()}
    findings = doctor.examine(examined, lengths=lengths, max_length=model.encoder.max_length)
    for finding in findings:
        watch(finding)
    facts = doctor.describe(parts, findings, lengths=lengths)
    cut = sum(int(np.maximum(found - model.encoder.max_length, 0).sum()) for found in lengths.values())
    more = read_unlabelled(recipe, splits)
    return Prepared(parts["train"], parts.get("dev", []), parts.get("test", []), model, facts, cut, unlabelled=more), method


def read_unlabelled(recipe: Recipe, splits: Splits) -> list[Example]:
    """The rows without a label, and those of the recipe's file of texts."""
    path = recipe.distill.unlabelled
    return [*splits.unlabelled, *(read(sources.locate_data(path), labelled=False) if path else ())]


def read_all(recipe: Recipe, source: Any) -> Splits:
    """The data in parts, with every sentence that reading and splitting told in facts["told"]."""
    options = recipe.data
    if options.task in GENERATIVE:
        raise InputError(
            f"Models of the task {options.task} are not compared, and method auto does not choose for them. Name a method for fit."
        )
    how: dict[str, Any] = {"task": options.task, "text": options.text, "pair": options.pair, "label": options.label}
    form: dict[str, Any] = {"delimiter": options.delimiter, "encoding": options.encoding}
    parts = read_parts(sources.locate_data(source), **how, **form)
    if "train" not in parts:
        raise InputError(f"{options.train} has the parts {', '.join(parts)} but no train part. Give training data.")
    train = parts["train"]
    told = list(train.facts.get("told", []))
    same = train.columns.arguments()
    for name, path in (("dev", options.dev), ("test", options.test)):
        if path:
            parts[name] = read(sources.locate_data(path), **same, **form)
    if options.limit and options.limit < len(train):
        chosen = np.random.default_rng(recipe.train.seed).permutation(len(train))[: options.limit]
        told.append(f"{options.limit} of {len(train)} training rows are used, drawn with seed {recipe.train.seed}.")
        train = train.take(sorted(int(number) for number in chosen))
    divided = split(train, dev=parts.get("dev", options.dev_share), test=parts.get("test", options.test_share), seed=recipe.train.seed)
    unlabelled = divided.unlabelled if len(divided.unlabelled) else parts.get("unlabelled", divided.unlabelled)
    facts = {**divided.facts, "told": told + divided.facts.get("told", [])}
    return dataclasses.replace(divided, unlabelled=unlabelled, facts=facts)


@contextmanager
def stop_on_signals(work: Stoppable) -> Iterator[list[str]]:
    """Turn Ctrl-C and SIGTERM into a stop after the step in progress; a second one takes effect at once. Gives the signals' names."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def stop(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        work.request_stop()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def longest_text(recipe: Recipe, model: Model, taken: int = 0) -> int:
    """Most tokens of a text: the asked limit, or what the base takes beside the tokens that are the method's own."""
    whole = architectures.longest_input(model.network.backbone.config)
    limit, wanted = whole and whole - taken, recipe.data.max_length
    if wanted and limit and wanted > limit:
        beside = f" beside the {taken} of {recipe.method}" if taken else ""
        raise InputError(f"max-length is {wanted}, but {recipe.model} takes at most {limit} tokens{beside}. Give {limit} or less.")
    return wanted or min(limit or LONGEST, LONGEST)


def _stop_on_errors(findings: Sequence[Any]) -> None:
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise InputError("\n".join(f"{finding.message} {finding.cure}".strip() for finding in errors))
