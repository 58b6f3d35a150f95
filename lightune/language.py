"""Fine-tuning a model that generates: conversations read and supervised, the loss of their answers, and what judges it on the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightune import models, sources
from lightune.data.conversations import Conversations, read_conversation_parts, read_conversations, split_conversations
from lightune.errors import InputError, unknown
from lightune.generation import TorchGenerator, remembers
from lightune.judging import METRICS
from lightune.language_evaluation import TokenRow, answer, ask, evaluate_generation, perplexity
from lightune.methods import make_method
from lightune.models import Model
from lightune.networks import LanguageNetwork, tensors
from lightune.preparation import LONGEST, Prepared, Told, Watch, longest_text
from lightune.recipes import Recipe, TrainOptions
from lightune.runtime.answers import Answers
from lightune.runtime.generation import GenerationOptions
from lightune.runtime.tokenization import Encoded, batches
from lightune.supervision import Supervised, measure_room, pack, supervise, supervise_targets
from lightune.tasks import task_for
from lightune.training import Objective, Rows, Training

JUDGED_ROWS = 256  # most development rows whose loss is measured at an evaluation
JUDGED_TOKENS = 4096  # tokens of a pass
PACKING_PAYS = 0.1  # share of what goes through the model that packing must spare: attention with a mask takes longer
SUPERVISE = {"generate": supervise, "translate": supervise_targets}  # what makes rows, by the task
# Options of training that have no meaning for the loss of tokens, and the value that leaves them alone.
WITHOUT = {"label_smoothing": 0.0, "class_weights": "none", "r_drop": 0.0, "contrast": 0, "self_training": 0}


@dataclass(frozen=True)
class Supervision(Prepared):
    """Conversations in parts, the rows of token ids that are made of them by part, and whether training packs these."""

    rows: Mapping[str, Sequence[Supervised]] = field(default_factory=dict)
    packed: bool = False


@dataclass(frozen=True)
class Samples:
    """Answers to a few development questions as the weights of a step give them: {question, answer, reference} each."""

    step: int
    rows: tuple[dict[str, str], ...]
    kind: str = "samples"


def prepare(recipe: Recipe, source: Any, watch: Watch = lambda fact: None) -> Supervision:
    """Read and split conversations, load the base, put the method on it, and mark what is learned; nothing is trained or written.

    Raises:
        InputError: data, a template, a base or an option that is wrong; rows too long where nothing is said of them; nothing to learn.
    """
    _check_options(recipe)
    watch(Told("Reading the data"))
    parts, facts = _read(recipe, source, watch)
    model = open_base(recipe, lambda sentence: watch(Told(sentence)))
    method = make_method(recipe.method)
    model.encoder.max_length = longest_text(recipe, model, getattr(method, "taken", 0))
    rows, ledgers = _supervise(parts, model, recipe, watch)
    if hasattr(method, "plan"):
        method = method.plan(model, ())
    torch.manual_seed(recipe.train.seed)
    model.apply(method)
    if not model.trainable():
        raise InputError(
            f"{recipe.method} trains nothing of {recipe.model}, whose head was pretrained with the rest. Use lora, full or freeze."
        )
    packed = choose_packing(model, rows["train"], recipe.train, lambda sentence: watch(Told(sentence)))
    return dataclasses.replace(_gather(parts, model, facts, rows, ledgers), packed=packed)


def choose_packing(model: Model, rows: Sequence[Supervised], options: TrainOptions, tell: Callable[[str], None]) -> bool:
    """Whether training packs rows into common sequences: as the option says, or where it spares enough of what goes through the model.

    Raises:
        InputError: packing is on, but rows of this model, with its method, would see each other.
    """
    room = measure_room(np.array([len(row.ids) for row in rows]), options.batch_size, options.batch_tokens, options.seed)
    share = f"{room.wasted:.1%} of what goes through the model is padding, and packing spares {room.spared:.1%}"
    if options.packing == "off" or (options.packing == "auto" and room.spared < PACKING_PAYS):
        if options.packing == "auto":
            tell(f"Rows are not packed: {share}; from {PACKING_PAYS:.0%} on it pays.")
        return False
    if packs(model, rows[:3]):
        tell(f"Rows are packed: {share}.")
        return True
    if options.packing == "on":
        method = type(model.changes[-1]).__name__.lower()
        raise InputError(
            f"Rows of {model.base.name} with the method {method} cannot be packed: they would see each other. Use packing off."
        )
    tell(f"Rows are not packed, since they would see each other in this model: {share}.")
    return False


def packs(model: Model, rows: Sequence[Supervised]) -> bool:
    """Whether packed rows have the losses that they have alone."""
    network = model.network
    if not remembers(network.backbone):
        return False
    ids = tensors(model.encoder.pad(encode_rows(rows).encoded), model.device)["input_ids"]
    training = network.training
    network.eval()
    with torch.no_grad():
        alone, together = (
            row_losses(network, *found, len(rows)) for found in (supervised_vectors(network, ids, rows), packed_vectors(network, rows))
        )
    network.train(training)
    return torch.allclose(alone, together, rtol=1e-3, atol=1e-3)


def open_base(recipe: Recipe, tell: Callable[[str], None] = lambda _: None) -> Model:
    """The base of a recipe with its chat template, nothing on it yet; rows may have as many tokens as it takes, or max-length."""
    base = sources.resolve_model(recipe.model, tell=tell)
    tell(f"Loading the base {recipe.model}")
    template = _read_template(recipe.data.template)
    task = task_for(Answers(recipe.data.task or "generate", ()))
    model = models.start_language(base, task, max_length=LONGEST, template=template)
    model.encoder.max_length = longest_text(recipe, model)
    return model


def attend(model: Model, recipe: Recipe, source: Any, watch: Watch = lambda fact: None) -> Supervision:
    """The data of a recipe as a model reads them."""
    parts, facts = _read(recipe, source, watch)
    return _gather(parts, model, facts, *_supervise(parts, model, recipe, watch))


def open_training(prepared: Supervision, options: TrainOptions) -> Training:
    """The training of the answers' tokens; every token of a step weighs the same."""
    rows = prepared.rows["train"]
    judge = LossJudge(prepared.model, prepared.rows.get("dev", ())[:JUDGED_ROWS])
    training = Training(prepared.model, encode_rows(rows), (), options, answer_objective(rows, prepared.packed), judge)
    judge.precision = training.in_precision
    judge.remember()
    return training


def answer_objective(rows: Sequence[Supervised], packed: bool = False) -> Objective:
    """The mean loss of each row's supervised tokens. Logits are computed for these alone."""

    def losses(network: Any, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        chosen = [rows[place] for place in places]
        found = packed_vectors(network, chosen) if packed else supervised_vectors(network, batch["input_ids"], chosen)
        return row_losses(network, *found, len(chosen))

    return losses


def row_losses(network: LanguageNetwork, hidden: Tensor, labels: Tensor, owners: Tensor, count: int) -> Tensor:
    """The mean loss of each of so many rows [b], by the vectors of their supervised tokens, see `supervised_vectors`."""
    return row_means(network.losses(hidden, labels), owners, count)


def row_means(each: Tensor, owners: Tensor, count: int) -> Tensor:
    """The mean [b] over the tokens of each of so many rows, of values [m] that belong to the rows int64 [m]."""
    return torch.zeros(count, device=each.device).index_add(0, owners, each) / torch.bincount(owners, minlength=count)


def supervised_vectors(network: LanguageNetwork, ids: Tensor, rows: Sequence[Supervised]) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors from which supervised tokens are predicted [m, d], these tokens int64 [m], and the row of each int64 [m].

    ids: int64 [b, s], filled on the right; what stands there is behind all that is read, so no mask is needed.
    """
    before = np.zeros(tuple(ids.shape), dtype=bool)  # the places from which supervised tokens are predicted
    for place, row in enumerate(rows):
        before[place, : len(row.trained) - 1] = row.trained[1:]
    where = torch.from_numpy(before).to(ids.device)
    hidden = network.read(ids).last_hidden_state
    return hidden[where], ids.roll(-1, 1)[where], where.nonzero()[:, 0]


def packed_vectors(network: LanguageNetwork, rows: Sequence[Supervised]) -> tuple[Tensor, Tensor, Tensor]:
    """`supervised_vectors` of rows in sequences as long as the longest of them, in the order of these.

    Positions begin anew with every row. By that transformers knows where one ends, and masks all others, in layers of sliding windows too.
    """
    packed = pack([dataclasses.replace(row, row=place) for place, row in enumerate(rows)], max(len(row.ids) for row in rows))
    shape = (len(packed), max(len(each.ids) for each in packed))
    ids, positions, owners = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    before = np.zeros(shape, dtype=bool)
    for line, each in enumerate(packed):
        size = len(each.ids)
        ids[line, :size], owners[line, :size] = each.ids, np.array(each.rows)[each.segments]
        positions[line, :size], positions[line, size:] = each.positions, np.arange(shape[1] - size)  # what fills is a row of its own
        before[line, : size - 1] = each.trained[1:]
    device = network.head.weight.device
    given, placed, where, whose = (torch.from_numpy(values).to(device) for values in (ids, positions, before, owners))
    hidden = network.read(given, position_ids=placed).last_hidden_state
    return hidden[where], given.roll(-1, 1)[where], whose[where]


class LossJudge:
    """The mean loss of the supervised tokens of held-out rows, and its exponential, the perplexity."""

    primary = "loss"

    def __init__(self, model: Model, rows: Sequence[Supervised]) -> None:
        self.model, self.rows = model, rows
        self.precision: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.before = math.inf

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> list[str]:
        return ["loss", "perplexity"]

    def scores(self, metric: str) -> dict[str, float]:
        network, total, count = self.model.network, 0.0, 0
        network.eval()
        encoded = encode_rows(self.rows).encoded
        for places in batches([len(ids) for ids in encoded.ids], len(self.rows), JUDGED_TOKENS):
            ids = tensors(self.model.encoder.pad(encoded, places), self.model.device)["input_ids"]
            with torch.no_grad(), self.precision():
                hidden, labels, _ = supervised_vectors(network, ids, [self.rows[place] for place in places])
                each = network.losses(hidden, labels)
            total, count = total + float(each.double().sum()), count + len(each)
        loss = total / max(count, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 80.0))}

    def remember(self) -> None:
        """Measure the loss as it is, before anything was learned."""
        if self.rows:
            self.before = self.scores("loss")["loss"]

    def ignorant(self, metric: str) -> float:
        """The loss or perplexity of the base."""
        return self.before if metric == "loss" else math.exp(min(self.before, 80.0))

    def keep(self) -> None:
        """Nothing: what was scored is not kept."""

    def calibrate(self) -> None:
        """Nothing: a token's probability is what was learned."""

    def final(self) -> float:
        return self.scores(self.primary)[self.primary]


def generator_of(model: Model, *, name: str | None = None) -> TorchGenerator:
    """A model of conversations as something that generates."""
    return TorchGenerator(model.network, model.encoder, model.chat, name=name or model.base.name, max_length=model.encoder.max_length)


def score(prepared: Supervision, recipe: Recipe, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """What `evaluation.json` holds: the perplexity of held-out answers and, for questions, how good greedy answers are."""
    part = held_part(prepared)
    generator = generator_of(prepared.model)
    rows = token_rows(prepared.model, prepared.rows[part])
    tell(f"Measuring the loss of {len(rows)} {part} rows")
    fluent = perplexity(generator, rows).to_dict()
    scores = {name: fluent[name] for name in ("perplexity", "byte_perplexity") if fluent[name]}
    conversations = getattr(prepared, part)
    if not recipe.answers.score_rows or not any(row.messages for row in conversations):
        return {"part": part, "rows": len(rows), "scores": {"primary": "perplexity", **scores}, "worst": [], "samples": []}
    tell(f"Answering up to {recipe.answers.score_rows} {part} questions")
    found = evaluate_generation(
        generator,
        [row for row in conversations if row.messages],
        options=GenerationOptions(max_tokens=recipe.answers.max_tokens),
        metrics=recipe.answers.metrics or None,
        limit=recipe.answers.score_rows,
        part=part,
        seed=recipe.train.seed,
    )
    return found | {"scores": found["scores"] | scores}


def held_part(prepared: Supervision) -> str:
    """The part that scores: test, else dev, else train."""
    return next(name for name in ("test", "dev", "train") if len(prepared.rows.get(name, ())))


def held_out(prepared: Supervision) -> tuple[list[np.ndarray], list[Any]]:
    """Rows of token ids, those that score first, and questions by which an export is compared with its model."""
    part = held_part(prepared)
    parts = dict.fromkeys((part, "dev" if prepared.rows.get("dev") else part))
    rows = [row.ids for name in parts for row in prepared.rows[name]]
    return rows, [ask(row)[0] for row in getattr(prepared, part) if row.messages]


def token_rows(model: Model, rows: Sequence[Supervised]) -> list[TokenRow]:
    """Rows as perplexity is measured on them, with the bytes that their supervised tokens stand for."""
    return [TokenRow(row.ids, row.trained, _spelled(model, row)) for row in rows]


def _spelled(model: Model, row: Supervised) -> float:
    """Bytes of UTF-8 that the supervised tokens of a row stand for."""
    return float(len(model.encoder.tokenizer.decode(row.ids[row.trained].tolist(), skip_special_tokens=True).encode("utf-8")))


def draw_samples(prepared: Supervision, recipe: Recipe, step: int) -> Samples | None:
    """Greedy answers to the first development questions; None where the rows are plain text, or none are asked for."""
    shown = [row for row in list(prepared.dev)[: recipe.answers.samples] if row.messages]  # type: ignore[attr-defined]
    if not shown:
        return None
    asked = [ask(row) for row in shown]  # type: ignore[arg-type]
    made = answer(generator_of(prepared.model), [prompt for prompt, _ in asked], GenerationOptions(max_tokens=recipe.answers.max_tokens))
    rows = [
        {"question": prompt[-1].content, "answer": one.text if one else "", "reference": reference}
        for (prompt, reference), one in zip(asked, made, strict=True)
    ]
    return Samples(step, tuple(rows))


def _supervise(
    parts: Mapping[str, Conversations], model: Model, recipe: Recipe, watch: Watch
) -> tuple[dict[str, list[Supervised]], dict[str, dict[str, int]]]:
    """The rows of every part, and the counts of what became of them."""
    rows, ledgers = {}, {}
    length, policy = model.encoder.max_length, recipe.data.too_long
    for name, part in parts.items():
        rows[name], ledger = SUPERVISE[model.answers.kind](model.chat, model.encoder, part, max_length=length, too_long=policy)  # type: ignore[arg-type]
        ledgers[name] = ledger.to_dict()
        for sentence in ledger.told:
            watch(Told(f"{name}: {sentence}", "warning" if sentence in ledger.warnings else "note"))
    return rows, ledgers


def _gather(
    parts: Mapping[str, Any], model: Model, facts: dict[str, Any], rows: Mapping[str, Sequence[Supervised]], ledgers: Mapping[str, Any]
) -> Supervision:
    cut = sum(ledger["cut_tokens"] for ledger in ledgers.values())
    named: dict[str, Any] = {name: parts.get(name, []) for name in ("train", "dev", "test")}
    return Supervision(**named, model=model, facts={**facts, "ledger": dict(ledgers)}, truncated_tokens=cut, rows=rows)


def _read(recipe: Recipe, source: Any, watch: Watch) -> tuple[dict[str, Conversations], dict[str, Any]]:
    options = recipe.data
    how: dict[str, Any] = {name: getattr(options, name) for name in ("shape", "prompt", "completion", "system", "delimiter", "encoding")}
    parts = read_conversation_parts(sources.locate_data(source), **how)
    if "train" not in parts:
        raise InputError(f"{options.train} has the parts {', '.join(parts)} but no train part. Give training data.")
    train = parts["train"]
    told = list(train.facts.get("told", []))
    for name, path in (("dev", options.dev), ("test", options.test)):
        if path:
            parts[name] = read_conversations(sources.locate_data(path), **how)
    if options.limit and options.limit < len(train):
        chosen = np.random.default_rng(recipe.train.seed).permutation(len(train))[: options.limit]
        told.append(f"{options.limit} of {len(train)} training rows are used, drawn with seed {recipe.train.seed}.")
        train = train.take(sorted(int(number) for number in chosen))
    shares = {"dev": parts.get("dev", options.dev_share), "test": parts.get("test", options.test_share)}
    divided = split_conversations(train, **shares, seed=recipe.train.seed)
    for sentence in [*told, *divided.facts.get("told", [])]:
        watch(Told(sentence))
    found = {"train": divided.train, "dev": divided.dev, "test": divided.test}
    parts = {name: part for name, part in found.items() if part is not None and len(part)}
    facts = {
        "task": options.task, "columns": train.columns.as_dict(), "told": told, "split": divided.facts, "findings": [],
        "parts": {name: {"rows": len(part), "source": part.source, "told": part.facts.get("told", [])} for name, part in parts.items()},
    }  # fmt: skip
    return parts, facts


def _read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The chat template {path!r} cannot be read ({error}). Give a file with a Jinja template.") from None


def encode_rows(rows: Sequence[Supervised]) -> Rows:
    """Rows for the loop; a row weighs as much as it has supervised tokens."""
    ids = [row.ids for row in rows]
    counts = np.array([int(row.trained.sum()) for row in rows], dtype=np.float32)
    encoded = Encoded(ids, None, np.array([len(row) for row in ids], dtype=np.int64), 0)
    return Rows(encoded, np.zeros(len(rows), dtype=np.int64), counts)


def _check_options(recipe: Recipe) -> None:
    options = dataclasses.asdict(recipe.train)
    wrong = [name for name, plain in WITHOUT.items() if options.get(name, plain) != plain]
    if wrong:
        names = ", ".join(name.replace("_", "-") for name in wrong)
        raise InputError(f"{names} has no meaning for {recipe.data.task}, whose loss is that of tokens. Leave it out.")
    strange = next((name for name in recipe.answers.metrics if name not in METRICS), None)
    if strange and (strange == "multiple_choice" or strange.startswith("pass@")):
        raise InputError(f"{strange} needs data of its own. Measure it after fit: lightune evaluate RUN DATA --metrics {strange}")
    if strange:
        raise unknown("metric", strange, METRICS)
    if recipe.budget.limits and recipe.data.task != "generate":
        raise InputError(
            f"A budget (max-mb, max-ms, max-ram, keep) cannot be searched for models of the task {recipe.data.task}. Leave it out."
        )
