"""Every method beside full fine-tuning on TREC and banking77: scores at no more than twice full fine-tuning's time.

Usage: python benchmarks/methods.py --data DIR --work DIR [--only NAME ...] [--methods NAME ...] [--seeds 0 1] [--collect]
DIR/NAME/{train,test}.jsonl. Full fine-tuning runs first for its usual epochs; its seconds, doubled, are what every other method may take at most
(`lightune compare`, each method with its own default rate). Finished runs are kept in WORK and not repeated; --collect runs nothing.
Writes benchmarks/results/methods.json: for each set, method and seed the score with its interval, trained parameters, seconds, bytes; and the table of
docs/which-method.md from it.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ALL = ("lora", "houlsby", "pfeiffer", "parallel", "ia3", "bitfit", "norms", "prefix", "reft", "prompt", "ptuning", "head", "freeze")
parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--work", required=True)
parser.add_argument("--only", nargs="*", default=["trec", "banking77"]), parser.add_argument("--methods", nargs="*", default=ALL)
parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1]), parser.add_argument("--collect", action="store_true")
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "methods.json"))
args = parser.parse_args()
EPOCHS = {"trec": "3", "banking77": "5"}


def lightune(*command):
    subprocess.run([sys.executable, "-m", "lightune", *command], stdout=subprocess.DEVNULL, check=True)


def located(name, seed):
    """The arguments that say which data, without a development part: nothing chooses among epochs."""
    folder = Path(args.data) / name
    return [str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl"), "--label", "label", "--dev-share", "0", "--seed", str(seed)]


def fit_full(name, seed):
    """The record of full fine-tuning."""
    folder = Path(args.work) / f"{name}-full-{seed}"
    if not (folder / "run.json").exists() and not args.collect:
        lightune("fit", *located(name, seed), "--epochs", EPOCHS[name], "--to", "none", "--out", str(folder), "--overwrite", "--json")
    return json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else None


def compare(name, seed, seconds):
    """What `lightune compare` found for each method, by its name."""
    found = {}
    for method in args.methods:
        folder = Path(args.work) / f"{name}-{method}-{seed}"
        if not (folder / "compare.json").exists() and not args.collect:
            lightune("compare", *located(name, seed), "--methods", method, "--time", f"{seconds:.0f}s", "--out", str(folder), "--overwrite")
        if (folder / "compare.json").exists():
            found[method] = json.loads((folder / "compare.json").read_text())["methods"]
    return found


KEYS = ("trainable_parameters", "total_parameters", "seconds", "epochs", "weights_bytes", "peak_resident_bytes")


def shorten(record):
    """The score and what it took, of a run's record or of a row of a comparison."""
    if "refused" in record:
        return {"refused": record["refused"]}
    score = record["score"] if "score" in record else record["scores"][record["scores"]["primary"]]
    return {"score": score, **{key: record.get(key) for key in KEYS}}


def tell(method, seeds):
    """A method's line for one set: its score on each seed, seconds (the longest), trained parameters and bytes of its own."""
    rows = [row for row in (rows.get(method) for rows in seeds.values()) if row and "score" in row]
    if not rows:
        return f"| `{method}` | not measured yet | | | |"
    values, first = [row["score"]["value"] for row in rows], rows[0]
    each = ", ".join(f"{value:.3f}" for value in values)
    size = "" if first["weights_bytes"] is None else f"{first['weights_bytes'] / 1e6:.2f} MB"
    return f"| `{method}` | {np.mean(values):.3f} ({each}) | {first['trainable_parameters']:,} | {max(row['seconds'] for row in rows):.0f} s | {size} |"


def fill_page(sets):
    """Put a table for each set between the marks of docs/which-method.md."""
    lines = []
    for name in ("trec", "banking77"):
        lines += [
            f"### {name}",
            "",
            "| method | accuracy, mean (each seed) | trained parameters | seconds | own weights |",
            "|---|---|---|---|---|",
        ]
        lines += [tell(method, sets.get(name, {})) for method in ("full", *ALL)] + [""]
    page = Path(__file__).parents[1] / "docs" / "which-method.md"
    marks = ("<!-- measured:begin -->", "<!-- measured:end -->")
    filled = marks[0] + "\n\n" + "\n".join(lines) + "\n" + marks[1]
    page.write_text(
        re.sub(f"{marks[0]}.*{marks[1]}", lambda _: filled, page.read_text(encoding="utf-8"), flags=re.DOTALL), encoding="utf-8"
    )


sets = {}
for name in args.only:
    for seed in args.seeds:
        full = fit_full(name, seed)
        if full is None:
            continue
        rows = {"full": shorten(full)}
        for method, entries in compare(name, seed, 2 * full["seconds"]).items():
            rows[method] = shorten(entries[0])
        sets.setdefault(name, {})[str(seed)] = rows
cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
result = {
    "command": "python benchmarks/methods.py",
    "machine": {"cpu": cpu, "cores": os.cpu_count(), "platform": platform.platform()},
    "sets": sets,
}
Path(args.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
fill_page(sets)
