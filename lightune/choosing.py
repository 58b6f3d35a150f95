"""`--method auto`: which method suits the rows, the labels, the base and the time, found out by short trials and told with the reason.

What is tried follows from the rows; what is chosen follows from the trials: the method that trains the fewest parameters among those whose
score on the development rows lies within the interval of the best. A trial ends long before its method is done, so methods that learn slowly
are at a disadvantage; `lightune compare` gives each more time.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightune import architectures, contrast
from lightune.caching import keep_frozen
from lightune.errors import InputError
from lightune.evaluation import evaluate
from lightune.metrics import LOWER_IS_BETTER
from lightune.models import Model
from lightune.options import build, check, option, parse_spec
from lightune.preparation import Prepared, Told, Watch, prepare_base, put_method
from lightune.recipes import Recipe, TrainOptions
from lightune.training import Training

AUTO = "auto"
FEW, MANY = 64, 1000  # labelled rows a label up to which a contrastive warm-up is tried; rows from which the head alone is not
LEAST_DEV = 20  # rows on which trials can be told apart at all


@dataclass(frozen=True)
class Auto:
    """Options of the choice."""

    seconds: float = option(60.0, "seconds for all trials together", above=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Trial:
    """What came of one try: the score on the development rows with its interval, and what it trained in how many seconds."""

    method: str
    contrast: int
    value: float
    low: float
    high: float
    trainable_parameters: int
    seconds: float

    @property
    def name(self) -> str:
        """The method, and how it began."""
        return f"{self.method} after a contrastive warm-up" if self.contrast else self.method


@dataclass(frozen=True)
class Choice:
    """The recipe with a method in the place of auto, and the trials and the sentence that say why."""

    recipe: Recipe
    trials: tuple[Trial, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The form of run.json."""
        return {"reason": self.reason, "trials": [dataclasses.asdict(trial) for trial in self.trials]}


def is_auto(method: str) -> bool:
    """Whether a method's spec leaves the choice open."""
    return parse_spec(method)[0] == AUTO


def choose(recipe: Recipe, source: Any, watch: Watch = lambda fact: None) -> Choice:
    """Try what could suit, and give the recipe with what is chosen.

    Raises:
        InputError: the data or options are wrong, there are too few development rows, or no trial ended.
    """
    name, values = parse_spec(recipe.method)
    options = build(Auto, values, f"the method {name}")
    open_recipe = dataclasses.replace(recipe, method="head")
    prepared = prepare_base(open_recipe, source, watch)
    if len(prepared.dev) < LEAST_DEV:
        raise InputError(
            f"--method auto tells methods apart on development rows, of which there are {len(prepared.dev)}; it needs {LEAST_DEV}. "
            "Give --dev or a larger --dev-share, or name a method."
        )
    wanted = candidates(len(prepared.train), count_labels(prepared), recipe.train)
    trials = []
    for method, pairs in wanted:
        tried = dataclasses.replace(open_recipe, method=method, train=dataclasses.replace(recipe.train, contrast=pairs))
        try:
            trials.append(_try(prepared, tried, options.seconds / len(wanted)))
        except InputError as error:
            watch(Told(f"{method} is left out: {error}", "warning"))
            continue
        found = trials[-1]
        watch(Told(f"Trial of {found.name}: dev {prepared.model.task.primary} {found.value:.3f} ({found.low:.3f} to {found.high:.3f})"))
    if not trials:
        raise InputError("No trial of --method auto ended. Give it more time, as in --method auto:seconds=300, or name a method.")
    best, reason = decide(trials, prepared.model.task.primary)
    watch(Told(reason))
    chosen = dataclasses.replace(recipe, method=best.method, train=dataclasses.replace(recipe.train, contrast=best.contrast))
    return Choice(chosen, tuple(trials), reason)


def candidates(rows: int, labels: int, train: TrainOptions) -> list[tuple[str, int]]:
    """Methods that are worth a trial, with the pairs of a contrastive warm-up where labels have few rows; the cheapest to train last."""
    found = [("full", 0), ("lora", 0), ("bitfit", 0)]
    if labels and rows / labels <= FEW and not train.contrast:
        found = [("full", contrast.suggest_partners(labels)), *found]
    return [*found, ("head", 0)] if rows < MANY else found


def count_labels(prepared: Prepared) -> int:
    """How many labels rows are told apart by; 0 where a row may have several or a number."""
    return len(prepared.model.answers.labels) if prepared.model.answers.kind in ("classify", "pair") else 0


def decide(trials: Sequence[Trial], metric: str) -> tuple[Trial, str]:
    """The trial with the fewest trained parameters among those within the interval of the best, and why."""
    lower = metric in LOWER_IS_BETTER
    best = min(trials, key=lambda trial: trial.value) if lower else max(trials, key=lambda trial: trial.value)
    near = [trial for trial in trials if (trial.value <= best.high if lower else trial.value >= best.low)]
    chosen = min(near, key=lambda trial: trial.trainable_parameters)
    told = f"{chosen.name} is chosen of {', '.join(trial.name for trial in trials)}: dev {metric} {chosen.value:.3f} after {chosen.seconds:.0f} s"
    if chosen is best:
        return chosen, f"{told}, the best{' and the fewest parameters' if len(near) > 1 else ''}."
    return chosen, f"{told} lies within the interval of the best ({best.name}, {best.value:.3f}), with fewer trained parameters."


def _try(prepared: Prepared, recipe: Recipe, seconds: float) -> Trial:
    """Train a copy of the base for some seconds and score it."""
    model = Model(copy.deepcopy(prepared.model.network), prepared.model.task, prepared.model.encoder, prepared.model.base, ())
    put_method(model, recipe, prepared.train)
    if recipe.train.contrast:
        contrast.check_suits(model, recipe.train)
        training = contrast.warm_up(model, prepared.train, recipe.train)
    else:
        training = Training(model, prepared.train, prepared.dev, recipe.train)
        keep_frozen(training, seconds=seconds / 2)
    training.settle(max(seconds - training.seconds, seconds / 2))
    for fact in training.steps():
        if fact.seconds >= seconds:
            training.finish_early()
    if recipe.train.contrast:
        contrast.fit_head(model, prepared.train, prepared.dev, balanced=recipe.train.class_weights == "balanced")
    score = evaluate(model, prepared.dev, part="dev").values[model.task.primary]
    trained = architectures.share_of(model.network, trainable_only=True)
    return Trial(recipe.method, recipe.train.contrast, score.value, score.low, score.high, trained, round(training.seconds, 2))
