"""SmolLM2-135M fine-tuned to write shell commands, then cut and healed: bytes, tokens a second and score of every file beside the unshrunk ones.

Usage: python benchmarks/shrink_language.py --data DIR [--rows 2400] [--passes 2 | --minutes 5] [--questions 150] [--only NAME ...] [--work DIR]
       python benchmarks/shrink_language.py --data DIR --collect

DIR/nl2bash/{train,validation,test}.jsonl are the data. One `lightune fit` and one `lightune shrink RUN --step ...` for every student and file,
all in one run, whose front then holds them. At the end the files are timed in turns on one thread, medians over the rounds, each with the
same questions. Every finished piece stays in --work and is not repeated; --collect writes benchmarks/results/shrink_language.json of those that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from machine import describe_machine

HERE = Path(__file__).parent
UNSHRUNK = ("gguf:type=q8_0", "gguf:type=q4_0")
# name: steps, and the types of the files that are made of the student
STUDENTS = {
    "22 layers": (["vocab=8000", "depth=22"], ["q4_0", "q8_0"]),
    "26 layers, narrow": (["vocab=8000", "depth=26", "ffn=1280"], ["q4_0"]),
    "25 layers, narrow": (["vocab=8000", "depth=25", "ffn=1280"], ["q4_0"]),
    "15 layers": (["vocab=8000", "depth=15"], ["q4_0", "q8_0"]),
    "10 layers": (["vocab=8000", "depth=10"], ["q8_0"]),
    "all layers": (["vocab=8000"], ["q4_0", "q8_0"]),
}
METRICS = ("chrf", "command_match", "exact_match")
GOAL = {"bytes": 50e6, "faster": 2.0, "kept": 0.97}  # of the unshrunk file with 8 bits

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, type=Path), parser.add_argument("--work", type=Path, default=Path("runs/shrink_language"))
parser.add_argument("--rows", type=int, default=2400), parser.add_argument("--epochs", default="1")
parser.add_argument("--passes", default="2", help="over the rows, of each student")
parser.add_argument("--minutes", type=float, help="of each student, from reading the data to the proof, in place of --passes")
parser.add_argument("--questions", type=int, default=150), parser.add_argument("--threads", default="1")
parser.add_argument("--rounds", type=int, default=5, help="in which the files are timed in turns")
parser.add_argument("--only", nargs="*", default=list(STUDENTS), choices=STUDENTS), parser.add_argument("--collect", action="store_true")
parser.add_argument("--out", type=Path, default=HERE / "results" / "shrink_language.json")
args = parser.parse_args()
RUN = args.work / "run"
LONG = ["--time", f"{args.minutes:g}min"] if args.minutes else ["--epochs", args.passes]


def lightune(*command: str) -> int:
    """The exit code of a command of Lightune; what it prints goes to a log in --work."""
    args.work.mkdir(parents=True, exist_ok=True)
    with open(args.work / "log.txt", "a", encoding="utf-8") as log:
        print("lightune", *command, file=log, flush=True)
        return subprocess.run([sys.executable, "-m", "lightune", *command], stdout=log, stderr=log, check=False).returncode


def fit() -> None:
    """The run that everything is made of, and its own files."""
    if (RUN / "run.json").exists():
        return
    data = args.data / "nl2bash"
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    held = args.work / "held.jsonl"
    args.work.mkdir(parents=True, exist_ok=True)
    held.write_text("\n".join(lines[:: max(1, len(lines) // args.questions)][: args.questions]) + "\n", encoding="utf-8")
    columns = ["--task", "generate", "--prompt", "nl", "--completion", "bash"]
    parts = ["--dev", str(data / "validation.jsonl"), "--test", str(held)]
    how = ["--limit", str(args.rows), "--epochs", args.epochs, "--max-length", "256", "--too-long", "drop", "--evaluate-every", "100000"]
    scored = [
        "--score-rows",
        str(args.questions),
        "--max-tokens",
        "96",
        "--metrics",
        *METRICS,
        "--threads",
        args.threads,
        "--to",
        *UNSHRUNK,
    ]
    code = lightune("fit", str(data / "train.jsonl"), *columns, *parts, *how, *scored, "--out", str(RUN), "--overwrite", "--json")
    if not (RUN / "run.json").exists():
        raise SystemExit(f"lightune fit ended with {code}: see {args.work / 'log.txt'}")


def shrink(name: str) -> None:
    """A student, and its files."""
    steps, types = STUDENTS[name]
    for kind in types:
        if not any(point["steps"] == steps and point["target"] == f"gguf:type={kind}" for point in read_points()):
            flags = [flag for step in steps for flag in ("--step", step)]
            lightune("shrink", str(RUN), *flags, "--to", f"gguf:type={kind}", *LONG, "--json")


def read_points() -> list[dict[str, Any]]:
    """The files that were made and scored."""
    path = RUN / "front.json"
    return [point for point in json.loads(path.read_text())["points"] if "proof" in point] if path.exists() else []


def time_together(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Tokens a second of every file, in turns: medians over the rounds."""
    from lightune import benchmarking
    from lightune.data import read_conversations
    from lightune.language_evaluation import ask
    from lightune.runtime.gguf import load_gguf

    rows = [json.loads(line) for line in open(args.data / "nl2bash" / "test.jsonl", encoding="utf-8")][::40]
    prompts = [ask(row)[0] for row in read_conversations([{"prompt": row["nl"], "completion": row["bash"]} for row in rows])]
    opened = {name: load_gguf(folder, threads=1) for name, folder in folders.items()}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in opened}
    for _ in range(args.rounds):
        for name, generator in opened.items():
            seen[name].append(benchmarking.generation_speed(generator, prompts))
    return {name: {key: statistics.median(one[key] for one in several) for key in several[0]} for name, several in seen.items()}


def score_unshrunk(folder: Path) -> dict[str, Any]:
    """What the whole model's file makes of the exam that the others took."""
    from lightune import language_shrinking
    from lightune.exporting import open_written
    from lightune.preparation import Told
    from lightune.recipes import read_recipe, resolve
    from lightune.runs import open_run

    recipe = resolve(read_recipe(RUN / "recipe.toml"), {})
    ground = language_shrinking.survey(
        open_run(RUN), recipe, recipe.data.train, lambda fact: isinstance(fact, Told) and print(fact.text, file=sys.stderr)
    )
    paper = language_shrinking.take(ground.exams["proof"], open_written(folder), ground.data)
    return {"scores": paper.scores, "kept": ground.exams["proof"].compare(paper, ground.papers["proof"], GOAL["kept"])}


def keep(path: Path, make: Any) -> Any:
    """What a piece says, from its file, or made and written there."""
    if not path.exists():
        path.write_text(json.dumps(make(), indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def gather() -> dict[str, Any]:
    """Every file that is there, the fastest and smallest against the unshrunk one with 8 bits."""
    record, points = json.loads((RUN / "run.json").read_text()), read_points()
    whole = {entry["target"]: entry for entry in record["artifacts"] if not entry["path"].endswith("/small")}
    folders = {target: RUN / entry["path"] for target, entry in whole.items()}
    students = {tuple(steps): name for name, (steps, _) in STUDENTS.items()}
    names = {point["id"]: f"{students[tuple(point['steps'])]}, {point['target'].partition('=')[2]}" for point in points}
    folders |= {names[point["id"]]: RUN / point["artifact"] for point in points}
    speed = keep(args.work / f"timed-{len(folders)}.json", lambda: time_together(folders))
    found = [
        {"name": f"whole, {target.partition('=')[2]}", "steps": [], "target": target, "bytes": entry["bytes"], "tokens_per_second": speed[target],
         "parity": entry["parity"], **keep(args.work / f"whole-{number}.json", partial(score_unshrunk, folders[target]))}
        for number, (target, entry) in enumerate(whole.items())
    ]  # fmt: skip
    found += [
        {"name": names[point["id"]], **{key: point[key] for key in ("steps", "target", "shape", "bytes", "parity", "seconds")},
         "tokens_per_second": speed[names[point["id"]]], "scores": point["proof"]["scores"], "kept": point["proof"]["kept"]}
        for point in points
    ]  # fmt: skip
    first = found[0]
    for item in found:
        item["smaller"] = round(first["bytes"] / item["bytes"], 2)
        item["faster"] = {
            key: round(item["tokens_per_second"][key] / first["tokens_per_second"][key], 2) for key in ("prompt", "generation")
        }
        item["holds"] = (
            item["bytes"] <= GOAL["bytes"] and item["faster"]["generation"] >= GOAL["faster"] and item["kept"]["value"] >= GOAL["kept"]
        )
    return {
        "command": f"python benchmarks/shrink_language.py --data DIR --rows {args.rows} --epochs {args.epochs} --passes {args.passes} --questions {args.questions}",
        "machine": describe_machine(), "goal": GOAL, "students": " ".join(LONG),
        "fit": {key: record[key] for key in ("method", "examples", "seconds", "tokens_per_second", "epochs", "steps", "loss_before", "scores")},
        "files": found,
    }  # fmt: skip


if not args.collect:
    fit()
    for student in args.only:
        shrink(student)
args.out.write_text(json.dumps(gather(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
