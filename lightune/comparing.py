"""Methods side by side on the user's own rows and machine: each gets the same time, in a process of its own, so that its memory is its own.

FOLDER/compare.json  what was asked, and what every method that is done cost and scored
FOLDER/compare.html  the same as a page
FOLDER/recipe.toml   the options that all methods share
FOLDER/METHOD/       a run as `fit` writes it: it predicts, exports, reports, and goes on after a stop
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from lightune import __version__, contrast, exports, models, sources
from lightune.data import Example
from lightune.errors import CheckFailed, InputError, IntegrityError, LightuneError, nearest
from lightune.fitting import complete, find_targets
from lightune.methods import METHODS, make_method
from lightune.metrics import LOWER_IS_BETTER
from lightune.options import format_spec
from lightune.preparation import Interrupted, Prepared, Told, Watch, prepare_base, put_method, stop_on_signals
from lightune.recipes import Recipe, format_recipe, parse_seconds, read_recipe, resolve
from lightune.reports import write_report
from lightune.runs import Run, describe_environment, free_name, full_disk_told, new_run
from lightune.runtime.answers import Answers
from lightune.tasks import task_for
from lightune.training import Evaluation, Forecast, Step

FORMAT = 1
COMPARED = ("full", "lora", "bitfit", "head", "freeze")
TIME = "10min"
FACTS = {cls.__name__: cls for cls in (Told, Forecast, Step, Evaluation)}  # what a method's process tells, a JSON line each
ERRORS = {cls.__name__: cls for cls in (InputError, IntegrityError, CheckFailed, Interrupted)}
COPIED = (
    "scores", "trainable_parameters", "total_parameters", "weights_bytes", "epochs", "steps", "seconds", "peak_resident_bytes", "precision",
    "stopped", "learned",
)  # fmt: skip

# The process of one method: what libraries print goes to stderr, so that stdout holds facts alone.
_PROCESS = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
told = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
from lightune.comparing import work
sys.exit(work(json.load(sys.stdin), told))
"""


@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison."""

    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        """compare.json.

        Returns:
            name, task, base, metric, part (which rows were scored), examples, seconds (asked for all), share (for each), best, and methods: a list
            of {method, folder, score {value, low, high}, scores, trainable_parameters, total_parameters, weights_bytes, epochs, steps, seconds,
            peak_resident_bytes, milliseconds {p50, p95, batch, length}, precision, stopped, learned, artifacts} or {method, refused}.
        """
        return dict(Run(self.folder).read("compare.json"))

    @property
    def runs(self) -> list[Path]:
        """The folders of the methods that are done, in their order."""
        return [self.folder / row["folder"] for row in self.record["methods"] if "folder" in row]


def compare(
    data: Any = None,
    out: str | Path | None = None,
    *,
    methods: Sequence[str] = COMPARED,
    time: str = TIME,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    watch: Watch = lambda fact: None,
    **options: Any,
) -> Comparison:
    """Train methods for the same wall-clock on the same rows, and tell what each scores and costs.

    Every method is trained by the loop of `fit` with its own default rate, in a process of its own; two timed steps choose its epochs. Peak
    memory is that process's peak resident memory (on Linux VmHWM) at the end of training. Latency is that of one text on one thread, of the
    model with its changes folded in.

    Args:
        data, out, recipe, overwrite, watch, options: as for `fit`; `comparisons/NAME` is the folder by default, and nothing is exported unless
            `to` says so. epochs: the most that a method may take.
        methods: specs such as ``lora:rank=16``. time: for the training of all together, as in ``5min``.

    Raises:
        InputError: the data, a method, a name or an option is wrong, the time is too short for a step, or no method suits the base.
        Interrupted: Ctrl-C or SIGTERM; `resume` goes on.
    """
    named = {"train": str(data)} if isinstance(data, (str, Path)) else {}
    values = dataclasses.asdict(recipe) if recipe else {"to": ("none",)}
    shared = resolve(values, {**options, **named})
    find_targets(shared)
    specs = check_methods(methods)
    share = parse_seconds(time) / len(specs)
    source = data if data is not None else shared.data.train
    if isinstance(source, str) and not source:
        raise InputError("No data were given. Give a file with texts and labels: lightune compare reviews.csv")
    stem = Path(shared.data.train).name.split(".")[0] or "rows"
    run = new_run(Path(out) if out else free_name(stem, Path("comparisons")), overwrite=overwrite)
    made = not any(run.folder.iterdir())
    try:
        prepared = prepare_base(shared, source, watch)
    except LightuneError:
        if made:
            run.folder.rmdir()  # nothing was done: leave nothing behind
        raise
    if overwrite:
        _clear(run)
    run.write("recipe.toml", format_recipe(shared))
    record = {
        "format": FORMAT, "lightune": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": Path(shared.data.train).name or "rows", "task": prepared.model.answers.kind, "base": prepared.model.base.name,
        "metric": None, "part": None, "examples": {"train": len(prepared.train), "dev": len(prepared.dev), "test": len(prepared.test)},
        "seconds": share * len(specs), "share": share, "asked": list(specs), "best": None, "methods": [],
    }  # fmt: skip
    run.write("compare.json", record)
    return _carry_out(run, shared, prepared, watch)


def resume(folder: str | Path, *, data: Any = None, watch: Watch = lambda fact: None) -> Comparison:
    """Go on with a comparison where it stopped; methods that are done are not repeated. Data given as objects are given again.

    Raises:
        InputError: the folder is no comparison, or its data are gone.
    """
    run = Run(Path(folder))
    if not (run.folder / "compare.json").is_file():
        raise InputError(f"{str(folder)!r} is no comparison: it has no compare.json. Give the folder that lightune compare wrote.")
    if run.read("compare.json")["best"]:
        watch(Told(f"{run.folder} is finished already."))
        return Comparison(run.folder)
    shared = resolve(read_recipe(run.folder / "recipe.toml"), {})
    return _carry_out(run, shared, prepare_base(shared, data if data is not None else shared.data.train, watch), watch)


def check_methods(specs: Sequence[str]) -> tuple[str, ...]:
    """The specs in their shortest form.

    Raises:
        InputError: no method, one twice, or names and options that do not exist, all at once.
    """
    names = [spec.partition(":")[0].strip() for spec in specs]
    if strangers := [f"{name!r}.{nearest(name, METHODS)}" for name in names if name not in METHODS]:
        raise InputError(f"Unknown methods: {' '.join(strangers)} Known: {', '.join(METHODS)}.")
    problems, found = [], []
    for name, spec in zip(names, specs, strict=True):
        try:
            found.append(format_spec(name, make_method(spec)))
        except InputError as error:
            problems.append(f"{spec}: {error}")
    if problems:
        raise InputError(" ".join(problems))
    if twice := sorted({spec for spec in found if found.count(spec) > 1}):
        raise InputError(f"The method {twice[0]} is named twice. Name each once, or give it other options.")
    if not found:
        raise InputError(f"No methods were given, expected one or more of {', '.join(METHODS)}.")
    return tuple(found)


def split_specs(text: str) -> tuple[str, ...]:
    """``full,lora:rank=16,alpha=32,head`` → ("full", "lora:rank=16,alpha=32", "head"): what holds KEY=VALUE belongs to the method before it."""
    found: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if found and "=" in part and ":" not in part.partition("=")[0]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return tuple(found)


def _carry_out(run: Run, shared: Recipe, prepared: Prepared, watch: Watch) -> Comparison:
    """Train what is not done yet, one after the other, and write the page."""
    work = Race(run, shared, _message(prepared), prepared.facts, watch)
    del prepared  # the base is loaded again by each process
    with stop_on_signals(work) as caught:
        work.run_all()
    if work.stopping:
        name = caught[0] if caught else "a signal"
        raise Interrupted(f"Stopped by {name}; what is done is saved. Go on: lightune compare --resume {run.folder}")
    return work.conclude()


class Race:
    """The methods of a comparison, one after the other, each in a process that can be stopped and goes on from its checkpoint."""

    def __init__(self, run: Run, shared: Recipe, message: dict[str, Any], facts: dict[str, Any], watch: Watch) -> None:
        self.run, self.shared, self.message, self.facts, self.watch = run, shared, message, facts, watch
        self.record = run.read("compare.json")
        self.process: subprocess.Popen[str] | None = None
        self.stopping = False

    def request_stop(self) -> None:
        """End after the step in progress, which the method's process saves. Safe in a signal handler."""
        self.stopping = True
        if self.process is not None:
            self.process.terminate()

    def run_all(self) -> None:
        """Train every method that is not in the record yet, and put it there."""
        specs, done = self.record["asked"], {row["method"] for row in self.record["methods"]}
        for number, spec in enumerate(specs, start=1):
            if spec in done:
                continue
            self.watch(Told(f"{spec}, {number} of {len(specs)}: {self.record['share']:.3g} s"))
            row = self._run_one(spec)
            if self.stopping or row is None:
                self.stopping = True
                return
            self.record["methods"].append(row)
            self.run.write("compare.json", self.record)

    def conclude(self) -> Comparison:
        """Name the best, write the page.

        Raises:
            InputError: no method could be trained.
        """
        rows = [row for row in self.record["methods"] if "score" in row]
        if not rows:
            told = " ".join(f"{row['method']}: {row['refused']}" for row in self.record["methods"])
            raise InputError(f"No method could be trained. {told}")
        sign = -1 if self.record["metric"] in LOWER_IS_BETTER else 1
        self.record["best"] = max(rows, key=lambda row: sign * row["score"]["value"])["method"]
        self.run.write("compare.json", self.record)
        write_report([self.run.folder / row["folder"] for row in rows], self.run.folder / "compare.html")
        return Comparison(self.run.folder)

    def _run_one(self, spec: str) -> dict[str, Any] | None:
        """A method's row; None where its process was stopped."""
        run = Run(self.run.folder / exports.folder_name(spec))
        if not (run.folder / "run.json").exists():
            if not (run.folder / "recipe.toml").exists():
                with full_disk_told(run.folder):
                    run.folder.mkdir(exist_ok=True)
                run.write("environment.json", describe_environment(self.shared.train.seed))
                run.write("data.json", self.facts)
                run.write("recipe.toml", format_recipe(dataclasses.replace(self.shared, method=spec)))
            ended = self._converse({**self.message, "folder": str(run.folder), "seconds": self.record["share"]})
            if ended.get("error") == "Interrupted" or self.stopping:
                return None
            if "refused" in ended:
                self.watch(Told(f"{spec} is left out: {ended['refused']}", "warning"))
                shutil.rmtree(run.folder)
                return {"method": spec, "refused": ended["refused"]}
            if "error" in ended:
                raise ERRORS.get(ended["error"], LightuneError)(f"{spec}: {ended['text']}")
        return self._row(spec, run)

    def _row(self, spec: str, run: Run) -> dict[str, Any]:
        """What a finished run says about its method."""
        facts, told = run.record, run.read("evaluation.json")
        primary = facts["scores"]["primary"]
        self.record |= {"metric": primary, "part": told["part"]}
        row = {"method": spec, "folder": run.folder.name, "score": facts["scores"][primary], **{key: facts[key] for key in COPIED}}
        return row | {"milliseconds": facts["reference"]["milliseconds"], "artifacts": facts["artifacts"]}

    def _converse(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run a method's process, pass on what it tells, and give its last word: empty, {"refused": why} or {"error": kind, "text": why}."""
        command = [sys.executable, "-c", _PROCESS, json.dumps(sys.path)]
        ended: dict[str, Any] = {}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": noise, "encoding": "utf-8"}
            with subprocess.Popen(command, start_new_session=True, **pipes) as process:  # Ctrl-C comes to us alone, and we pass it on
                self.process = process
                assert process.stdin is not None
                assert process.stdout is not None
                if not self.stopping:
                    json.dump(message, process.stdin)
                process.stdin.close()
                for line in process.stdout:
                    fact = json.loads(line)
                    kind = FACTS.get(fact.pop("fact", ""))
                    if kind:
                        self.watch(kind(**fact))
                    else:
                        ended = fact
            self.process = None
            if process.returncode and not ended and not self.stopping:
                noise.seek(0)
                last = (noise.read().strip().splitlines() or ["nothing more is known; it may have run out of memory"])[-1]
                ended = {"refused": f"its process ended with {process.returncode}: {last}"}
        return ended


def work(message: dict[str, Any], told: TextIO) -> int:
    """What the process of one method does: train, score and time in the run folder that the message names. Returns its exit code."""

    def tell(fact: Any) -> None:
        told.write(json.dumps({"fact": type(fact).__name__, **dataclasses.asdict(fact)}) + "\n")
        told.flush()

    run = Run(Path(message["folder"]))
    ended: dict[str, str] = {}
    try:
        recipe = resolve(read_recipe(run.folder / "recipe.toml"), {})
        prepared = _understand(message, recipe)
        try:
            put_method(prepared.model, recipe, prepared.train)
            if recipe.train.contrast:
                contrast.check_suits(prepared.model, recipe.train)
        except InputError as error:  # the method does not suit the base or the other options
            ended = {"refused": str(error)}
        else:
            complete(run, recipe, prepared, tell, resumed=True, seconds=message["seconds"])
    except LightuneError as error:
        ended = {"error": type(error).__name__, "text": str(error)}
    told.write(json.dumps(ended) + "\n")
    told.flush()
    return 1 if ended else 0


def _message(prepared: Prepared) -> dict[str, Any]:
    """Rows, answers and length as JSON: what was read and described once serves the process of every method."""
    model = prepared.model
    parts = {"train": prepared.train, "dev": prepared.dev, "test": prepared.test}
    rows = {name: [[row.text, row.pair, row.target, row.row] for row in part] for name, part in parts.items()}
    return {
        "rows": rows, "answers": model.answers.to_dict(), "max_length": model.encoder.max_length, "truncated_tokens": prepared.truncated_tokens,
    }  # fmt: skip


def _understand(message: dict[str, Any], recipe: Recipe) -> Prepared:
    """The inverse of `_message`, on a base that is loaded anew."""
    several = message["answers"]["kind"] == "multilabel"
    parts = {
        name: [Example(text, pair, tuple(target) if several and target is not None else target, row) for text, pair, target, row in rows]
        for name, rows in message["rows"].items()
    }
    base = sources.resolve_model(recipe.model)
    task = task_for(Answers.from_dict(message["answers"]))
    model = models.start(base, task, max_length=message["max_length"], pooling=recipe.pooling, seed=recipe.train.seed)
    return Prepared(**parts, model=model, facts={}, truncated_tokens=message["truncated_tokens"])


def _clear(run: Run) -> None:
    """Empty a folder of what an earlier comparison wrote, and of nothing else."""
    if (run.folder / "compare.json").exists():
        for spec in run.read("compare.json")["asked"]:
            shutil.rmtree(run.folder / exports.folder_name(spec), ignore_errors=True)
    for name in ("recipe.toml", "compare.json", "compare.html"):
        (run.folder / name).unlink(missing_ok=True)
