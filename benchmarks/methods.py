"""Every method beside full fine-tuning on TREC and banking77: scores, and what they cost beside full fine-tuning's time.

Usage: python benchmarks/methods.py --data DIR --work DIR [--only NAME ...] [--methods NAME ...] [--seeds 0 1] [--workers N] [--pace] [--collect]
DIR/NAME/{train,test}.jsonl, of banking77 3,000 training rows. Full fine-tuning gets its usual epochs, every other method 1.8 times as many, each
with its own default rate; nothing chooses among epochs. Finished runs are kept in WORK and not repeated, N are made at once; --collect makes none.
--pace first measures what a step of each costs on one CPU thread, in turns with full fine-tuning's: times the steps, that is a method's time, which
shall be at most twice full fine-tuning's. Prompts and prefixes lengthen texts as short as these, so they get fewer epochs once that is known.
Writes benchmarks/results/methods.json: for each set, method and seed the score with its interval, trained parameters, seconds, bytes, machine, where
runs that are not in WORK stay as they are; and the table of docs/which-method.md from it.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import describe_machine
from pages import fill

ALL = ("full", "lora", "houlsby", "pfeiffer", "parallel", "ia3", "bitfit", "norms", "prefix", "reft", "prompt", "ptuning", "head", "freeze")
parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--work", required=True)
parser.add_argument("--only", nargs="*", default=["trec", "banking77"]), parser.add_argument("--methods", nargs="*", default=ALL)
parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1]), parser.add_argument("--collect", action="store_true")
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "methods.json"))
parser.add_argument("--workers", type=int, default=1), parser.add_argument("--pace", action="store_true")
args = parser.parse_args()
EPOCHS, MORE, TWICE = {"trec": 3.0, "banking77": 5.0}, 1.8, 1.95
ROWS = {"trec": [], "banking77": ["--limit", "3000"]}


def epochs_of(name, method):
    """Full fine-tuning's usual epochs; of every other method more, as far as its time stays below twice full fine-tuning's."""
    return round(EPOCHS[name] * (1 if method == "full" else min(MORE, TWICE / paces.get(method, 1.0))), 1)


def fit(name, method, seed):
    """The record of one run; None where it is not there and nothing shall run."""
    folder, data = Path(args.work) / f"{name}-{method}-{seed}", Path(args.data) / name
    if not (folder / "run.json").exists() and not args.collect:
        files = [str(data / "train.jsonl"), "--test", str(data / "test.jsonl"), "--label", "label", "--dev-share", "0"]
        epochs = str(epochs_of(name, method))
        flags = [*ROWS[name], "--seed", str(seed), "--method", method, "--epochs", epochs, "--to", "none", "--out", str(folder)]
        with open(folder.with_suffix(".log"), "w") as log:
            subprocess.run(
                [sys.executable, "-m", "lightune", "fit", *files, *flags, "--overwrite", "--json"], stdout=log, stderr=log, check=True
            )
    return json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else None


def measure_pace(steps=12, rounds=3):
    """Seconds of a training step on this machine's CPU, one thread, 32 rows of TREC, as multiples of full fine-tuning's: medians of rounds in turns."""
    import torch

    from lightune import models, sources
    from lightune.data import Example
    from lightune.methods import make_method
    from lightune.recipes import TrainOptions
    from lightune.tasks import find_task
    from lightune.training import Training

    lines = (Path(args.data) / "trec" / "train.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")[: 32 * (steps + 2)]
    rows = [Example(row["text"], None, str(row["label"]), number) for number, row in enumerate(map(json.loads, lines), 1)]
    seen = {method: [] for method in dict.fromkeys(("full", *args.methods))}
    for _ in range(rounds):
        for method, found in seen.items():
            model = models.start(sources.resolve_model("minilm"), find_task("classify").describe(rows), max_length=64)
            torch.manual_seed(0)
            model.apply(make_method(method))
            options = TrainOptions(epochs=1.0, batch_size=32, threads=1, device="cpu", precision="fp32")
            ends = [time.perf_counter() for _ in Training(model, rows, [], options).steps()]
            found.append(float(np.median(np.diff(ends))))
    middle = {method: float(np.median(found)) for method, found in seen.items()}
    return {method: round(seconds / middle["full"], 3) for method, seconds in middle.items()}


KEYS = ("trainable_parameters", "total_parameters", "seconds", "epochs", "steps", "device", "weights_bytes")


def shorten(record):
    """The score and what it took, of a run's record."""
    return {"score": record["scores"][record["scores"]["primary"]], **{key: record.get(key) for key in KEYS}, "machine": describe_machine()}


def time_of(method, row, seeds):
    """Steps times what a step costs, both as multiples of full fine-tuning's."""
    whole = next(rows["full"]["steps"] for rows in seeds.values() if "full" in rows)
    return f"{row['steps'] / whole * paces[method]:.2f}×" if method in paces else "–"


def tell(method, seeds):
    """A method's line for one set: its score on each seed, trained parameters, its time as a multiple of full fine-tuning's, seconds on a CPU, and
    bytes of its own."""
    rows = [row for row in (rows.get(method) for rows in seeds.values()) if row and "score" in row]
    if not rows:
        return None
    values, first = [row["score"]["value"] for row in rows], rows[0]
    each = ", ".join(f"{value:.3f}" for value in values)
    size = "" if first["weights_bytes"] is None else f"{first['weights_bytes'] / 1e6:.2f} MB"
    taken = [row["seconds"] for row in rows if row["device"] == "cpu"]
    seconds = f"{np.mean(taken):.0f} s" if taken else "–"
    return f"| `{method}` | {np.mean(values):.3f} ({each}) | {first['trainable_parameters']:,} | {time_of(method, first, seeds)} | {seconds} | {size} |"


def fill_page(sets):
    """Put a table for each set between the marks of docs/which-method.md."""
    lines = []
    for name in sets:
        lines += [
            f"### {name}",
            "",
            "| method | accuracy, mean (each seed) | trained parameters | time | on one core | own weights |",
            "|---|---|---|---|---|---|",
        ]
        rows = [tell(method, sets.get(name, {})) for method in ALL]
        lines += [row for row in rows if row] + [""]
    fill("docs/which-method.md", "measured", lambda _: "\n\n" + "\n".join(lines) + "\n")


out = Path(args.out)
known = json.loads(out.read_text()) if out.exists() else {"sets": {}, "step_as_multiple_of_full": {}}
sets, paces = known["sets"], measure_pace() if args.pace else known["step_as_multiple_of_full"]
wanted = [(name, method, seed) for name in args.only for seed in args.seeds for method in args.methods]
with ThreadPoolExecutor(args.workers) as pool:
    records = list(pool.map(lambda item: fit(*item), wanted))
for (name, method, seed), record in zip(wanted, records, strict=True):
    if record:
        sets.setdefault(name, {}).setdefault(str(seed), {})[method] = shorten(record)
result = {"command": "python benchmarks/methods.py", "step_as_multiple_of_full": paces, "sets": sets}
out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
fill_page(sets)
