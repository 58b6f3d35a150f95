"""Training speed and accuracy side by side with transformers' Trainer, interleaved in one run.

Usage: python benchmarks/training_speed.py --peer PEER.py --model DIR --data DIR [--sets trec banking77] [--epochs 2] [--rounds 3]
PEER is a script with the command line of benchmarks/peer_trainer.py's first four arguments less the task (MODEL TRAIN TEST --epochs --lr
--precision --sampling) that prints one JSON line with accuracy and examples_per_second. DIR/NAME/{train,test}.jsonl hold text and label.
Both sides train on all training rows, without evaluation on the way, and are scored on the test rows. Both start each round in turn.
Writes benchmarks/results/training_speed.json with every run, the medians, and the machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine

parser = argparse.ArgumentParser()
parser.add_argument("--peer", required=True), parser.add_argument("--model", required=True), parser.add_argument("--data", required=True)
parser.add_argument("--sets", nargs="+", default=["trec", "banking77"])
parser.add_argument("--epochs", default="2")
parser.add_argument("--rate", default="1e-4")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--precision", default="fp32", help="the peer's: whichever is faster on this machine")
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "training_speed.json"))
args = parser.parse_args()


def run_peer(name):
    folder = Path(args.data) / name
    command = [
        sys.executable,
        args.peer,
        args.model,
        folder / "train.jsonl",
        folder / "test.jsonl",
        "--epochs",
        args.epochs,
        "--lr",
        args.rate,
    ]
    command += ["--precision", args.precision, "--sampling", "group_by_length"]
    facts = json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1])
    return {key: facts[key] for key in ("accuracy", "examples_per_second", "seconds", "peak_resident_bytes")}


def run_lightune(name):
    folder = Path(args.data) / name
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "lightune", "fit", folder / "train.jsonl", "--test", folder / "test.jsonl", "--dev-share", "0"]
        command += [
            "--model",
            args.model,
            "--epochs",
            args.epochs,
            "--rate",
            args.rate,
            "--to",
            "none",
            "--label",
            "label",
            "--out",
            f"{out}/run",
            "--json",
        ]
        facts = json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout)
    found = {key: facts[key] for key in ("examples_per_second", "seconds", "peak_resident_bytes")}
    return {"accuracy": facts["scores"]["accuracy"]["value"], **found}


found = {}
for name in args.sets:
    runs = {"peer": [], "lightune": []}
    for number in range(args.rounds):
        for side, start in (("peer", run_peer), ("lightune", run_lightune)):
            runs[side].append(start(name))
            print(name, number, side, runs[side][-1], flush=True)
    ratios = [
        ours["examples_per_second"] / theirs["examples_per_second"] for ours, theirs in zip(runs["lightune"], runs["peer"], strict=True)
    ]
    medians = {side: {key: statistics.median(run[key] for run in each) for key in each[0]} for side, each in runs.items()}
    found[name] = {"runs": runs, "median": medians, "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}}
    print(name, found[name]["median"], found[name]["ratio"], flush=True)
result = {
    "command": "python benchmarks/training_speed.py "
    + " ".join(f"--{key} {value}" for key, value in vars(args).items() if key in ("epochs", "rate", "rounds", "precision")),
    "machine": describe_machine(),
    "sets": found,
}
Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
