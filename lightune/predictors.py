"""A run, a saved model or an artefact by its path, opened as something that predicts, and what the verbs do with it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from lightune import benchmarking, sources
from lightune.costs import measure_probes
from lightune.costs.measuring import PROBES
from lightune.data import Example, read, read_parts
from lightune.data.columns import part_name
from lightune.data.conversations import read_conversation_parts, read_conversations
from lightune.data.records import read_records
from lightune.errors import InputError, MissingExtra
from lightune.language_evaluation import evaluate_generation, evaluate_programs, multiple_choice, read_ks, read_questions
from lightune.options import build
from lightune.recipes import AnswerOptions, ProgramOptions
from lightune.runtime.generation import GenerationOptions, Message
from lightune.runtime.manifest import read_json
from lightune.runtime.written import load_written
from lightune.tasks import GENERATIVE

CHUNK = 512  # rows answered at a time
WRITTEN = 32  # answers written at a time
READING = ("shape", "prompt", "completion", "system", "delimiter", "encoding", "limit")
BENCH_ROWS = 256
SENTENCE = "How can I find out where my new card is and when it will arrive at my house"

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """A predictor (it has logits, predict, answers, encoder and truncated_tokens), where it lies, and what it is: artefact or model."""

    predictor: Any
    folder: Path
    kind: str


def open_predictor(path: str | Path, *, threads: int | None = None) -> Opened:
    """Open a run (its first artefact, else its model), a model folder or an artefact folder.

    Raises:
        InputError: the folder is none of these. IntegrityError: a file was changed or is damaged.
    """
    folder = find_folder(path)
    if (folder / "manifest.json").is_file():
        from lightune.runtime import load as load_artifact

        return Opened(load_artifact(folder, threads=threads), folder, "artefact")
    try:
        import torch

        from lightune.models import load as load_model
    except ImportError:
        raise MissingExtra(f"opening the model {folder}", "torch", "train") from None
    if threads:
        torch.set_num_threads(threads)
    return Opened(load_model(folder), folder, "model")


@dataclass(frozen=True)
class Writer:
    """A generator (see `runtime.generation`) that was opened, the folder or .gguf file of it, and the model in torch that it stands on, None
    where it needs none."""

    generator: Any
    place: Path
    model: Any = None


def open_generator(
    path: str | Path, *, name: str | None = None, threads: int | None = None, context: int | None = None, slots: int = 4
) -> Writer | None:
    """Open a run (its GGUF file first, then its ONNX graph), a model, an artefact or a .gguf file that generates text; None where the path is another task's.

    context, slots: of a GGUF file, see `runtime.gguf.load_gguf`.

    Raises:
        InputError: the path holds nothing of ours. IntegrityError: a file is damaged. MissingExtra: a package is missing.
    """
    folder = _find_light(Path(path)) or find_folder(path)
    if light := load_written(folder, threads=threads, context=context, slots=slots):
        return Writer(light, folder)
    written = (folder / "task.json").is_file() and read_json(folder / "task.json").get("kind") in GENERATIVE
    if not written and (
        not (folder / "model.json").is_file() or read_json(folder / "model.json").get("answers", {}).get("kind") not in GENERATIVE
    ):
        return None
    try:
        import torch

        from lightune import exporting, language, models
    except ImportError:
        raise MissingExtra(f"opening the model {folder}", "torch", "train") from None
    if threads:
        torch.set_num_threads(threads)
    if written:
        return Writer(exporting.open_written(folder), folder)
    model = models.load(folder)
    return Writer(language.generator_of(model, name=name), folder, model)


def _find_light(path: Path) -> Path | None:
    """The .gguf file, or the folder of one or of an ONNX graph, that a path stands for; None where it stands for something else."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    for name in ("model.gguf", "model.onnx"):
        if (path / name).is_file():
            return path
        if found := sorted(path.glob(f"artifacts/*/{name}"), key=lambda file: (file.parent.name != "small", file)):
            return found[0].parent
    return None


def find_folder(path: str | Path) -> Path:
    """The artefact or model folder that a path stands for."""
    folder = Path(path)
    if (folder / "manifest.json").is_file() or (folder / "model.json").is_file():
        return folder
    if (folder / "recipe.toml").is_file():
        found = folder.glob("artifacts/*/manifest.json")  # the one that holds the budget first, then the small ones
        artifacts = sorted(found, key=lambda path: (path.parent.name != "small", "int8" not in path.parent.name, path))
        if artifacts:
            return artifacts[0].parent
        if (folder / "model" / "model.json").is_file():
            return folder / "model"
        raise InputError(f"The run {str(path)!r} is not finished: it has no model yet. Finish it: lightune fit --resume {path}")
    what = "holds no run, model or artefact" if folder.exists() else "does not exist"
    raise InputError(f"{str(path)!r} {what}. Give a folder that lightune fit or lightune export wrote.")


def stream(
    target: str | Path,
    texts: Sequence[str],
    file: str | None,
    *,
    text: str | None = None,
    pair: str | None = None,
    threads: int | None = None,
    options: GenerationOptions | None = None,
) -> Iterator[dict[str, Any]]:
    """The answers to texts, to the rows of a file, or else to the lines of stdin, in their order and with bounded memory.

    options: how a model that generates answers; each text is then the question of a conversation.

    Two texts form one pair where the model compares two; lines of a pair are divided by a tab.
    """
    if writer := open_generator(target, threads=threads):
        yield from _write(writer.generator, texts, file, text, options or GenerationOptions())
        return
    predictor = open_predictor(target, threads=threads).predictor
    rows = (
        _file_rows(file, predictor, text, pair) if file else _given_rows(list(texts), predictor) if texts else _lines(sys.stdin, predictor)
    )
    chunk = 1 if not file and not texts and sys.stdin.isatty() else CHUNK
    while block := list(islice(rows, chunk)):
        yield from predictor.predict(block)


def _write(
    generator: Any, texts: Sequence[str], file: str | None, column: str | None, options: GenerationOptions
) -> Iterator[dict[str, Any]]:
    """What a generator answers to each text."""
    remaining = _questions(file, column) if file else ((Message("user", line.rstrip("\n")),) for line in (texts or sys.stdin))
    try:
        while block := list(islice(remaining, 1 if not file and not texts and sys.stdin.isatty() else WRITTEN)):
            yield from (dataclasses.asdict(made) for made in generator.generate(block, options))
    finally:
        generator.close()


def _questions(file: str, column: str | None = None) -> Iterator[Any]:
    """The lines of a text file as questions, or what is asked in the rows of a data file."""
    if Path(file).suffix == ".txt":
        return ((Message("user", line),) for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines())
    return (row.prompt or row.text for row in read_conversations(sources.locate_data(file), prompt=column))  # type: ignore[misc]


def evaluate_written(generator: Any, data: Any, *, part: str | None = None, **options: Any) -> dict[str, Any]:
    """The scores of a generator on a data set: of its greedy answers to questions, see `language_evaluation.evaluate_generation`; with the
    metrics pass@k of its programs, with multiple_choice of the choices that it finds likeliest.

    options: those of reading (shape, prompt, completion, system, ...), of `recipes.AnswerOptions` (max_tokens, score_rows, metrics) and of
    `recipes.ProgramOptions`.
    """
    asked, programs = _taken(AnswerOptions, options), _taken(ProgramOptions, options)
    asked = dataclasses.replace(asked, metrics=tuple(name.strip() for names in asked.metrics for name in names.split(",")))
    how = {name: options[name] for name in READING if name in options}
    try:
        if ks := read_ks(asked.metrics):
            rows = _rows(data, part, how)
            return evaluate_programs(
                generator, rows, ks, programs, max_tokens=asked.max_tokens, limit=asked.score_rows or None, part=part or "data"
            )
        if "multiple_choice" in asked.metrics:
            if len(asked.metrics) > 1:
                raise InputError(f"The metrics are {', '.join(asked.metrics)}; multiple_choice stands alone. Ask for the others apart.")
            questions = read_questions(row for _, row in _rows(data, part, how))
            return {"part": part or "data", **multiple_choice(generator, questions, limit=asked.score_rows or None)}
        parts = read_conversation_parts(sources.locate_data(data), **how)
        chosen = part_name(part) if part else next(iter(parts)) if len(parts) == 1 else "test"
        if chosen not in parts:
            raise InputError(f"{data} has no part {part or 'test'!r}; it has {', '.join(parts)}. Name one with --part.")
        return evaluate_generation(
            generator,
            [row for row in parts[chosen] if row.messages],
            options=GenerationOptions(max_tokens=asked.max_tokens),
            metrics=asked.metrics or None,
            limit=asked.score_rows or None,
            part=part or "data",
        )
    finally:
        generator.close()


def _taken(cls: type[T], options: dict[str, Any]) -> T:
    """An options object of those among the options that are its own, which are taken out."""
    names = [item.name for item in dataclasses.fields(cls) if item.name in options]  # type: ignore[arg-type]
    return build(cls, {name: options.pop(name) for name in names}, "evaluate")


def _rows(data: Any, part: str | None, how: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return read_records(
        sources.locate_data(data), part=part, **{name: how[name] for name in ("limit", "delimiter", "encoding") if name in how}
    )


def shorten(answer: dict[str, Any]) -> str:
    """An answer on one line: the label and its probability, the labels, the value, or the text as it was written."""
    if "text" in answer:
        return answer["text"]
    if "label" in answer:
        return f"{answer['label']}\t{answer['probability']:.4f}"
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "(none)"
    return f"{answer['value']:.4f}"


def read_examples(data: Any, answers: Any, *, part: str | None = None, **options: Any) -> Any:
    """Labelled examples for a predictor's task; the part is the test data where there are parts and none is named."""
    source = sources.locate_data(data)
    task = options.pop("task", None) or answers.kind
    parts = read_parts(source, task=task, **options)
    chosen = part_name(part) if part else next(iter(parts)) if len(parts) == 1 else "test"
    if chosen not in parts:
        raise InputError(f"{data} has no labelled part {part or 'test'!r}; it has {', '.join(parts)}. Name one with --part.")
    return parts[chosen]


def bench(targets: Sequence[str], data: str | None, *, words: int, threads: int) -> list[dict[str, Any]]:
    """One row for each target, all on the same texts and threads: of `benchmarking.measure`, or of `benchmarking.measure_writing` where it
    generates."""
    found = []
    for target in targets:
        if (writer := open_generator(target, threads=threads, slots=1)) is not None:
            found.append(_bench_writer(writer, data, words))
            continue
        opened = open_predictor(target, threads=threads)
        folder = opened.folder if opened.kind == "artefact" else None
        facts = benchmarking.measure(opened.predictor, _bench_examples(opened.predictor, data, words), folder, threads=threads)
        if folder is None:
            facts["bytes"] = benchmarking.folder_bytes(opened.folder)
        found.append({"target": str(opened.folder), "kind": opened.kind, **facts})
    return found


def _bench_writer(writer: Writer, data: str | None, words: int) -> dict[str, Any]:
    """The figures of what generates."""
    questions = list(islice(_questions(data), BENCH_ROWS)) if data else [(Message("user", _sentence(words)),)]
    exported = writer.model is None
    try:
        facts = benchmarking.measure_writing(writer.generator, questions, writer.place, exported=exported)
    finally:
        writer.generator.close()
    return {"target": str(writer.place), "kind": "artefact" if exported else "model", **facts}


def measure_costs(targets: Sequence[str], data: str | None, *, words: int, tell: Tell, **setting: Any) -> dict[str, Any]:
    """The cost table of one run or model, or of a folder of probes, on this machine: see `costs.CostTable`.

    setting: threads, batch and length. Probes bring the texts that are timed; they need no torch.
    """
    target = _only(targets)
    if (Path(target) / PROBES).is_file():
        return measure_probes(target, tell=tell, **setting).to_dict()
    probes, model = _probed(target)
    return probes.measure_table(model, _bench_examples(model, data, words), tell=tell, **setting).to_dict()


def write_probes(targets: Sequence[str], data: str | None, folder: str, *, words: int, tell: Tell) -> Path:
    """Write the probes of one run's or model's architecture into a folder, to be timed on another machine."""
    probes, model = _probed(_only(targets))
    return probes.write_probes(model, folder, _bench_examples(model, data, words), tell=tell)


def _bench_examples(predictor: Any, data: str | None, words: int) -> list[Example]:
    """What is timed: rows of the data, or one English sentence."""
    if data:
        return list(islice(read(sources.locate_data(data), labelled=False), BENCH_ROWS))
    return [Example(_sentence(words), _sentence(words) if predictor.answers.kind == "pair" else None)]


def _sentence(words: int) -> str:
    return " ".join(islice(cycle(SENTENCE.split()), words))


def _only(targets: Sequence[str]) -> str:
    if len(targets) != 1:
        raise InputError(f"Got {len(targets)} targets, expected one: a cost table is that of one architecture.")
    return targets[0]


def _probed(target: str) -> tuple[Any, Any]:
    """The module that makes probes, and the model of a run or model folder."""
    folder = Path(target) / "model" if (Path(target) / "model" / "model.json").is_file() else Path(target)
    try:
        from lightune import probes
        from lightune.models import load as load_model
    except ImportError:
        raise MissingExtra("making the probes of a cost table", "torch", "train") from None
    return probes, load_model(folder)


def _given_rows(texts: list[str], predictor: Any) -> Iterator[Any]:
    if predictor.answers.kind != "pair":
        return iter(texts)
    if len(texts) % 2:
        raise InputError(f"The model compares two texts, but {len(texts)} were given. Give them in twos.")
    return iter(list(zip(texts[::2], texts[1::2], strict=True)))


def _lines(lines: Iterable[str], predictor: Any) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\n")
        if predictor.answers.kind != "pair":
            yield text
            continue
        first, tab, second = text.partition("\t")
        if not tab:
            raise InputError(f"Line {number} is one text, but the model compares two. Put a tab between them.")
        yield first, second


def _file_rows(file: str, predictor: Any, text: str | None, pair: str | None) -> Iterator[Any]:
    path = Path(file)
    if path.suffix == ".txt" and not text:
        with open(path, encoding="utf-8", errors="replace") as lines:
            yield from _lines(lines, predictor)
        return
    task = predictor.answers.kind
    yield from read(sources.locate_data(file), text=text, pair=pair, task=task, labelled=False)
