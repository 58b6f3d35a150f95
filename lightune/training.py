"""The one training loop: a generator of facts. Callers log, save and stop; nothing is printed here.

A step takes `batch_size` examples of every process. It is cut into pieces that hold the token budget; every example's loss is divided by the
weight of the whole step, so a step's gradient does not depend on how it was cut or on how many processes share it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightune import architectures, kernels
from lightune.data import Example
from lightune.data.batches import cut_step, plan_epoch
from lightune.development import Judge, LabelJudge
from lightune.errors import InputError, IntegrityError, unknown
from lightune.halves import Halves
from lightune.metrics import LOWER_IS_BETTER
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.optimizers import Optimizer, find_optimizer, rate_share
from lightune.options import parse_spec
from lightune.recipes import TrainOptions
from lightune.runtime.predictor import usable_cores
from lightune.runtime.tokenization import Encoded

PACED = 8  # steps after which their pace is known
# What a checkpoint keeps of the loop.
PROGRESS = ("step", "total", "peak", "since_best", "since_drop", "best_value", "seconds", "precision")
LEAST_WIDTH = 256  # of the precision probe: narrower products take too little time to compare
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 1  # the rate halves after more than one evaluation without improvement
DEFAULT_RATE = 1e-4  # of a model whose last change has none, such as a merged one
LEAST_STEPS, LEAST_EPOCHS, MOST_EPOCHS = 600, 3, 30  # of the default number of epochs

Objective = Callable[[Network, dict[str, Tensor], Tensor, np.ndarray], Tensor]


@dataclass(frozen=True)
class Rows:
    """What the loop learns from: token ids, what the loss compares with, and how much every row counts.

    encoded: n rows. targets: [n] or [n, k], see the task. weights: float32 [n].
    """

    encoded: Encoded
    targets: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, model: Model, examples: Sequence[Example], balanced: bool = False) -> Rows:
        """The rows of labelled examples, for a model's tokenizer and task."""
        targets = model.task.targets(examples)
        encoded = model.encoder.encode([item.text for item in examples], [item.pair for item in examples])
        return cls(encoded, targets, model.task.weights(targets, balanced))


@dataclass(frozen=True)
class Step:
    """What one step did. Times are seconds since the loop began; tokens and examples are this step's, of all processes."""

    step: int
    epoch: float
    loss: float
    rate: float
    tokens: int
    examples: int
    seconds: float
    gradient_norm: float
    kind: str = "step"


@dataclass(frozen=True)
class Evaluation:
    """Scores on the development data after a step; `best` says that these weights are the best so far."""

    step: int
    epoch: float
    loss: float
    scores: dict[str, float]
    metric: str
    best: bool
    seconds: float
    kind: str = "evaluation"


@dataclass(frozen=True)
class Forecast:
    """What a run will cost, measured on two steps of its own data before it starts, and how many parameters it trains."""

    steps: int
    epochs: float
    seconds: float
    bytes: int
    precision: str
    trainable_parameters: int
    total_parameters: int


class Training:
    """One adaptation in progress.

    Args:
        model: the model whose trainable parameters are moved; it holds the best weights when `steps` ends.
        train: examples, or rows that are encoded already. dev: examples; where there are none, the last weights are kept.
        options: see TrainOptions.
        objective: maps (network, batch, targets, places) to a loss for each example [b], places being those of the batch's examples among
            the training rows, int64 [b]; the task's own by default.
        judge: what scores the weights on development data; by default the task's own metrics on `dev`.
    """

    def __init__(
        self,
        model: Model,
        train: Sequence[Example] | Rows,
        dev: Sequence[Example],
        options: TrainOptions,
        objective: Objective | None = None,
        judge: Judge | None = None,
    ) -> None:
        if not isinstance(train, Rows) and not len(train):
            raise InputError("There are no training examples. Give data with at least one labelled row.")
        find_optimizer(parse_spec(options.optimizer)[0])
        torch.set_num_threads(options.threads or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        torch.manual_seed(options.seed)
        # several processes on CPUs find each other only where they are told; one alone must not, for accelerate keeps the first answer for good
        together = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = together and (options.device == "cpu" or not torch.accelerator.is_available())
        self.accelerator = Accelerator(cpu=on_cpu, dataloader_config=DataLoaderConfiguration())
        self.device = choose_device(options.device, self.accelerator)
        self.model, self.options, self.dev = model, options, dev
        self.network = model.network.to(self.device)
        kernels.replace_dropout(self.network.backbone, options.dropout)
        self.network.set_head_dropout(options.head_dropout)
        if options.gradient_checkpointing:
            checkpoint_activations(self.network.backbone)
        self.objective = objective or task_objective(model.task, options)
        rows = train if isinstance(train, Rows) else Rows.of(model, train, options.class_weights == "balanced")
        self.encoded, self.targets, self.weights = rows.encoded, rows.targets, rows.weights
        self.lengths = np.array([len(ids) for ids in self.encoded.ids])
        self.judge: Judge = LabelJudge(model, dev, self.targets) if judge is None else judge  # one without rows is false
        self.step_size = options.batch_size * self.accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(self.lengths) / self.step_size)
        self.total: int  # steps until the end, and those that were planned
        self.planned: int
        self._plan(options.epochs or default_epochs(self.steps_per_epoch))
        self.rate: float = options.rate or float(getattr(model.changes[-1], "rate", DEFAULT_RATE))
        self.optimizer = self._new_optimizer()
        self.halves = Halves(self.network) if options.precision != "fp32" else None
        self.precision = self._choose_precision()
        if self.precision != "bf16":
            self.halves = None
        self.metric = self._choose_metric()
        self.step = 0
        self.peak = 1.0  # what the plateau schedule has left of the rate
        self.since_best = self.since_drop = 0
        self.best: dict[str, Tensor] | None = None
        self.best_value: float | None = None
        self.seconds = 0.0
        self.until: float | None = None  # seconds of training in all, and the step and the seconds from which the pace is counted
        self.counted = (0, 0.0)
        self.look = 0.0  # seconds of the last evaluation
        self.asked_to_stop = self.stopping = False
        torch.manual_seed(options.seed + 1 + self.accelerator.process_index)

    def steps(self) -> Iterator[Step | Evaluation]:
        """Train from where we are to the end, and give each fact as it happens. At the end the model holds its best weights.

        Between two facts the caller may `save`; a generator that is closed early leaves the weights as they are.
        """
        clock = time.perf_counter() - self.seconds
        while self.step < self.total and not self._patience_is_over():
            epoch, place = divmod(self.step, self.steps_per_epoch)
            plan = plan_epoch(self.lengths, self.step_size, self.options.seed, epoch)
            for rows in plan[place:]:
                fact = self._take_step(rows)
                self.seconds = taken = time.perf_counter() - clock
                evaluation = self._evaluate() if self.evaluates_now else None
                self.seconds = time.perf_counter() - clock
                self.look = self.seconds - taken if evaluation else self.look
                yield dataclasses.replace(fact, seconds=round(self.seconds, 3))
                if evaluation:
                    yield dataclasses.replace(evaluation, seconds=round(self.seconds, 3))
                if self.stopping:
                    return
                self._keep_time()
                if self.step >= self.total or (evaluation and self._patience_is_over()):
                    break
        self.keep_best()

    @property
    def evaluates_now(self) -> bool:
        """Whether an evaluation belongs to the step that was just taken: its fact is the last of the step."""
        every = self.options.evaluate_every or self.steps_per_epoch
        return len(self.judge) > 0 and (self.step % every == 0 or self.step == self.total)

    def request_stop(self) -> None:
        """End `steps` after the step in progress, in every process; a checkpoint saved then can be resumed. Safe in a signal handler."""
        self.asked_to_stop = True
        if self.accelerator.num_processes == 1:
            self.stopping = True  # several processes agree on it in their next step, so that none waits for another

    def finish_early(self) -> None:
        """Make the next step the last one. Other than after a stop, `steps` then ends as at its end: evaluated, with the best weights."""
        self.total = min(self.total, self.step + 1)

    def end_by(self, seconds: float) -> None:
        """End when training has taken so many seconds in all, in one process: how many steps there are still, and with them the schedule of the rate,
        follow the pace from here on. A forecast that was wrong then costs neither the end of the schedule nor the time that is left."""
        self.until, self.counted = seconds, (self.step, self.seconds)

    def _keep_time(self) -> None:
        """Plan the steps still to come by the pace so far, where there is an end in time."""
        taken = self.step - self.counted[0]
        if self.until is not None and taken >= PACED and self.step < self.total:
            pace = (self.seconds - self.counted[1]) / taken
            self.total = self.step + max(1, int((self.until - self.look - self.seconds) / pace))

    def keep_best(self) -> None:
        """Put the best weights seen into the model and fit its calibration on the development data."""
        if self.best is not None:
            with torch.no_grad():
                for name, item in self.model.trainable().items():
                    item.copy_(self.best[name])
        if len(self.judge):
            self.judge.calibrate()
        self.network.eval()

    def forecast(self) -> Forecast:
        """Time and memory that the run will need, from two real steps whose effect is undone."""
        return self._foresee(self._time_step())

    def settle(self, seconds: float) -> Forecast:
        """Choose the epochs so that training and its evaluations end within some seconds, as two steps that are undone foretell.

        No more than `options.epochs`, or MOST_EPOCHS where there are none.

        Raises:
            InputError: not even one step and one evaluation end within them.
        """
        step = self._time_step()
        every, look = self._evaluation_steps()
        steps = seconds / step
        whole = steps / (1 + look / every)
        total = int(broadcast_object_list([whole if whole >= every else steps - look])[0])
        if total < 1:
            raise InputError(
                f"{seconds:.3g} s are too short to train: a step of {self.step_size} examples and an evaluation on {len(self.judge)} development "
                f"rows take about {step * (1 + look):.3g} s here. Give more time, or fewer development rows."
            )
        self._plan(min(total / self.steps_per_epoch, self.options.epochs or MOST_EPOCHS))
        return self._foresee(step)

    def _plan(self, epochs: float) -> None:
        """Set how many steps there are."""
        self.epochs = epochs
        self.total = self.planned = max(1, round(epochs * self.steps_per_epoch))

    @property
    def warmup(self) -> int:
        """In how many steps the rate rises."""
        return math.ceil(self.options.warmup * self.total)

    def _evaluation_steps(self) -> tuple[float, float]:
        """How many steps lie between two evaluations, and how many steps' time one takes: a forward pass costs a third of a step."""
        return self.options.evaluate_every or self.steps_per_epoch, len(self.judge) / self.step_size / 3

    def _foresee(self, step: float) -> Forecast:
        """The forecast of a run whose steps take so many seconds."""
        every, look = self._evaluation_steps()
        evaluations = max(1.0, self.total / every)
        moments = sum(item.numel() * 8 for item in self.optimizer.parameters)
        weights = sum(item.numel() * 4 for item in self.network.parameters())
        memory = weights + moments * 2 + self._activation_bytes()
        sizes = [architectures.share_of(self.network, trainable_only=only) for only in (True, False)]
        return Forecast(self.total, self.epochs, step * (self.total + evaluations * look), memory, self.precision, *sizes)

    def _time_step(self) -> float:
        """Seconds of a step of middling length: the faster of two, the first of which also makes the optimizer's moments."""
        keep = {name: item.detach().clone() for name, item in self.model.trainable().items()}
        noise = torch.get_rng_state()
        plan = plan_epoch(self.lengths, self.step_size, self.options.seed, 0)
        chosen = sorted(plan, key=lambda rows: int(self.lengths[rows].sum()))[len(plan) // 2]
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            self._gradient(chosen)
            self.optimizer.clip(self.options.clip)
            self.optimizer.step()
            times.append(time.perf_counter() - begin)
        self.optimizer = self._new_optimizer()
        with torch.no_grad():
            for name, item in self.model.trainable().items():
                item.copy_(keep[name])
        torch.set_rng_state(noise)
        return min(times)

    def _new_optimizer(self) -> Optimizer:
        last = self.model.changes[-1]
        multiple = {"multiple": last.rate_multiple} if hasattr(last, "rate_multiple") else {}
        return Optimizer(self.options.optimizer, self.network, self.rate, self.options.weight_decay, **multiple)

    def alarms(self) -> list[str]:
        """Sentences about a run that did not learn, or learned nothing beyond the commonest answer."""
        if self.best_value is None or not len(self.judge):
            return []
        base = self.judge.ignorant(self.metric)
        lower = self.metric in LOWER_IS_BETTER
        if (self.best_value < base) if lower else (self.best_value > base):
            return []
        return [
            f"The run did not learn: dev {self.metric} {self.best_value:.3f} is no better than {base:.3f}, which a model reaches that has learned "
            f"nothing. Try another rate (it was {self.rate:g}), more epochs (it was {self.epochs:g}), or look at the data."
        ]

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint atomically: a reader finds the whole of it or nothing. The one before it is removed afterwards."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        final, passing = folder / f"step-{self.step:07d}", folder / f".writing-{os.getpid()}"
        shutil.rmtree(passing, ignore_errors=True)
        passing.mkdir()
        save_file(
            {name: item.detach().contiguous().cpu() for name, item in self.model.trainable().items()}, passing / "weights.safetensors"
        )
        save_file({**self.optimizer.state(), **self._random_states()}, passing / "optimizer.safetensors")
        if self.best is not None:
            save_file({name: item.contiguous().cpu() for name, item in self.best.items()}, passing / "best.safetensors")
        (passing / "state.json").write_text(json.dumps(self._progress()), encoding="utf-8")
        for path in passing.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        passing.rename(final)
        for old in folder.glob("step-*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        return final

    def restore(self, folder: str | Path) -> int:
        """Go back to the newest checkpoint in a folder; the steps after it are those of the run that was never interrupted.

        Returns the step reached, 0 where there is no checkpoint.

        Raises:
            IntegrityError: the checkpoint cannot be read, or belongs to other data or options.
        """
        found = sorted(Path(folder).glob("step-*"))
        if not found:
            return 0
        try:
            progress = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
            weights, moments = load_file(found[-1] / "weights.safetensors"), load_file(found[-1] / "optimizer.safetensors")
            best = load_file(found[-1] / "best.safetensors") if progress["has_best"] else None
        except (OSError, ValueError, SafetensorError) as error:
            raise IntegrityError(f"The checkpoint {found[-1]} cannot be read ({error}). Remove it to start over.") from None
        if progress["fingerprint"] != self._fingerprint():
            raise IntegrityError(
                f"The checkpoint {found[-1]} belongs to other data or options. Start a new run, or repeat it with RUN/recipe.toml."
            )
        with torch.no_grad():
            for name, item in self.model.trainable().items():
                item.copy_(weights[name])
        torch.set_rng_state(moments.pop("random"))
        if (random := moments.pop("random_cuda", None)) is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(random, self.device)
        self.optimizer.restore(moments)
        self.best = best
        for name in PROGRESS:
            setattr(self, name, progress[name])
        return self.step

    def _take_step(self, rows: np.ndarray) -> Step:
        rate = self.rate * self.peak * rate_share(self.options.schedule, self.step, self.total, self.warmup)
        self.optimizer.set_rate(rate)
        loss, tokens = self._gradient(rows)
        if not math.isfinite(loss):
            raise InputError(f"The loss became {loss} at step {self.step + 1}. Lower the rate (it is {rate:g}) or use precision fp32.")
        norm = self.optimizer.clip(self.options.clip)
        self.optimizer.step()
        self.step += 1
        return Step(self.step, round(self.step / self.steps_per_epoch, 4), loss, rate, tokens, len(rows), 0.0, norm)

    def _gradient(self, rows: np.ndarray) -> tuple[float, int]:
        """Add the gradient of a step's mean loss to the parameters; gives the loss and the step's tokens, over all processes."""
        self.network.train()
        whole = float(self.weights[rows].sum()) or 1.0
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        mine = rows[np.argsort(self.lengths[rows], kind="stable")][index::processes]
        total = torch.zeros(2, device=self.device)  # the loss, and whether anyone wants to stop
        total[1] = self.asked_to_stop
        for piece in cut_step(mine, self.lengths, self.options.batch_tokens):
            batch = tensors(self.model.encoder.pad(self.encoded, piece), self.device)
            targets, weights = (torch.from_numpy(values[piece]).to(self.device) for values in (self.targets, self.weights))
            with self.in_precision():
                losses = self.objective(self.network, batch, targets, piece)
                loss = (losses.float() * weights).sum() / whole
                loss.backward()
            if self.halves is not None:
                self.halves.collect()
            total[0] += loss.detach()
        if processes > 1:
            self._share_gradient()
            total = self.accelerator.reduce(total, "sum")
            self.stopping = bool(total[1] > 0)
        return float(total[0]), int(self.lengths[rows].sum())

    def _share_gradient(self) -> None:
        """Add up the processes' gradients in one message; the rows of a table that count as touched are those that any process touched."""
        items, tables = self.optimizer.parameters, self.optimizer.tables
        grads = [torch.zeros_like(item) if item.grad is None else item.grad.to_dense() for item in items]
        touched = [torch.zeros(len(table), device=self.device) for table in tables]
        for marks, table in zip(touched, tables, strict=True):
            if table.grad is not None:
                marks[table.grad.coalesce().indices()[0]] = 1
        pieces = [*grads, *touched]
        flat = self.accelerator.reduce(torch.cat([piece.flatten() for piece in pieces]), "sum")
        parts = flat.split([piece.numel() for piece in pieces])
        for item, part in zip(items, parts[: len(items)], strict=True):
            item.grad = part.view_as(item)
        for table, marks in zip(tables, parts[len(items) :], strict=True):
            rows = marks.nonzero()[:, 0]
            table.grad = torch.sparse_coo_tensor(rows[None], table.grad[rows], table.shape, is_coalesced=True)  # type: ignore[index]

    def _evaluate(self) -> Evaluation:
        scores = self.judge.scores(self.metric)
        value = scores.get(self.metric)
        if value is None:
            raise unknown("metric", self.metric, scores)
        better = self.best_value is None or (value < self.best_value if self.metric in LOWER_IS_BETTER else value > self.best_value)
        if better:
            self.best_value, self.since_best, self.since_drop = value, 0, 0
            self.best = {name: item.detach().clone() for name, item in self.model.trainable().items()}
            self.judge.keep()
        else:
            self.since_best, self.since_drop = self.since_best + 1, self.since_drop + 1
            if self.options.schedule == "plateau" and self.since_drop > PLATEAU_PATIENCE:
                self.peak, self.since_drop = self.peak * PLATEAU_FACTOR, 0
        epoch = round(self.step / self.steps_per_epoch, 4)
        return Evaluation(self.step, epoch, scores["loss"], scores, self.metric, better, 0.0)

    def _patience_is_over(self) -> bool:
        return self.options.patience is not None and self.since_best >= self.options.patience

    def _choose_metric(self) -> str:
        """The metric that chooses; a name that the task does not have is refused before any training."""
        needs = {"patience": self.options.patience, "metric": self.options.metric, "schedule plateau": self.options.schedule == "plateau"}
        asked = [option for option, value in needs.items() if value]
        if asked and not len(self.judge):
            raise InputError(f"{', '.join(asked)} needs development data, but there are none. Give --dev, or a --dev-share above 0.")
        name = self.options.metric or self.judge.primary
        if self.options.metric and len(self.judge) and name not in (known := self.judge.names()):
            raise unknown("metric", name, known)
        return name

    def _choose_precision(self) -> str:
        """The asked precision, or the one that the first process finds best: all of them must take the same."""
        if self.options.precision != "auto":
            return self.options.precision
        return str(broadcast_object_list([self._probe_precision()])[0])

    def _probe_precision(self) -> str:
        """bf16 where it is faster on this device and gives the same loss, else fp32."""
        config: Any = self.network.backbone.config
        if not bf16_is_faster(self.device, max(config.hidden_size, LEAST_WIDTH)):
            return "fp32"
        rows = np.argsort(self.lengths)[len(self.lengths) // 2 :][: self.options.batch_size]
        losses = {}
        for precision in ("fp32", "bf16"):
            self.precision = precision
            self.network.eval()
            batch = tensors(self.model.encoder.pad(self.encoded, rows), self.device)
            with torch.no_grad(), self.in_precision():
                targets = torch.from_numpy(self.targets[rows]).to(self.device)
                losses[precision] = float(self.objective(self.network, batch, targets, rows).mean())
        return "bf16" if abs(losses["bf16"] - losses["fp32"]) <= 0.02 * abs(losses["fp32"]) else "fp32"

    @contextmanager
    def in_precision(self) -> Iterator[None]:
        """The chosen precision for a pass forward and backward."""
        if self.precision != "bf16" or self.halves is None:
            yield
            return
        with self.halves.used(), torch.autocast(self.device.type, torch.bfloat16):
            yield

    def _activation_bytes(self) -> int:
        """A rule of thumb: 34 activations of the hidden size for each token and layer (Korthikanti et al. 2022, equation 2)."""
        config: Any = self.network.backbone.config
        tokens = min(self.options.batch_tokens, int(self.lengths.max()) * self.options.batch_size)
        return 34 * tokens * config.hidden_size * getattr(config, "num_hidden_layers", 12) * 2

    def _progress(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in PROGRESS}, "has_best": self.best is not None, "fingerprint": self._fingerprint()}

    def _random_states(self) -> dict[str, Tensor]:
        """The state of every generator that dropout draws from."""
        states = {"random": torch.get_rng_state()}
        return states | ({"random_cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to be the same run: sizes, totals, seed and rate."""
        parts = (
            len(self.lengths),
            int(self.lengths.sum()),
            self.planned,
            self.step_size,
            self.options.seed,
            self.rate,
            self.options.optimizer,
        )
        return "/".join(map(str, parts))


def task_objective(task: Any, options: TrainOptions) -> Objective:
    """The task's own loss, and with R-Drop the divergence of two dropout passes through one doubled batch (Liang et al. 2021, equation 4)."""

    def losses(network: Network, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        return task.losses(network(**batch), targets, options.label_smoothing)

    def doubled(network: Network, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        logits = network(**{name: torch.cat([value, value]) for name, value in batch.items()})
        one, other = logits.chunk(2)
        plain = (task.losses(one, targets, options.label_smoothing) + task.losses(other, targets, options.label_smoothing)) / 2
        return plain + options.r_drop * task.divergences(one, other)

    return doubled if options.r_drop else losses


def checkpoint_activations(backbone: Any) -> None:
    """Keep only what lies between the blocks, and compute the rest again in the backward pass (Chen et al. 2016).

    Raises:
        InputError: a base that cannot.
    """
    enable = getattr(backbone, "activation_checkpointing_enable", None) or getattr(backbone, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(backbone, "supports_gradient_checkpointing", False):
        raise InputError(
            f"{type(backbone).__name__} cannot compute activations twice. Leave gradient-checkpointing out, or lower batch-tokens."
        )
    enable({"use_reentrant": False})


def default_epochs(steps_per_epoch: int) -> float:
    """Enough epochs for LEAST_STEPS steps, between LEAST_EPOCHS and MOST_EPOCHS."""
    return float(min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps_per_epoch))))


def choose_device(name: str, accelerator: Accelerator) -> torch.device:
    """The device to train on.

    Raises:
        InputError: a device that this machine does not have.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no CUDA device here. Use device auto or cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device is mps, but torch sees no Apple GPU here. Use device auto or cpu.")
    return torch.device(name) if name in ("cpu", "mps") else accelerator.device


@functools.cache
def bf16_is_faster(device: torch.device, width: int, rows: int = 256, least: float = 1.3) -> bool:
    """Whether a bf16 matrix product [rows, width] × [width, 4·width] runs at least `least` times as fast as fp32 on the device.

    It is measured once: on a busy machine a second answer may differ, and what was read in one precision is used further in the same.
    """
    times = {}
    for kind in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(shape, dtype=kind, device=device) for shape in ((rows, width), (width, 4 * width)))
        seen = []
        for _ in range(7):
            begin = time.perf_counter()
            float((left @ right)[0, 0])
            seen.append(time.perf_counter() - begin)
        times[kind] = min(seen)  # the least is what the machine can do when it is left alone
    return times[torch.float32] / times[torch.bfloat16] >= least
