"""How well the cost table predicts: random smaller models, predicted from it, then made by shrink steps, exported and measured.

Usage: python benchmarks/cost_table.py --data FILE [--model minilm] [--candidates 20] [--threads 1] [--batch 1] [--seed 0]
FILE is labelled data whose texts are timed. The table is measured first, as a search does. Then candidates and probes are timed in turns, so
that the error is also known without what the machine did between: `milliseconds` is predicted from the table as it was measured before,
`interleaved` from the probes that ran beside the candidates. Nothing is trained: costs do not depend on what weights are.
Writes benchmarks/results/cost_table.json.
"""

import argparse
import dataclasses
import json
import random
import tempfile
from pathlib import Path

import numpy as np

from lightune import benchmarking, exports, importance, models, planning, probes, shrinking, sources
from lightune.costs import Shape, measure_probes
from lightune.costs.measuring import open_probe, read_probes, time_interleaved
from lightune.data import read
from lightune.runtime import load
from lightune.steps import make_step
from lightune.tasks import find_task

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--model", default="minilm"), parser.add_argument("--label", default=None)
parser.add_argument("--candidates", type=int, default=20), parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=1), parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "cost_table.json"))
args = parser.parse_args()


def draw_shape(base, vocabularies, draw):
    """A random shape as a search would try it."""
    heads = draw.randint(2, base.heads)
    ffn = 32 * draw.randint(2, base.ffn // 32)
    sizes = {"layers": draw.randint(1, base.layers), "heads": heads, "hidden": base.hidden * heads // base.heads, "ffn": ffn}
    sizes["pooled"] = draw.choice([0, draw.randrange(sizes["layers"])])
    sizes["embedding"] = base.embedding or draw.choice([0, sizes["hidden"] // 2, sizes["hidden"] // 3])
    return dataclasses.replace(base, **sizes, vocabulary=draw.choice(vocabularies), weights=8, tables=draw.choice([8, 4]))


def make_artifact(model, candidate, examples, counts, folder):
    """The exported folder of a candidate; the tokens of the texts stay, as in a search."""
    student = model.copy()
    for spec in candidate.steps:
        found = importance.measure(student, examples, rows=32)
        student.shrink(make_step(spec), dataclasses.replace(found, tokens=counts) if spec.startswith("vocab") else found)
    return exports.find_export(candidate.target).write(student, folder)


def summarize(errors):
    sizes = np.abs(errors)
    return {"mean": round(float(sizes.mean()), 4), "median": round(float(np.median(sizes)), 4), "largest": round(float(sizes.max()), 4)}


draw = random.Random(args.seed)
examples = list(read(args.data, label=args.label))
model = models.start(sources.resolve_model(args.model), find_task("classify").describe(examples), max_length=128)
base, counts = Shape.of(model), shrinking.count_tokens(model, examples)
vocabularies = shrinking.vocabulary_sizes(model, counts)
with tempfile.TemporaryDirectory() as work:
    folder = probes.write_probes(model, Path(work) / "probes", examples, tell=print)
    table = measure_probes(folder, threads=args.threads, batch=args.batch, tell=print)
    shapes = [draw_shape(base, vocabularies, draw) for _ in range(args.candidates)]
    candidates = [planning.make_candidate(base, shape, table, 0.0) for shape in shapes]
    folders = []
    for number, candidate in enumerate(candidates):
        folders.append(make_artifact(model, candidate, examples, counts, Path(work) / str(number)))
        print(number, candidate.name, flush=True)
    facts = read_probes(folder)
    again = [open_probe(folder / entry["file"], args.threads) for entry in facts["probes"] if entry["file"]]
    p50, _, _, spread = time_interleaved([*again, *(load(path, threads=args.threads) for path in folders)], facts["texts"], args.batch)
    fresh = iter(p50[: len(again)])
    seen = tuple(probe if probe.p50 is None else dataclasses.replace(probe, p50=next(fresh)) for probe in table.probes)
    beside = dataclasses.replace(table, probes=seen)
    rows = []
    for candidate, path, measured in zip(candidates, folders, p50[len(again) :], strict=True):
        size = benchmarking.folder_bytes(path)
        told = beside.milliseconds(candidate.shape)
        rows.append({
            "name": candidate.name, "milliseconds": {"predicted": round(candidate.milliseconds, 4), "interleaved": round(told, 4), "measured": measured},
            "bytes": {"predicted": candidate.bytes, "measured": size},
        })  # fmt: skip
        print(
            f"{candidate.name}: {candidate.milliseconds:.3f} ms, {told:.3f} beside, measured {measured:.3f}; {candidate.bytes} bytes, measured {size}"
        )

errors = {
    key: summarize([row["milliseconds"][key] / row["milliseconds"]["measured"] - 1 for row in rows]) for key in ("predicted", "interleaved")
}
errors["bytes"] = summarize([row["bytes"]["predicted"] / row["bytes"]["measured"] - 1 for row in rows])
print(json.dumps(errors))
result = {
    "command": "python benchmarks/cost_table.py " + " ".join(f"--{key} {value}" for key, value in vars(args).items() if key in ("model", "candidates", "seed", "threads", "batch")),
    "machine": table.machine, "length": table.length, "spread": {"table": table.spread, "beside": round(spread, 4)}, "errors": errors, "candidates": rows,
}  # fmt: skip
Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
