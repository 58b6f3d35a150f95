"""What it saves to run the frozen bottom of a network once: the same training with and without, one after the other, on TREC with one thread.

Usage: python benchmarks/caching.py --data DIR [--methods SPEC ...] [--rows N] [--epochs N]
DIR/trec/train.jsonl; a tenth of the rows, after the N that are learned from, is for development. Times are processor seconds of the one thread, so that
other work on the machine does not count; the first pass and the evaluations are in them.
Writes benchmarks/results/caching.json: seconds with and without, how far losses and scores differ.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from machine import describe_machine

from lightune import models, sources
from lightune.caching import keep_frozen
from lightune.data import Example
from lightune.methods import make_method
from lightune.recipes import TrainOptions
from lightune.tasks import find_task
from lightune.training import Training

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--rows", type=int, default=4900)
parser.add_argument("--methods", nargs="*", default=["head", "freeze", "freeze:blocks=5", "pfeiffer:drop_first=3"])
parser.add_argument("--epochs", type=float, default=5.0)
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "caching.json"))
args = parser.parse_args()
lines = (Path(args.data) / "trec" / "train.jsonl").read_text(encoding="utf-8").splitlines()
rows = [Example(row["text"], None, row["label"], number) for number, row in enumerate(map(json.loads, lines), 1)]
train, dev = rows[: args.rows], rows[args.rows :][: args.rows // 10]


def learn(spec, keeps):
    """Processor seconds of a whole training, its losses and its development accuracies."""
    model = models.start(sources.resolve_model("minilm"), find_task("classify").describe(rows), max_length=64)
    torch.manual_seed(0)
    model.apply(make_method(spec))
    training = Training(model, train, dev, TrainOptions(epochs=args.epochs, device="cpu", precision="fp32", threads=1, head_dropout=0.0))
    begin = time.process_time()
    if keeps:
        keep_frozen(training)
    facts = list(training.steps())
    scores = [fact.scores["accuracy"] for fact in facts if fact.kind == "evaluation"]
    return time.process_time() - begin, [fact.loss for fact in facts if fact.kind == "step"], scores


found = {}
for spec in args.methods:
    (without, losses, scores), (seconds, kept_losses, kept_scores) = learn(spec, False), learn(spec, True)
    found[spec] = {
        "seconds_without": round(without, 2), "seconds": round(seconds, 2), "times_as_fast": round(without / seconds, 2),
        "largest_difference_of_losses": max(abs(one - other) for one, other in zip(losses, kept_losses, strict=True)),
        "accuracy_without": scores[-1], "accuracy": kept_scores[-1],
    }  # fmt: skip
    result = {
        "command": "python benchmarks/caching.py", "base": "minilm", "rows": len(train), "dev_rows": len(dev), "epochs": args.epochs,
        "machine": describe_machine(threads=1), "methods": found,
    }  # fmt: skip
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
