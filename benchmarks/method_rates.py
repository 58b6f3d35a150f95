"""Which learning rate suits each method: short runs on thinned TREC and banking77, judged on development rows that no run learns from.

Usage: python benchmarks/method_rates.py --data DIR [--only NAME ...] [--methods SPEC ...] [--seconds N] [--rows N] [--epochs N]
DIR/NAME/train.jsonl. For each method three rates are tried around the one that its paper gives; where the best lies at the edge, further ones
beyond it. The head learns at the method's rate times the method's own multiple, as in any run. Every finished trial is written at once to
benchmarks/results/method_rates.json and not repeated, so the search can be stopped (or limited by --seconds) and continued.
`methods` in the file has each method's best rate on each set and the one that is chosen: the lowest whose mean accuracy over the sets lies within a
point of the best, since runs as short as these flatter high rates.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine

from lightune import models, sources
from lightune.caching import keep_frozen
from lightune.data import Example
from lightune.methods import make_method
from lightune.recipes import TrainOptions
from lightune.tasks import find_task
from lightune.training import Training

RATES = {
    "head": (5e-3, 1e-2, 3e-2), "ia3": (3e-3, 1e-2, 3e-2), "bitfit": (1e-3, 3e-3, 1e-2), "reft": (1e-3, 3e-3, 1e-2),
    "houlsby": (1e-3, 3e-3, 1e-2), "pfeiffer": (1e-3, 3e-3, 1e-2), "parallel": (1e-3, 3e-3, 1e-2), "norms": (1e-3, 3e-3, 1e-2),
    "prompt": (1e-2, 3e-2, 1e-1), "ptuning": (1e-3, 3e-3, 1e-2), "prefix": (3e-3, 1e-2, 3e-2), "freeze": (1e-4, 2e-4, 5e-4),
    "lora": (5e-4, 1e-3, 3e-3), "prompt:text=what is this text about? it is about": (1e-2, 3e-2, 1e-1),
}  # fmt: skip
FURTHER, STEP = 2, 3.0  # rates beyond an edge, each so many times the one before
NEAR = 0.01
DEV, LENGTH = 500, 64  # development rows and the longest text in tokens
PLAN = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 32}
parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--only", nargs="*", default=["trec", "banking77"])
parser.add_argument("--methods", nargs="*", default=list(RATES)), parser.add_argument("--seconds", type=float, default=1e9)
parser.add_argument("--rows", type=int, default=800), parser.add_argument("--epochs", type=float, default=4.0)
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "method_rates.json"))
args = parser.parse_args()
BEGIN = time.monotonic()


def draw(name):
    """Training and development rows of a set, the same in every trial."""
    lines = (Path(args.data) / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [Example(row["text"], None, str(row["label"]), number) for number, row in enumerate(map(json.loads, lines), 1)]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[place] for place in order[DEV : DEV + args.rows]], [rows[place] for place in order[:DEV]]


def try_rate(train, dev, spec, rate):
    """Development accuracy at the end of a run, and what it took."""
    task = find_task("classify").describe([*train, *dev])
    model = models.start(sources.resolve_model("minilm"), task, max_length=LENGTH)
    method = make_method(spec)
    torch.manual_seed(0)
    model.apply(method.plan(model, train) if hasattr(method, "plan") else method)
    training = Training(model, train, dev, TrainOptions(epochs=args.epochs, rate=rate, evaluate_every=10**9, **PLAN))
    keep_frozen(training)
    last = None
    try:
        for fact in training.steps():
            last = fact if fact.kind == "evaluation" else last
    except Exception as error:  # a loss that is no number is a finding, too
        return {"accuracy": 0.0, "loss": None, "seconds": round(training.seconds, 1), "learned": False, "error": str(error)}
    return {
        "accuracy": round(last.scores["accuracy"], 4), "loss": round(last.loss, 4), "seconds": round(training.seconds, 1),
        "learned": not training.alarms(),
    }  # fmt: skip


def next_rate(spec, tried):
    """The next rate to try for a method, by accuracies {rate: accuracy}; None where the best lies inside."""
    for rate in RATES.get(spec, (1e-3, 3e-3, 1e-2)):
        if rate not in tried:
            return rate
    rates = sorted(tried)
    best = max(rates, key=lambda rate: tried[rate])
    if len(rates) >= 3 + FURTHER or best not in (rates[0], rates[-1]):
        return None
    return float(f"{best * STEP if best == rates[-1] else best / STEP:.3g}")


def summarize(trials):
    """For each method its best rate on each set, and the lowest whose mean accuracy over the sets is within NEAR of the best."""
    found = {}
    for spec in dict.fromkeys(trial["method"] for trial in trials):
        own = [trial for trial in trials if trial["method"] == spec]
        sets = sorted({trial["set"] for trial in own})
        best = {name: max((t for t in own if t["set"] == name), key=lambda t: t["accuracy"]) for name in sets}
        shared = [
            rate for rate in {t["rate"] for t in own} if all(any(t["rate"] == rate and t["set"] == name for t in own) for name in sets)
        ]
        mean = {rate: float(np.mean([t["accuracy"] for t in own if t["rate"] == rate])) for rate in sorted(shared)}
        found[spec] = {
            "best": {name: {"rate": t["rate"], "accuracy": t["accuracy"]} for name, t in best.items()},
            "chosen": next((rate for rate, value in mean.items() if value >= max(mean.values()) - NEAR), None),
        }
    return found


def write(trials):
    result = {
        "command": "python benchmarks/method_rates.py", "base": "minilm", "rows": args.rows, "dev_rows": DEV, "epochs": args.epochs,
        "machine": describe_machine(threads=1),
        "methods": summarize(trials), "trials": trials,
    }  # fmt: skip
    passing = Path(args.out).with_suffix(".writing")
    passing.write_text(json.dumps(result, indent=1) + "\n")
    passing.rename(args.out)


kept = json.loads(Path(args.out).read_text()) if Path(args.out).exists() else {"trials": [], "rows": args.rows, "epochs": args.epochs}
if (kept["rows"], kept["epochs"]) != (args.rows, args.epochs):
    raise SystemExit(f"{args.out} holds trials of {kept['rows']} rows and {kept['epochs']} epochs: give these, or another --out")
trials = kept["trials"]
for name in args.only:
    train, dev = draw(name)
    for spec in args.methods:
        while True:
            tried = {trial["rate"]: trial["accuracy"] for trial in trials if (trial["set"], trial["method"]) == (name, spec)}
            rate = next_rate(spec, tried)
            if rate is None or time.monotonic() - BEGIN > args.seconds:
                break
            trials.append({"set": name, "method": spec, "rate": rate, **try_rate(train, dev, spec, rate)})
            write(trials)
write(trials)
