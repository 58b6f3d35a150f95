"""From a model to a proven artefact: written, run, compared with the model, scored and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightune import benchmarking, exports
from lightune.data import Example
from lightune.evaluation import Scores, evaluate
from lightune.exports.staging import staged
from lightune.models import Merged, Model
from lightune.runtime import load as load_artifact
from lightune.runtime.manifest import sha256

if TYPE_CHECKING:
    import onnx_ir as ir

PARITY_ROWS = 256  # development rows on which an artefact is compared with its model
SAMPLE_ROWS = 64

Tell = Callable[[str], None]


def export(
    model: Model,
    target: str,
    folder: Path,
    *,
    dev: Sequence[Example],
    test: Sequence[Example],
    sample: Sequence[Example] = (),
    reference: Scores | None = None,
    name: str | None = None,
    graph: ir.Model | None = None,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Write the model for a target, prove that the file answers as the model does, score and time it.

    Args:
        dev: rows for the parity check and the timing. test: labelled rows for the score; may be empty.
        sample: rows, labelled or not, on which the ranges of activations are seen where these are quantized; `dev` by default.
        reference: the model's own scores on `test`, from which the kept share is computed.
        name: what the artefact calls itself; the base's name by default.
        graph: that of the folded network, from `exports.onnx.trace`, so that several targets cost one trace.

    Returns:
        The artefact's entry of `run.json`.

    Raises:
        InputError: unknown target. CheckFailed: the file's answers are too far from the model's.
    """
    found = exports.find_export(target)
    merged = fold(model)
    rows = list(dev[:PARITY_ROWS]) or list(test[:PARITY_ROWS])
    with staged(folder) as draft:  # what does not answer as the model does never takes the place of what did
        tell(f"Writing {target}")
        found.write(merged, draft, name=name, sample=sample[:SAMPLE_ROWS] or dev[:SAMPLE_ROWS], graph=graph)
        tell(f"Comparing {target} with the model on {len(rows)} rows")
        parity = exports.verify(model.logits(rows), draft, rows, found.tolerance)
    artifact = load_artifact(folder, threads=1)
    scores = evaluate(artifact, test) if len(test) else None
    tell(f"Timing {target} on one thread")
    facts = benchmarking.measure(artifact, rows, folder)
    kept = None
    if scores and reference and reference[reference.primary]:
        kept = round(scores[scores.primary] / reference[reference.primary], 6)
    return {
        "target": target, "path": str(folder), "sha256": sha256(folder / "manifest.json"), "parity": parity.to_dict(),
        "scores": scores.summary() if scores else None, "kept": kept, **facts,
    }  # fmt: skip


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
