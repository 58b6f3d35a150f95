"""Scores on seven real sets beside transformers' Trainer with the same base and epochs, and the methods beside each other.

Usage: python benchmarks/accuracy.py --data DIR --models DIR --work DIR [--only NAME ...] [--collect]
DIR/NAME/{train,test,validation}.jsonl as in SETS below; models is a folder with minilm/ and albert-tiny-zh/ as transformers loads them.
Every finished run is kept in WORK as one JSON file and not repeated; --collect runs nothing and only gathers what is there.
Writes benchmarks/results/accuracy.json: for each set our run.json (shortened), the peer's scores, and the commands. Training is not timed here:
that is training_speed.py.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import describe_machine

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--models", required=True), parser.add_argument("--work", required=True)
parser.add_argument("--only", nargs="*"), parser.add_argument("--collect", action="store_true")
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "accuracy.json"))
args = parser.parse_args()

# name: (peer's task, train, test, epochs, our flags, the peer's flags)
FINE = ["--label", "label"]
SETS = {
    "trec": ("classify", "trec/train.jsonl", "trec/test.jsonl", 3, [*FINE, "--dev-share", "0", "--to", "onnx", "onnx-int8"], []),
    "banking77": ("classify", "banking77/train.jsonl", "banking77/test.jsonl", 5, ["--dev-share", "0"], []),
    "sst2": ("classify", "sst2/train.jsonl", "sst2/validation.jsonl", 1, ["--dev-share", "0", "--limit", "20000"], ["--limit", "20000"]),
    "mrpc": ("pair", "glue_mrpc/train.jsonl", "glue_mrpc/test.jsonl", 3, ["--dev", "glue_mrpc/validation.jsonl"], []),
    "stsb": ("regress", "stsb/train.jsonl", "stsb/test.jsonl", 2, ["--dev", "stsb/validation.jsonl", "--label", "score"], []),
    "disaster": ("multilabel", "disaster/messages.csv", "", 1, ["--max-length", "128"], ["--length", "128"]),
    "chnsenticorp": (
        "classify", "chnsenticorp/train.jsonl", "chnsenticorp/test.jsonl", 1,
        ["--dev", "chnsenticorp/validation.jsonl", "--max-length", "256", "--model", "albert-tiny-zh"], [],
    ),
}  # fmt: skip
METHODS = {"trec": ("lora", "head", "bitfit"), "banking77": ("lora",)}


def located(flag):
    return str(Path(args.data) / flag) if flag.endswith((".jsonl", ".csv")) else flag


def run(name, command):
    """The last JSON line of a command, from WORK where it was run before; None where there is none to collect."""
    kept = Path(args.work) / f"{name}.json"
    if not kept.exists() or not kept.read_text().strip():
        if args.collect:
            return None
        kept.write_text(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1])
    return json.loads(kept.read_text().strip().splitlines()[-1])


def shorten(facts):
    keys = ("task", "method", "examples", "trainable_parameters", "total_parameters", "precision", "scores", "reference")
    artifacts = [{key: value for key, value in entry.items() if key not in ("path", "sha256")} for entry in facts["artifacts"]]
    return {**{key: facts[key] for key in keys if key in facts}, "artifacts": artifacts}


found = {}
for name, (task, train, test, epochs, ours, theirs) in SETS.items():
    if args.only and name not in args.only:
        continue
    paths = [located(train), *(["--test", located(test)] if test else [])]
    rows = {}
    for method in ("full", *METHODS.get(name, ())):
        title = name if method == "full" else f"{name}-{method}"
        command = [sys.executable, "-m", "lightune", "fit", *paths, "--epochs", str(epochs), *map(located, ours), "--method", method]
        command += ["--out", f"{args.work}/{title}", "--overwrite", "--json"]
        rows[method] = run(title, command)
    base = Path(args.models) / ("albert-tiny-zh" if "albert-tiny-zh" in ours else "minilm")
    peer = [sys.executable, str(Path(__file__).parent / "peer_trainer.py"), task, str(base), located(train), located(test or train)]
    line = run(f"peer-{name}", [*peer, "--epochs", str(epochs), *theirs])
    found[name] = {
        "command": " ".join(["lightune fit", train, *(["--test", test] if test else []), "--epochs", str(epochs), *ours]),
        "lightune": {method: shorten(facts) for method, facts in rows.items() if facts},
        "peer": {key: line[key] for key in ("peer", "scores")} if line else None,
    }
result = {
    "command": "python benchmarks/accuracy.py",
    "machine": describe_machine(),
    "sets": found,
}
Path(args.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
