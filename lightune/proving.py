"""The end of a search: every point is scored on the test rows, one becomes the run's small artefact, and every limit is tested on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lightune import metrics
from lightune.data import Example
from lightune.errors import CheckFailed
from lightune.evaluation import evaluate
from lightune.models import Model
from lightune.reports import write_card, write_front_csv, write_report
from lightune.runs import Run, full_disk_told
from lightune.runtime import load as load_artifact

SMALL = "small"  # the chosen artefact's name
UNITS = {"max_mb": "MB", "max_ms": "ms", "max_ram": "MB of memory", "keep": "of the score"}

Point = dict[str, Any]
Prove = Callable[[Path], dict[str, Any]]  # an artefact's folder to {part, scores, kept}


def score_points(run: Run, points: Sequence[Point], prove: Prove) -> None:
    """Give each point that has none yet its proof: scores on rows that nothing was chosen by, and the share of the model's score kept."""
    for point in points:
        if "proof" not in point:
            point["proof"] = proof = prove(run.folder / point["artifact"])
            point["test"] = proof["scores"][proof["scores"]["primary"]]["value"] if proof["part"] == "test" else None


def proof_by(model: Model, rows: Sequence[Example], part: str, least: float | None) -> Prove:
    """How artefacts of models that classify or score are proved, by the model before.

    rows: of the test part; where there is none, of the part that chose.
    """
    answers = cache(lambda: model.logits(rows))

    def prove(folder: Path) -> dict[str, Any]:
        artifact = load_artifact(folder)
        return {
            "part": part, "scores": evaluate(artifact, rows, part=part).summary(),
            "kept": compare_scores(model, answers(), artifact, rows, least),
        }  # fmt: skip

    return prove


def compare_scores(model: Model, whole: Any, artifact: Any, rows: Sequence[Example], least: float | None) -> dict[str, float]:
    """The share of a model's main metric that an artefact keeps on the same rows, by paired bootstrap: see `metrics.kept_share`.

    whole: the model's logits for the rows, float32 [n, k].
    """
    task, primary = model.task, model.task.primary
    targets, small = task.targets(rows), artifact.logits(rows)
    other = type(task)(artifact.answers)

    def score(chosen: np.ndarray) -> tuple[float, float]:
        return other.score(small[chosen], targets[chosen])[primary], task.score(whole[chosen], targets[chosen])[primary]

    return {name: round(value, 6) for name, value in metrics.kept_share(score, len(rows), least, resamples=300).items()}


def crown(run: Run, point: Point, limits: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Make a scored point the run's small artefact and tell so in run.json, front.json, the card and the report.

    Returns:
        Each limit, what the artefact has, and whether it holds.
    """
    folder, proof = run.artifacts / SMALL, point["proof"]
    shutil.rmtree(folder, ignore_errors=True)
    with full_disk_told(folder):
        shutil.copytree(run.folder / point["artifact"], folder)
    held = judge(limits, point)
    path = str(folder.relative_to(run.folder))
    entry = {
        "target": point["target"], "path": path, "sha256": point["sha256"], "parity": point["parity"], "scores": proof["scores"],
        "kept": proof["kept"]["value"], **point["measured"],
    }  # fmt: skip
    record = run.record
    others = [old for old in record["artifacts"] if old["path"] != path]
    budget = {
        "limits": dict(limits), "held": held, "kept": proof["kept"], "candidate": point["id"], "steps": point["steps"], "part": proof["part"],
    }  # fmt: skip
    met = all(item["met"] for item in held.values()) if held else None
    run.write("run.json", record | {"artifacts": [*others, entry], "budget": budget, "met": met})
    run.write("front.json", run.read("front.json") | {"chosen": point["id"]})
    write_front_csv(run.folder)
    write_card(run.folder)
    write_report([run.folder])
    return held


def costs_of(limits: Mapping[str, float], point: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Name, value and limit of each size and speed that is limited."""
    values = {"max_mb": point["bytes"] / 1e6, "max_ms": point["milliseconds"], "max_ram": (point["resident_bytes"] or 0) / 1e6}
    return [(name, values[name], limit) for name, limit in limits.items() if name in values]


def holds(limits: Mapping[str, float], point: Mapping[str, Any]) -> dict[str, bool]:
    """Which limits of size and speed a point holds: mb, ms, ram."""
    return {name.removeprefix("max_"): value <= limit for name, value, limit in costs_of(limits, point)}


def rank(limits: Mapping[str, float], point: Mapping[str, Any]) -> tuple[float, ...]:
    """What a point is sorted by, the best first: those that hold the limits, then the higher score; without limits the smallest that keep."""
    excess = max((value / limit for _, value, limit in costs_of(limits, point)), default=0.0)
    wanted, kept = limits.get("keep"), point["kept"] or 0.0
    if "max_mb" in limits or "max_ms" in limits or wanted is None:
        return (max(excess, 1.0), -kept, point["bytes"] * point["milliseconds"])
    return (max(excess, 1.0), max(wanted - kept, 0.0), point["bytes"] * point["milliseconds"])


def judge(limits: Mapping[str, float], point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each limit, what a scored point has, and whether it holds."""
    held = {name: {"limit": limit, "value": round(value, 4), "met": value <= limit} for name, value, limit in costs_of(limits, point)}
    if (least := limits.get("keep")) is not None:
        kept = point["proof"]["kept"]["value"]
        held["keep"] = {"limit": least, "value": kept, "met": kept >= least}
    return held


def stop_unless_met(held: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Say which limits were missed, by how much, and what to relax.

    Raises:
        CheckFailed: a limit is not held.
    """
    missed = {name: item for name, item in held.items() if not item["met"]}
    if missed:
        told = [f"{name.replace('_', '-')} {item['limit']:g}: reached {item['value']:.4g} {UNITS[name]}" for name, item in missed.items()]
        relaxed = [f"--{name.replace('_', '-')} {item['value']:.3g}" for name, item in missed.items()]
        raise CheckFailed(
            f"The budget is not held ({'; '.join(told)}). The nearest model is saved: {folder}. "
            f"Relax it to {' '.join(relaxed)}, or give more --time."
        )
