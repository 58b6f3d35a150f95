"""From a model to a proven artefact: written, run, compared with the model, scored and timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightune import benchmarking, exports, models, sources
from lightune.data import Example
from lightune.errors import CheckFailed
from lightune.evaluation import Scores, evaluate
from lightune.exports import onnx, sensitivity
from lightune.exports.likeness import choose_rows, compare
from lightune.exports.smoothing import find_smoothing
from lightune.exports.staging import staged
from lightune.generation import TorchGenerator
from lightune.models import Merged, Model
from lightune.runtime import load as load_artifact
from lightune.runtime.answers import Answers
from lightune.runtime.generation import Generator, Prompt
from lightune.runtime.manifest import read_json, sha256
from lightune.runtime.written import load_written
from lightune.tasks import task_for

if TYPE_CHECKING:
    import onnx_ir as ir

PARITY_ROWS = 256  # development rows on which an artefact is compared with its model
COMPARED_TOKENS, COMPARED_PROMPTS = 10_000, 200  # held-out tokens and questions by which one that generates is compared
SAMPLE_ROWS, SAMPLE_TEXTS = 64, 1024  # rows of token ids, and texts, of a sample: whoever looks at them takes the first tokens of these
SPARED = 8  # parts at most that keep more bits

Tell = Callable[[str], None]


def export(
    model: Model,
    target: str,
    folder: Path,
    *,
    dev: Sequence[Example],
    test: Sequence[Example],
    timed: Sequence[Example] = (),
    sample: Sequence[Example] = (),
    reference: Scores | None = None,
    name: str | None = None,
    graph: ir.Model | None = None,
    spares: bool = True,
    resamples: int = 300,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Write the model for a target, prove that the file answers as the model does, score and time it.

    Args:
        dev: rows for the parity check. test: labelled rows for the score; may be empty.
        timed: rows for the timing; those of the test by default, as `measure_reference` is given them, else those of the parity check.
        sample: rows, labelled or not, on which the ranges of activations are seen where these are quantized; `dev` by default.
        reference: the model's own scores on `test`, from which the kept share is computed.
        name: what the artefact calls itself; the base's name by default.
        graph: that of the folded network, from `exports.onnx.trace`, so that several targets cost one trace.
        spares: keep the matrices that the answers depend on most in more bits, where the file would not answer as the model does.
        resamples: behind the interval of each score; see `evaluate`.

    Returns:
        The artefact's entry of `run.json`; `spared` names what has more bits than the target says.

    Raises:
        InputError: unknown target. CheckFailed: the file's answers are too far from the model's.
    """
    found = exports.find_export(target)
    merged = fold(model)
    rows = list(dev[:PARITY_ROWS]) or list(test[:PARITY_ROWS])
    with staged(folder) as draft:  # what does not answer as the model does never takes the place of what did
        given = _Given(draft, rows, model.logits(rows), sample[:SAMPLE_TEXTS] or dev[:SAMPLE_TEXTS], name)
        tell(f"Writing {target}")
        parity, spared = _write_sparing(found, merged, graph, given, spares, tell)
        if spared:
            tell(f"{target} answers as the model does with more bits for {', '.join(spared)}")
    artifact = load_artifact(folder, threads=1)
    scores = evaluate(artifact, test, resamples=resamples) if len(test) else None
    tell(f"Timing {target} on one thread")
    facts = benchmarking.measure(artifact, list(timed[:PARITY_ROWS] or test[:PARITY_ROWS]) or rows, folder)
    kept = None
    if scores and reference and reference[reference.primary]:
        kept = round(scores[scores.primary] / reference[reference.primary], 6)
    return {
        "target": target, "path": str(folder), "sha256": sha256(folder / "manifest.json"), "parity": parity.to_dict(), "spared": spared,
        "scores": scores.summary() if scores else None, "kept": kept, **facts,
    }  # fmt: skip


@dataclass(frozen=True)
class _Given:
    """Where a file is written, and what it is compared with: rows, the model's logits for them, a sample for ranges, a name."""

    folder: Path
    rows: Sequence[Example]
    logits: np.ndarray
    sample: Sequence[Example]
    name: str | None


def _write_sparing(
    target: exports.Export, model: Model, graph: ir.Model | None, given: _Given, spares: bool, tell: Tell
) -> tuple[exports.Parity, list[str]]:
    """Write a target, with more bits for some parts where it would not answer as the model does and that may be; which parts these are."""
    try:
        return _write(target, model, graph, given), []
    except CheckFailed as error:
        if not (spares and target.precision.quantizes):
            raise
        tell(f"{error} Looking for what has to keep more bits")
    graph = graph or onnx.trace(model.network, model.encoder.inputs)
    target, spared = spare(target, model, graph, given.rows, given.sample)
    return _write(target, model, graph, given), spared


def _write(target: exports.Export, model: Model, graph: ir.Model | None, given: _Given) -> exports.Parity:
    """Write a target and compare it with the model."""
    target.write(model, given.folder, name=given.name, sample=given.sample, graph=graph)
    return exports.verify(given.logits, given.folder, given.rows, target.tolerance)


def spare(
    target: exports.Export, model: Model, graph: ir.Model, rows: Sequence[Example], sample: Sequence[Example]
) -> tuple[exports.Export, list[str]]:
    """A target in which the parts that answers depend on most keep more bits, until enough answers stay what they are; and the parts' names."""
    agree = (1 + target.tolerance.agree) / 2  # on fewer rows than the comparison has, so be stricter
    smoothing = find_smoothing(graph, model.encoder, sample, target.precision)
    mixed = sensitivity.back_off(graph, model.answers, model.encoder, rows, target.precision, agree=agree, most=SPARED, smoothing=smoothing)
    before = {*target.precision.keep, *target.precision.eight}
    return dataclasses.replace(target, precision=mixed), [name for name in (*mixed.keep, *mixed.eight) if name not in before]


def export_generator(
    model: Model,
    target: str,
    folder: Path,
    *,
    rows: Sequence[np.ndarray],
    prompts: Sequence[Prompt],
    sample: Sequence[np.ndarray] = (),
    name: str | None = None,
    slack: float = 1.0,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Write a model that generates for a target, prove that the file writes as the model does, and time it.

    Args:
        rows: held-out rows of token ids, int [s] each, whose perplexity is compared: the first COMPARED_TOKENS tokens.
        prompts: questions whose greedy answers are compared, COMPARED_PROMPTS at most.
        sample: rows of token ids by which weights are rounded, where the target does so.
        slack: how many times the target's own tolerance of perplexity is allowed.

    Returns:
        The artefact's entry of `run.json`.

    Raises:
        InputError: unknown target. CheckFailed: the file is too far from the model.
    """
    found = exports.find_generative(target, model.answers.kind)
    merged = fold(model)
    rows, prompts = choose_rows(rows, COMPARED_TOKENS), prompts[:COMPARED_PROMPTS]
    with staged(folder) as draft:
        tell(f"Writing {target}")
        found.write(merged, draft, name=name, sample=sample[:SAMPLE_ROWS])
        tell(f"Comparing {target} with the model on up to {len(rows)} rows and {len(prompts)} questions")
        ours = TorchGenerator(merged.network, merged.encoder, merged.chat, name="the model", max_length=merged.encoder.max_length)
        theirs = open_written(draft)
        try:
            likeness = compare(ours, theirs, rows, prompts, found.tolerance.widened(slack))
            tell(f"{target}: {likeness.told}")
            tell(f"Timing {target}")
            speed = benchmarking.generation_speed(theirs, list(prompts) or [merged.encoder.tokenizer.decode(list(rows[0]))])
        finally:
            theirs.close()
    return {
        "target": target, "path": str(folder), "sha256": sha256(folder / "manifest.json"), "parity": likeness.to_dict(), "scores": None, "kept": None,
        "tokens_per_second": speed, "resident_bytes": benchmarking.generator_resident_bytes(folder), "bytes": benchmarking.folder_bytes(folder),
    }  # fmt: skip


def open_written(folder: Path) -> Generator:
    """An exported model that generates: a GGUF file by llama.cpp, a graph by onnxruntime, a Hugging Face folder by transformers."""
    if light := load_written(folder):
        return light
    facts = read_json(folder / "task.json")
    model = models.start_language(
        sources.resolve_model(str(folder)), task_for(Answers(facts["kind"], ())), max_length=int(facts["max_length"])
    )
    return TorchGenerator(model.network, model.encoder, model.chat, name=facts["name"], max_length=int(facts["max_length"]))


def fold(model: Model) -> Model:
    """A copy of the model with its changes folded into the weights, or the model itself where there is nothing to fold.

    Parts that no weight can take in, such as adapters, stay as they are.
    """
    live = [
        change
        for change in model.changes
        if not isinstance(change, Merged) and hasattr(change, "merge") and getattr(change, "leaves", None) is not change
    ]
    if not live:
        return model
    return model.copy().merge()


def measure_reference(model: Model, examples: Sequence[Example], weights: Path) -> dict[str, Any]:
    """The model itself in PyTorch on one thread, its changes folded in where they can be, measured as artefacts are: what they are compared with."""
    folded = fold(model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        facts = benchmarking.measure(folded, list(examples[:PARITY_ROWS]))
    finally:
        torch.set_num_threads(threads)
    return {**facts, "bytes": sum(item.numel() * item.element_size() for item in folded.network.parameters())}
