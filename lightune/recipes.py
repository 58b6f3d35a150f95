"""What a run is asked to do: every option of `fit`, declared once, read from and written to TOML.

Defaults < recipe file < flags. The resolved recipe is saved in the run folder and repeats the run.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightune.errors import InputError, MissingExtra, nearest
from lightune.options import as_dict, build, check, option

TASK_NAMES = ("classify", "pair", "multilabel", "regress", "generate", "translate")
SHAPES = ("prompt-completion", "messages", "sharegpt", "alpaca", "text")
TOO_LONG = ("error", "cut-left", "cut-right", "split", "drop")
# What a model that generates is by default, where it differs from one that classifies.
GENERATE_DEFAULTS: dict[str, Any] = {
    "model": "smollm2-135m", "method": "lora", "to": ("gguf",), "batch_size": 8, "batch_tokens": 1024,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {  # by the task
    "generate": GENERATE_DEFAULTS, "translate": GENERATE_DEFAULTS | {"model": "title-t5", "to": ("hf",)},
}  # fmt: skip


@dataclass(frozen=True)
class DataOptions:
    """Which rows, which columns, how they are divided."""

    train: str = option("", "labelled data: a file, a folder, a catalogue name or hub:owner/name")
    dev: str | None = option(None, "development data; by default a share of the training data")
    test: str | None = option(None, "test data; by default a share of the training data")
    dev_share: float = option(0.1, "share of the rows kept for development where none are given", low=0.0, high=0.5)
    test_share: float = option(0.1, "share of the rows kept for the test where none are given", low=0.0, high=0.5)
    text: str | None = option(None, "name of the text column; guessed and told by default")
    pair: str | None = option(None, "name of the second text column")
    label: str | None = option(None, "name of the label column, or several names with commas between (multilabel)")
    task: str | None = option(None, "what to predict; guessed from the columns by default", choices=TASK_NAMES)
    shape: str | None = option(None, "generate, translate: how rows hold conversations; found out by default", choices=SHAPES)
    prompt: str | None = option(
        None, "generate, translate: name of the column of questions, or several with commas between; guessed by default"
    )
    completion: str | None = option(None, "generate, translate: name of the column of answers; guessed by default")
    system: str | None = option(None, "generate, translate: a column of system turns, or the text of one for every row that has none")
    template: str | None = option(None, "generate, translate: a file with a chat template (Jinja) in place of the tokenizer's own")
    too_long: str = option("error", "generate, translate: what happens to rows beyond max-length", choices=TOO_LONG)
    limit: int | None = option(None, "use at most this many training rows, drawn with the seed", low=1)
    max_length: int | None = option(None, "cut texts to this many tokens; by default what the base can take, at most 512", low=4)
    delimiter: str | None = option(None, "the delimiter of CSV data; detected by default")
    encoding: str | None = option(None, "the encoding of text files; detected by default")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TrainOptions:
    """How the weights are trained."""

    epochs: float | None = option(None, "passes over the training data; by default enough for the number of rows", above=0)
    batch_size: int = option(32, "examples a step and process", low=1)
    batch_tokens: int = option(8192, "padded tokens that go through the model at once; a larger step is accumulated, exactly", low=1)
    rate: float | None = option(None, "peak learning rate; every method has its own default", above=0)
    optimizer: str = option("adamw", "adamw, adam, sgd, rmsprop or any other of torch.optim, with its own options: sgd:momentum=0.9")
    schedule: str = option(
        "linear", "how the rate falls after warm-up", choices=("linear", "cosine", "constant", "inverse_sqrt", "plateau")
    )
    warmup: float = option(0.1, "share of the steps in which the rate rises", low=0.0, high=1.0)
    weight_decay: float = option(0.01, "decay of weight matrices; norms, biases and embeddings are spared", low=0.0)
    dropout: float = option(
        0.0, "dropout inside the base; short runs on pretrained weights score as well without, and run faster", low=0.0, high=0.9
    )
    head_dropout: float = option(0.1, "dropout before the head", low=0.0, high=0.9)
    label_smoothing: float = option(0.0, "share of the target spread over all labels", low=0.0, high=0.5)
    class_weights: str = option("none", "balanced weighs every label by the inverse of its frequency", choices=("none", "balanced"))
    r_drop: float = option(0.0, "weight of the divergence between two dropout passes (R-Drop)", low=0.0)
    contrast: int = option(
        0,
        "for few labels: partners of the same and of another label that are drawn for every row; the base learns to tell them, then the head is fitted; 10 is plenty, 2 with dozens of labels, 0 is off",
        low=0,
    )
    gradient_checkpointing: bool = option(
        False, "compute activations twice, to keep only those between blocks: less memory, a third slower"
    )
    packing: str = option(
        "auto",
        "generate: rows one after another in a sequence, none of which sees another; auto packs where that spares enough padding",
        choices=("auto", "on", "off"),
    )
    self_training: int = option(
        0,
        "rounds in which the model says what the unlabelled rows mean (those of the data, and of --unlabelled) and one that begins anew "
        "learns from what it was sure of; a round is kept where the development score rises",
        low=0,
        high=5,
    )
    clip: float = option(1.0, "largest norm of the gradient; 0 switches clipping off", low=0.0)
    patience: int | None = option(None, "stop after this many evaluations without improvement; never by default", low=1)
    metric: str | None = option(None, "metric on the development data that chooses the best weights; the task's own by default")
    evaluate_every: int | None = option(None, "steps between evaluations; an epoch by default", low=1)
    precision: str = option("auto", "auto takes bf16 where it is faster here and its loss agrees", choices=("auto", "fp32", "bf16"))
    device: str = option("auto", "auto takes cuda, then mps, then cpu", choices=("auto", "cpu", "cuda", "mps"))
    threads: int | None = option(None, "processor threads; all cores by default", low=1)
    seed: int = option(0, "seed of everything random", low=0)
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints; 0 writes one after every step", low=0.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Budget:
    """What the exported model must hold on this machine. Nothing is asked by default."""

    max_mb: float | None = option(None, "megabytes (10^6 bytes) of the whole artefact folder, tokenizer included", above=0)
    max_ms: float | None = option(None, "milliseconds from text to answer; of what generates, of each token that it writes", above=0)
    percentile: str = option("p50", "which latency max-ms limits: the median or the 95th percentile", choices=("p50", "p95"))
    max_ram: float | None = option(None, "megabytes of resident memory of a process that answers", above=0)
    keep: float | None = option(None, "share of the reference score to keep, as in 0.99", above=0, high=1.2)
    time: str | None = option(
        None, "time for the whole search, in which the run's own training does not count, as in 90s, 20min or 1h [default: 20min]"
    )
    bench_threads: int = option(1, "threads for which max-ms holds", low=1)
    bench_batch: int = option(1, "texts at once for which max-ms holds", low=1)
    bench_length: int | None = option(None, "tokens a text for which max-ms holds; the data's own texts by default", low=1)
    table: str | None = option(None, "a cost table measured on another machine with lightune bench --table; max-ms is then judged by it")

    def __post_init__(self) -> None:
        check(self)
        if self.time is not None:
            parse_seconds(self.time)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given, by name: max_mb, max_ms, max_ram, keep."""
        names = ("max_mb", "max_ms", "max_ram", "keep")
        return {name: float(getattr(self, name)) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class DistillOptions:
    """How a smaller model learns from the one before it."""

    temperature: float = option(2.0, "softens both sides' answers", above=0)
    logits_weight: float = option(1.0, "weight of the distance from the teacher's answers", low=0.0)
    labels_weight: float = option(0.5, "weight of the task's own loss on labelled rows", low=0.0)
    hidden_weight: float = option(1.0, "weight of the distance from the teacher's token vectors", low=0.0)
    compare: str = option("last", "which blocks' vectors are compared: the last alone, or all evenly mapped", choices=("last", "all"))
    relations_weight: float = option(0.0, "weight of the relations among queries, keys and values of the last block (MiniLM)", low=0.0)
    augment: int = option(6, "at most so many versions of every row with replaced words are added", low=0)
    unlabelled: str | None = option(None, "a file of texts without labels from the same field: the teacher says what they mean")
    reconstruct: bool = option(
        True,
        "fit the matrices of what was cut to give what they gave before, ahead of learning (depth, ffn, heads, hidden, pool and factor)",
    )
    stages: int = option(
        1, "cut in so many stages with training between: named steps always, a search where a trial shows that it helps", low=1, high=4
    )
    healing: str = option(
        "auto",
        "generate: the method by which the student learns, full or lora, or a spec as in lora:rank=32; auto takes lora where at most a fifth of "
        "the blocks' weights was cut, else full",
    )
    teacher: tuple[str, ...] = option((), "runs whose models teach; the run's own model by default, several are averaged")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AnswerOptions:
    """How a model that generates is watched and scored: with greedy answers to development and test questions."""

    max_tokens: int = option(128, "most tokens of an answer", low=1)
    score_rows: int = option(200, "at most so many test questions are answered and scored; 0 only measures the loss", low=0)
    samples: int = option(3, "development questions that are answered at every evaluation, to be looked at", low=0)
    metrics: tuple[str, ...] = option(
        (),
        "how answers are compared with references, the first decides; chosen by the references by default. evaluate knows two that need more "
        "columns: pass@1 pass@10 ... of programs with tests, and multiple_choice",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ProgramOptions:
    """How programs are drawn of which pass@k tells how many pass their tests."""

    draws: int | None = option(None, "pass@k: programs drawn for each problem; as many as the largest k by default", low=1)
    temperature: float | None = option(
        None, "pass@k: 0 takes the likeliest program; by default 0 where one is drawn, else 0.8", low=0.0, high=5.0
    )
    test_seconds: float = option(10.0, "pass@k: seconds that a program may run", above=0)

    def __post_init__(self) -> None:
        check(self)


UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "": 1}


def parse_seconds(text: str) -> float:
    """Seconds in ``90s``, ``20min``, ``1.5h`` or a plain number.

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in UNITS or found[1].count(".") > 1 or float(found[1]) <= 0:
        raise InputError(f"time is {text!r}, expected a number with s, min or h, as in 20min.")
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run."""

    data: DataOptions = field(default_factory=DataOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    budget: Budget = field(default_factory=Budget)
    distill: DistillOptions = field(default_factory=DistillOptions)
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    model: str = option(
        "minilm",
        "base model: a catalogue name, a folder, a hub id (owner/name[@revision]) or a GGUF file; smollm2-135m by default for generate, "
        "title-t5 for translate",
    )
    method: str = option(
        "full",
        "how to adapt: full, head, freeze, bitfit, norms, lora, ia3, houlsby, pfeiffer, parallel, reft, prompt, ptuning, prefix, "
        "peft:NAME, with options as in lora:rank=16,alpha=32; auto chooses by short trials, auto:seconds=120; lora by default for generate and translate",
    )
    to: tuple[str, ...] = option(
        ("onnx-int8",),
        "what to export: onnx, onnx-int8, onnx-int4, or with options as in onnx:weights=8,tables=4; of models that generate gguf "
        "(gguf:type=q4_k_m; not of translate), onnx (onnx:bits=32) or hf; none exports nothing",
    )
    pooling: str = option(
        "auto", "how token vectors become one: auto is mean for encoders, last for decoders", choices=("auto", "mean", "cls", "last")
    )

    def __post_init__(self) -> None:
        check(self)


SECTIONS: dict[str, type] = {
    "data": DataOptions, "train": TrainOptions, "budget": Budget, "distill": DistillOptions,
    "answers": AnswerOptions,
}  # fmt: skip


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values of a recipe file, as a nested dict; unknown keys and bad TOML are errors that name the place."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no recipe file {str(path)!r}. Give the path of a recipe.toml, such as RUN/recipe.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {str(path)!r} is not valid TOML: {error}. Correct that line.") from None
    return values


def resolve(values: Mapping[str, Any], flags: Mapping[str, Any]) -> Recipe:
    """A recipe from a file's nested values, overridden by flat flags (None means not given).

    Raises:
        InputError: for an unknown key or a value out of bounds.
    """
    top = {key: value for key, value in values.items() if key not in SECTIONS}
    if wrong := [name for name in SECTIONS if not isinstance(values.get(name, {}), Mapping)]:
        raise InputError(
            f"{wrong[0]} is {values[wrong[0]]!r} in the recipe, expected a table. Write [{wrong[0]}] and its options below it."
        )
    parts = {name: dict(values.get(name, {})) for name in SECTIONS}
    names = {name: {item.name for item in dataclasses.fields(cls)} for name, cls in SECTIONS.items()}
    for key, value in flags.items():
        if value is None:
            continue
        section = next((name for name, fields in names.items() if key in fields), None)
        (parts[section] if section else top)[key] = value
    for key, value in DEFAULTS.get(parts["data"].get("task", ""), {}).items():
        (parts["train"] if key in names["train"] else top).setdefault(key, value)
    known = {item.name for item in dataclasses.fields(Recipe)}
    for key in top:
        if key not in known:
            raise InputError(f"Unknown option {key!r} in the recipe.{nearest(key, known.union(*names.values()))}")
    sections: dict[str, Any] = {name: build(cls, parts[name], f"[{name}]") for name, cls in SECTIONS.items()}
    return build(Recipe, {**top, **sections}, "the recipe")


def format_recipe(recipe: Recipe) -> str:
    """The recipe as TOML; `resolve(tomllib.loads(text), {})` gives the same recipe."""
    try:
        import tomli_w
    except ImportError:
        raise MissingExtra("writing a recipe", "tomli-w", "train") from None
    top = {name: value for name, value in as_dict(recipe).items() if name not in SECTIONS}
    return tomli_w.dumps({**top, **{name: as_dict(getattr(recipe, name)) for name in SECTIONS}})
