"""Every method on SmolLM2-135M, 300 steps on GSM8K's and E2E's texts: how far each lowers the held-out loss.

Usage: python benchmarks/language_methods.py --data DIR --work DIR [--only NAME ...] [--methods SPEC ...] [--steps 300] [--collect]
DIR/NAME/{train,test}.jsonl. Each method has its own default rate and begins at the same weights, with the same rows in the same order: 8 a
step, without those of more than two characters for each of --length tokens. Finished runs are kept in WORK and not repeated; --collect runs nothing
and only gathers what is there.
Writes benchmarks/results/language_methods.json, and the table of docs/which-method.md from it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from machine import describe_machine
from pages import fill

import lightune

SETS = {"gsm8k": ("question", "answer"), "e2e_nlg": ("mr", "ref")}
METHODS = (  # bitfit has nothing to train here, for this base has no bias terms
    "full", "lora", "lora:dora=true", "houlsby", "pfeiffer", "parallel", "ia3", "norms", "prefix", "reft", "prompt", "ptuning", "freeze",
)  # fmt: skip
CLEAR = 0.05  # share by which the held-out loss must fall

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path), parser.add_argument("--work", type=Path, required=True)
parser.add_argument("--only", nargs="*", default=list(SETS), choices=SETS), parser.add_argument("--methods", nargs="*", default=METHODS)
parser.add_argument("--steps", type=int, default=300), parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--length", type=int, default=512), parser.add_argument("--held", type=int, default=200, help="held-out rows")
parser.add_argument("--collect", action="store_true")
args = parser.parse_args()


def write_parts(name: str, folder: Path) -> tuple[Path, Path]:
    """Training and held-out rows of a set, questions and answers alone."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt, completion = SETS[name]
    paths = []
    for part, count in (("train", 2 * args.steps * args.batch), ("test", args.held)):
        lines = (args.data / name / f"{part}.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")  # texts may hold other line ends
        rows = [row for row in map(json.loads, lines) if len(row[prompt] + row[completion]) <= 2 * args.length]
        rows = rows[:: max(1, len(rows) // count)][:count]
        paths.append(folder / f"{name}-{part}.jsonl")
        paths[-1].write_text("".join(json.dumps({"prompt": row[prompt], "completion": row[completion]}) + "\n" for row in rows))
    return paths[0], paths[1]


def fit(name: str, method: str, train: Path, held: Path) -> None:
    """One run; of its record what tells how it went."""
    kept = args.work / f"{name}-{re.sub('[^a-z0-9]+', '-', method)}.json"
    if kept.exists():
        return
    seen: list[Any] = []
    run = lightune.fit(
        train, args.work / "run", overwrite=True, task="generate", model="smollm2-135m", method=method, batch_size=args.batch, epochs=1,
        limit=args.steps * args.batch, max_length=args.length, too_long="drop", dev=str(held), test_share=0, samples=0, score_rows=0,
        to=("none",), watch=seen.append,
    )  # fmt: skip
    record, last = run.record, [fact for fact in seen if getattr(fact, "kind", None) == "evaluation"][-1]
    facts = {
        "set": name, "method": method, "before": record["loss_before"], "after": last.loss, "batch": args.batch, "length": args.length, "held_rows": args.held,
        **{key: record[key] for key in ("steps", "trainable_parameters", "seconds", "tokens_per_second", "precision", "device", "alarms")},
    }  # fmt: skip
    kept.write_text(json.dumps(facts) + "\n")
    print(kept, flush=True)


def fill_page(sets: dict[str, Any]) -> None:
    """Put the table between the marks of docs/which-method.md."""
    lines = [
        "| method | trained parameters | " + " | ".join(f"{name}: loss before → after" for name in sets) + " |",
        "|---|---|" + "---|" * len(sets),
    ]
    for method in METHODS:
        rows = [sets[name].get(method) for name in sets]
        if any(rows):
            cells = [f"{row['before']:.3f} → {row['after']:.3f}" if row else "not measured" for row in rows]
            lines.append(f"| `{method}` | {next(row for row in rows if row)['trainable_parameters']:,} | {' | '.join(cells)} |")
    fill("docs/which-method.md", "language", lambda _: "\n\n" + "\n".join(lines) + "\n\n")


def gather() -> dict[str, Any]:
    """The runs that are there, by set and method."""
    sets: dict[str, Any] = {name: {} for name in args.only}
    for path in sorted(args.work.glob("*.json")):
        facts = json.loads(path.read_text())
        if facts["set"] in sets:
            sets[facts["set"]][facts["method"]] = {**facts, "clear": facts["after"] <= (1 - CLEAR) * facts["before"]}
    return sets


if not args.collect:
    parts = {name: write_parts(name, args.work) for name in args.only}
    for chosen in args.methods:
        for name, files in parts.items():
            fit(name, chosen, *files)
else:
    found = gather()
    result = {
        "command": "python benchmarks/language_methods.py",
        "machine": describe_machine(),
        "model": "smollm2-135m",
        "sets": found,
    }
    (Path(__file__).parent / "results" / "language_methods.json").write_text(json.dumps(result, indent=1) + "\n")
    fill_page(found)
