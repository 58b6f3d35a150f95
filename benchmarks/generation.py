"""Fine-tuning SmolLM2-135M with LoRA beside TRL: held-out loss at equal steps, memory, speed, and what the answers are worth.

Usage: python benchmarks/generation.py --data DIR --peer-python PYTHON [--only nl2bash ...] [--steps 100] [--threads 2] [--work DIR]
       python benchmarks/generation.py --data DIR --collect

Both sides learn the same rows in the same order for the same steps: batch, rate, linear schedule, rank, alpha, layers, length and precision
are equal, there is no dropout and no weight decay; where LoRA begins is drawn by each side for itself. Held-out losses of the base, of
Lightune's model and of TRL's adapter (put on the base by `read_adapter`) come from the same code. PYTHON is that of an environment with trl,
peft and datasets; benchmarks/peer_trl.py runs there. DIR/NAME/{train,test}.jsonl are the data.
Every finished piece stays in --work and is not repeated; --collect writes benchmarks/results/generation.json of those that are there, and the
table of docs/generation.md from it.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from pages import fill

from lightune import exports, language, models, sources
from lightune.adapters import read_adapter
from lightune.data import read_conversations
from lightune.data.batches import plan_epoch
from lightune.models import Model
from lightune.recipes import read_recipe, resolve
from lightune.runtime.answers import Answers
from lightune.supervision import supervise
from lightune.tasks.generate import Generate

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
NEAR = 0.01  # share by which held-out losses may differ
MEMORY = {"as it is": [], "with gradient checkpointing": ["--gradient-checkpointing"]}  # ours; the peer as it is
MEMORY_STEPS, MEMORY_SHARE = 4, 0.45


@dataclass(frozen=True)
class Columns:
    """A data set's columns of questions and answers, and how answers are scored."""

    prompt: str
    completion: str
    metrics: tuple[str, ...]


COMMON = ("bleu", "rougeL", "exact_match")
SETS = {
    "nl2bash": Columns("nl", "bash", (*COMMON, "command_match", "chrf")),
    "e2e_nlg": Columns("mr", "ref", COMMON),
    "dialogsum": Columns("dialogue", "summary", COMMON),
    "gsm8k": Columns("question", "answer", (*COMMON, "gsm8k")),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, type=Path), parser.add_argument("--peer-python")
(
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=SETS),
    parser.add_argument("--work", type=Path, default=Path("runs/generation")),
)
parser.add_argument("--steps", type=int, default=100), parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--rate", default="1e-3"), parser.add_argument("--rank", default="8"), parser.add_argument("--alpha", default="16")
parser.add_argument("--length", type=int, default=512), parser.add_argument("--held", type=int, default=300, help="held-out questions")
parser.add_argument("--precision", default="bf16"), parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
parser.add_argument("--seed", type=int, default=0), parser.add_argument("--collect", action="store_true")
parser.add_argument("--no-memory", action="store_true", help="leave out the memory of full rows")
args = parser.parse_args()


def keep(path: Path, make: Callable[[], Any]) -> Any:
    """What a piece says, from its file, or made and written there."""
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        passing = path.with_suffix(".writing")
        passing.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        passing.rename(path)
        print(path, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def open_base() -> Model:
    """The base, not adapted yet."""
    return models.start_language(sources.resolve_model(MODEL), Generate(Answers("generate", ())), max_length=args.length)


def read_rows(name: str, part: str) -> list[dict[str, str]]:
    columns = SETS[name]
    with open(args.data / name / f"{part}.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{"prompt": row[columns.prompt], "completion": row[columns.completion]} for row in rows]


def fitting(model: Model, rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
    """The rows of at most --length tokens, so that neither side cuts any, and their lengths."""
    kept, _ = supervise(model.chat, model.encoder, read_conversations(rows), max_length=args.length, too_long="drop")  # type: ignore[arg-type]
    return [rows[row.row - 1] for row in kept], [len(row.ids) for row in kept]


def draw_rows(model: Model, name: str) -> dict[str, Any]:
    """Training rows, the same in the order of Lightune's steps for the peer, and held-out questions with all their answers."""
    draw = np.random.default_rng(args.seed)
    rows, wanted = read_rows(name, "train"), args.steps * args.batch
    chosen = [rows[place] for place in draw.permutation(len(rows))[: 4 * wanted]]
    train, lengths = fitting(model, chosen)
    if len(train) < wanted:
        raise SystemExit(f"{name} has {len(train)} training rows of at most {args.length} tokens, {wanted} are needed: give fewer --steps")
    train, lengths = train[:wanted], lengths[:wanted]
    order = np.concatenate(plan_epoch(np.array(lengths), args.batch, args.seed, 0))
    test, _ = fitting(model, read_rows(name, "test"))
    questions = list(dict.fromkeys(row["prompt"] for row in test))
    asked = {questions[place] for place in draw.permutation(len(questions))[: args.held]}
    held = [row for row in test if row["prompt"] in asked]
    for file, part in (("train", train), ("peer", [train[place] for place in order]), ("held", held)):
        write_rows(args.work / name / f"{file}.jsonl", part)
    return {"train": len(train), "held": len(held), "questions": len(asked), "tokens": sum(lengths)}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def fit(train: Path, run: Path, *options: str) -> dict[str, Any]:
    """One run of `lightune fit` in a process of its own: its record."""
    command = [
        "fit", train, "--task", "generate", "--model", MODEL, "--method", f"lora:rank={args.rank},alpha={args.alpha}", "--epochs", "1",
        "--batch-size", args.batch, "--rate", args.rate, "--weight-decay", "0", "--max-length", args.length, "--dev-share", "0",
        "--test-share", "0", "--precision", args.precision, "--threads", args.threads, "--seed", args.seed, "--to", "none", "--out", run,
        "--overwrite", *options,
    ]  # fmt: skip
    if (run / "recipe.toml").exists() and list(run.glob("checkpoints/step-*")):
        command = ["fit", "--resume", run]
    said = subprocess.run([sys.executable, "-m", "lightune", *map(str, command), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(said.stdout)  # type: ignore[no-any-return]


def train_peer(model: Path, train: Path, out: Path, steps: int) -> dict[str, Any]:
    """One run of the peer in its own environment."""
    if args.peer_python is None:
        raise SystemExit("give --peer-python, a python with trl, peft and datasets")
    command = [
        args.peer_python, HERE / "peer_trl.py", model, train, out, "--steps", steps, "--batch", args.batch, "--rate", args.rate, "--rank", args.rank,
        "--alpha", args.alpha, "--length", args.length, "--precision", args.precision, "--threads", args.threads, "--seed", args.seed,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": args.threads, "MKL_NUM_THREADS": args.threads, "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(said.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def judge(model: Model, run: Path, answers: bool) -> dict[str, Any]:
    """Held-out scores of a model on the data of a run, by what scores the run itself."""
    recipe = resolve(read_recipe(run / "recipe.toml"), {})
    model.network.to("cuda" if torch.cuda.is_available() else "cpu")  # where the run trained
    if not answers:
        recipe = dataclasses.replace(recipe, answers=dataclasses.replace(recipe.answers, score_rows=0))
    return language.score(language.attend(model, recipe, recipe.data.train), recipe)


def compare(name: str) -> None:
    """All pieces of one data set."""
    folder = args.work / name
    keep(folder / "rows.json", lambda: draw_rows(open_base(), name))
    held = ["--test", str(folder / "held.jsonl"), "--score-rows", str(args.held), "--metrics", *SETS[name].metrics]
    keep(folder / "lightune.json", lambda: fit(folder / "train.jsonl", folder / "run", *held))
    keep(folder / "before.json", lambda: judge(open_base(), folder / "run", answers=True))
    keep(folder / "trl.json", lambda: train_peer(args.work / "base", folder / "peer.jsonl", folder / "adapter", args.steps))
    keep(folder / "judged.json", lambda: judge(read_adapter(open_base(), folder / "adapter"), folder / "run", answers=False))


def write_base() -> dict[str, str]:
    """The base as a folder of transformers."""
    exports.find_generative("hf").write(open_base(), args.work / "base")
    return {"model": MODEL}


def write_full_rows() -> dict[str, int]:
    """Rows of nearly --length tokens: dialogues one after the other, as many words as there is room for, and the last one's summary."""
    model, rows = open_base(), read_rows("dialogsum", "train")
    found, lengths = [], []
    for start in range(MEMORY_STEPS * args.batch):
        words = " ".join(row["prompt"] for row in rows[10 * start : 10 * start + 10]).split()
        row = lambda count, words=words, start=start: {"prompt": " ".join(words[:count]), "completion": rows[10 * start]["completion"]}
        most = bisect.bisect_right(range(1, len(words)), args.length, key=lambda count, row=row: tokens(model, row(count)))
        found.append(row(most))
        lengths.append(tokens(model, found[-1]))
    write_rows(args.work / "memory" / "train.jsonl", found)
    return {"rows": len(found), "shortest": min(lengths), "longest": max(lengths)}


def tokens(model: Model, row: dict[str, str]) -> int:
    """Tokens of a row with its template."""
    made, _ = supervise(model.chat, model.encoder, read_conversations([row]), max_length=10**6)  # type: ignore[arg-type]
    return len(made[0].ids)


def measure_memory() -> None:
    """Both sides on full rows for a few steps."""
    folder = args.work / "memory"
    keep(folder / "rows.json", write_full_rows)
    for title, options in MEMORY.items():
        name = title.replace(" ", "-")
        keep(
            folder / f"{name}.json",
            lambda name=name, options=options: fit(folder / "train.jsonl", folder / name, "--score-rows", "0", *options),
        )
    keep(folder / "trl.json", lambda: train_peer(args.work / "base", folder / "train.jsonl", folder / "adapter", MEMORY_STEPS))


def read_piece(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def collect_set(name: str) -> dict[str, Any]:
    """The figures of one data set; without the peer's where it was not run. Speed and memory are those of full rows: sides may have had different machines."""
    folder = args.work / name
    ours, before = (read_piece(folder / f"{file}.json") for file in ("lightune", "before"))
    sides, scores = {"lightune": ours}, {"base": before["scores"], "lightune": ours["scores"]}
    if (folder / "judged.json").exists():
        sides["trl"], scores["trl"] = read_piece(folder / "trl.json"), read_piece(folder / "judged.json")["scores"]
    losses = {side: round(math.log(found["perplexity"]["value"]), 5) for side, found in scores.items()}
    difference = losses["lightune"] / losses["trl"] - 1 if "trl" in losses else None
    metrics = {metric: {"before": before["scores"][metric], "after": ours["scores"][metric]} for metric in SETS[name].metrics}
    return {
        "rows": read_piece(folder / "rows.json"), "held_out_loss": losses, "answers": metrics,
        "difference": None if difference is None else round(difference, 5), "agrees": None if difference is None else abs(difference) <= NEAR,
        **{figure: {side: found[figure] for side, found in sides.items()} for figure in ("trainable_parameters", "device")},
    }  # fmt: skip


def collect_memory() -> dict[str, Any]:
    """Peak memory and speed on full rows."""
    folder = args.work / "memory"
    peer = read_piece(folder / "trl.json")
    figures = ("peak_resident_bytes", "tokens_per_second")
    found = {"rows": read_piece(folder / "rows.json"), "trl": {name: peer[name] for name in figures}}
    for title in MEMORY:
        own = read_piece(folder / f"{title.replace(' ', '-')}.json")
        share = own["peak_resident_bytes"] / peer["peak_resident_bytes"]
        found[title] = {**{name: own[name] for name in figures}, "share": round(share, 4), "holds": share <= MEMORY_SHARE}
    return found


def fill_page(sets: dict[str, Any]) -> None:
    """Put a line for each data set and metric between the marks of docs/generation.md."""
    lines = ["| data | figure | before | after | TRL's after |", "|---|---|---|---|---|"]
    for name, found in sets.items():
        losses = found["held_out_loss"]
        theirs = f"{losses['trl']:.3f}" if "trl" in losses else "not measured"
        lines.append(f"| {name} | held-out loss | {losses['base']:.3f} | {losses['lightune']:.3f} | {theirs} |")
        for metric, values in found["answers"].items():
            before, after = (f"{values[when]['value']:.3f}" for when in ("before", "after"))
            interval = f"{values['after']['low']:.3f} to {values['after']['high']:.3f}"
            lines.append(f"| | `{metric}` | {before} | {after} ({interval}) | |")
    fill("docs/generation.md", "measured", lambda _: "\n\n" + "\n".join(lines) + "\n\n")


def collect() -> None:
    """Write the result of the pieces that are there, and the page."""
    options = ("steps", "batch", "rate", "rank", "alpha", "length", "held", "precision", "threads", "seed")
    result = {
        "command": "python benchmarks/generation.py --data DIR --peer-python PYTHON "
        + " ".join(f"--{name} {getattr(args, name)}" for name in options),
        "model": MODEL,
        "machine": describe_machine(),
        "sets": {name: collect_set(name) for name in args.only if (args.work / name / "before.json").exists()},
        "memory": collect_memory() if (args.work / "memory" / "trl.json").exists() else None,
    }
    (HERE / "results" / "generation.json").write_text(json.dumps(result, indent=1) + "\n")
    fill_page(result["sets"])
    print(
        json.dumps(
            {name: (found["held_out_loss"], found["agrees"]) for name, found in result["sets"].items()} | {"memory": result["memory"]}
        )
    )


if __name__ == "__main__":
    if not args.collect:
        keep(args.work / "base.json", write_base)
        if not args.no_memory:
            measure_memory()
        for name in args.only:
            compare(name)
    collect()
