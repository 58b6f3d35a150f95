"""How small and how fast a fine-tuned model becomes at 99 % and 97 % of its score, beside what plain tools reach with the same model.

Usage: python benchmarks/shrink_to_budget.py --data DIR --work DIR [--time 20min] [--factor 20] [--only NAME ...] [--peers] [--once] [--remark TEXT] [--collect]
DIR/NAME/*.jsonl as in SETS below. Every run and search is kept in WORK and not repeated; --collect runs nothing and only gathers.
Each search is asked for `factor` times fewer bytes than the fine-tuned fp32 weights and `factor` times fewer milliseconds than PyTorch fp32 on
one thread, at 99 % of the score. With --peers the same fine-tuned model also goes through onnxruntime's own dynamic int8, a student of half
the layers that learns from the labels alone, and magnitude pruning; all are scored and timed by the same code.
Where a peer lies beyond the front, the same run is searched once more for that peer's size and time, else where no point keeps 99 % for half the
factor (--once leaves that out); its points stand beside the others, as does the whole model in int8. At the end of each search the fine-tuned
model, every point and the peers are timed in turns; the factors, and who dominates whom, come from these times.
Writes benchmarks/results/shrink_to_budget.json, where sets that were not run stay as they are, each with its machine; with --pages also the tables
of docs/shrinking.md and of both READMEs from it.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from machine import describe_machine
from pages import fill

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--work", required=True), parser.add_argument("--time", default="20min")
parser.add_argument("--factor", type=float, default=20.0), parser.add_argument("--only", nargs="*")
parser.add_argument("--peers", action="store_true"), parser.add_argument("--collect", action="store_true")
parser.add_argument("--pages", action="store_true"), parser.add_argument("--once", action="store_true")
parser.add_argument("--remark", default="", help="what this search has that others have not; stands beside it in the pages")
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "shrink_to_budget.json"))
args = parser.parse_args()

# name: (train, test, flags of fit, factor that is asked for where it is another)
SETS = {
    "trec": ("trec/train.jsonl", "trec/test.jsonl", ["--label", "label", "--epochs", "3"], None),
    "trec-seed1": ("trec/train.jsonl", "trec/test.jsonl", ["--label", "label", "--epochs", "3", "--seed", "1"], None),
    "trec-seed2": ("trec/train.jsonl", "trec/test.jsonl", ["--label", "label", "--epochs", "3", "--seed", "2"], None),
    "banking77": ("banking77/train.jsonl", "banking77/test.jsonl", ["--epochs", "5"], None),
    "sst2": ("sst2/train.jsonl", "sst2/validation.jsonl", ["--epochs", "1", "--limit", "20000"], None),
    "sms_spam": ("sms_spam/train.jsonl", "sms_spam/test.jsonl", ["--epochs", "3"], None),
    "mrpc": ("glue_mrpc/train.jsonl", "glue_mrpc/test.jsonl", ["--epochs", "3", "--dev", "glue_mrpc/validation.jsonl"], None),
    "chnsenticorp": (
        "chnsenticorp/train.jsonl", "chnsenticorp/test.jsonl",
        ["--epochs", "3", "--dev", "chnsenticorp/validation.jsonl", "--max-length", "256", "--model", "albert-tiny-zh"], 4.0,
    ),
}  # fmt: skip
KEEPS = (0.99, 0.97, 0.95)
ROUNDS = 7


def located(flag):
    return str(Path(args.data) / flag) if flag.endswith(".jsonl") else flag


def lightune(*command):
    """A command of Lightune; a budget that is not held (exit 1) is a result too."""
    done = subprocess.run([sys.executable, "-m", "lightune", *command], stdout=subprocess.PIPE, text=True)
    assert done.returncode in (0, 1), command


def limits_of(size, milliseconds, factor):
    """The limits of a model so many times smaller and faster."""
    return {"mb": size / 1e6 / factor, "ms": milliseconds / factor}


def open_model(folder):
    """The fine-tuned PyTorch model of a run, on one thread, and the test rows by which everything is timed."""
    import torch

    from lightune import models
    from lightune.exporting import fold
    from lightune.preparation import read_all
    from lightune.recipes import read_recipe, resolve

    torch.set_num_threads(1)
    recipe = resolve(read_recipe(folder / "recipe.toml"), {})
    return fold(models.load(folder / "model")), read_all(recipe, recipe.data.train).parts["test"][:256]


def time_model(folder):
    """Milliseconds a text of the fine-tuned model, as the machine is now: it may have been busier after the fit."""
    from lightune import benchmarking

    return benchmarking.latency(*open_model(folder)).p50


def search(name, second=None):
    """The run folder of a set after its search; a second search, for the limits {mb, ms} that it names, has a copy of the run without its files."""
    train, test, flags, factor = SETS[name]
    folder = Path(args.work) / name
    if not (folder / "run.json").exists() and not args.collect:
        lightune("fit", located(train), "--test", located(test), *map(located, flags), "--out", str(folder), "--overwrite", "--json")
    if second:
        first, folder = folder, folder.with_name(f"{name}-second")
        if not folder.exists() and not args.collect:
            shutil.copytree(
                first,
                folder,
                ignore=shutil.ignore_patterns("candidates", "search.json", "front.*", "artifacts", "peers", "peers.json", "timed.json"),
            )
            record = json.loads((first / "run.json").read_text())
            (folder / "run.json").write_text(json.dumps(record | {"artifacts": [], "budget": None, "met": None}))
    if not (folder / "front.json").exists() and not args.collect:
        reference = json.loads((folder / "run.json").read_text())["reference"]
        limits = second or limits_of(reference["bytes"], time_model(folder), factor or args.factor)
        budget = ["--keep", "0.99", "--max-mb", f"{limits['mb']:.3f}", "--max-ms", f"{limits['ms']:.4f}"]
        lightune("shrink", str(folder), *budget, "--time", args.time, "--json")
    return folder


def factors(reference, point):
    """How much smaller and faster a point is, and the lesser of both."""
    smaller, faster = reference["bytes"] / point["bytes"], reference["milliseconds"] / point["milliseconds"]
    return {"smaller": round(smaller, 2), "faster": round(faster, 2), "both": round(min(smaller, faster), 2)}


def best_at(searches, keep):
    """The point with the largest lesser factor among those of all searches whose test score is at least this share of the reference's."""
    holding = [
        {"name": point["name"], "kept": round(point["test"] / one["reference"]["test"], 4), **factors(one["reference"], point)}
        for one in searches
        for point in one["points"]
        if point["test"] and point["test"] >= keep * one["reference"]["test"]
    ]
    return max(holding, key=lambda point: point["both"], default=None)


def time_together(folder, points, peers):
    """Milliseconds of the fine-tuned PyTorch model, every point and the peers on the same rows, in turns, medians over the rounds."""
    kept = folder / "timed.json"
    if not kept.exists() and not args.collect:
        from lightune import benchmarking, runtime

        model, rows = open_model(folder)
        timed = {"reference": model}
        timed |= {str(point["id"]): runtime.load(folder / point["artifact"], threads=1) for point in points}
        timed |= {name: runtime.load(peer["artifact"], threads=1) for name, peer in peers.items()}
        seen = {name: [] for name in timed}
        for _ in range(ROUNDS):
            for name, predictor in timed.items():
                seen[name].append(benchmarking.latency(predictor, rows, runs=100).p50)
        kept.write_text(json.dumps({name: sorted(values) for name, values in seen.items()}))
    times = json.loads(kept.read_text()) if kept.exists() else {}
    return {name: {"milliseconds": statistics.median(values), "low": values[0], "high": values[-1]} for name, values in times.items()}


def run_peers(folder):
    """What plain tools make of the same fine-tuned model: name → bytes, milliseconds, test score."""
    kept = folder / "peers.json"
    if not kept.exists() and not args.collect:
        import peer_shrinkers

        kept.write_text(json.dumps(peer_shrinkers.run(folder, folder / "peers")))
    return json.loads(kept.read_text()) if kept.exists() else {}


def find_above(searches, name, peer):
    """The name of a point that scores at least as much as a peer and is neither larger nor slower; None where there is none."""
    above = [
        point["name"]
        for one in searches
        for point in one["points"]
        if point["test"]
        and point["test"] >= peer["test"]
        and point["bytes"] <= peer["bytes"]
        and point["milliseconds"] <= one["timed"].get(name, peer)["milliseconds"]
    ]
    return above[-1] if above else None


KEYS = ("id", "name", "steps", "target", "artifact", "bytes", "milliseconds", "resident_bytes", "score", "test", "on_front", "seconds")


def gather(folder, peers):
    """What a search found: its command, its points with the whole model in int8 among them, and their times beside the fine-tuned model's."""
    front, record = json.loads((folder / "front.json").read_text()), json.loads((folder / "run.json").read_text())
    points = [{key: point[key] for key in KEYS} for point in front["points"]]
    for entry in record["artifacts"]:
        if not entry["path"].endswith("/small"):
            points.append({
                "id": entry["target"], "name": f"the whole model, {entry['target']}", "steps": [], "target": entry["target"], "artifact": entry["path"],
                "bytes": entry["bytes"], "milliseconds": entry["milliseconds"]["p50"], "resident_bytes": entry["resident_bytes"], "score": None,
                "test": entry["scores"][front["metric"]]["value"], "on_front": True, "seconds": 0.0,
            })  # fmt: skip
    timed = time_together(folder, points, peers)
    reference = {**front["reference"], **({"milliseconds": timed["reference"]["milliseconds"]} if timed else {})}
    for point in points:
        point["milliseconds"] = timed.get(str(point["id"]), point)["milliseconds"]
        point.update(factors(reference, point), kept=point["test"] and round(point["test"] / reference["test"], 4))
        del point["artifact"]
    limits = front["limits"]
    return {
        "command": f"lightune shrink RUN --keep 0.99 --max-mb {limits['max_mb']:g} --max-ms {limits['max_ms']:g} --time {limits['time']:.0f}s",
        "metric": front["metric"], "reference": reference, "timed": timed, "limits": limits, "chosen": front["chosen"], "points": points,
        "budget": record["budget"], "met": record["met"], "seconds": json.loads((folder / "search.json").read_text())["seconds"], "remark": args.remark,
    }  # fmt: skip


def tell_best(best):
    """What keeps a share of the score, in a few words."""
    return f"{best['smaller']:.1f}× / {best['faster']:.1f}×" if best else "–"


def tell_set(name, entry):
    """A set's line in the summary: the model before, what the first search chose, and the largest factors at 99 and at 97 %."""
    one = entry["searches"][0]
    before, chosen = one["reference"], next(point for point in one["points"] if point["id"] == one["chosen"])
    cells = [
        name, f"{before['test']:.3f}, {before['bytes'] / 1e6:.0f} MB, {before['milliseconds']:.1f} ms",
        f"{chosen['bytes'] / 1e6:.2f} MB, {chosen['milliseconds']:.2f} ms", f"{chosen['smaller']:.1f}×", f"{chosen['faster']:.1f}×", f"{chosen['test']:.3f}",
        f"{100 * chosen['kept']:.1f} %", tell_best(entry["best"]["99%"]), tell_best(entry["best"]["97%"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def tell_front(name, entry):
    """A set's section: every point of its searches that was scored on the test rows."""
    one = entry["searches"][0]
    before, points = one["reference"], [point for search in entry["searches"] for point in search["points"] if point["test"]]
    lines = [f"### {name}", "", f"`{entry['fit']}`", ""]
    lines += [f"1. `{search['command']}`: {search['seconds'] / 60:.0f} minutes{'; ' * bool(search['remark'])}{search['remark']}" for search in entry["searches"]]
    lines += ["", "| what | size | smaller | ms a text | faster | test | kept |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| fine-tuned, PyTorch fp32 | {before['bytes'] / 1e6:.1f} MB | 1 | {before['milliseconds']:.1f} | 1 | {before['test']:.3f} | 100 % |"
    ]
    named = [(point["name"], point) for point in sorted(points, key=lambda point: -point["bytes"])]
    for title, point in [*named, *((f"*{peer}*", point) for peer, point in entry["peers"].items())]:
        size, kept = f"{point['bytes'] / 1e6:.2f} MB | {point['smaller']:.1f}×", f"{100 * point['test'] / before['test']:.1f} %"
        lines.append(f"| {title} | {size} | {point['milliseconds']:.2f} | {point['faster']:.1f}× | {point['test']:.3f} | {kept} |")
    return [*lines, ""]


def fill_pages(sets):
    """Put the summary and the fronts between the marks of the pages; what stands before a summary's table stays."""
    rows = "\n".join(tell_set(name, entry) for name, entry in sets.items())
    fronts = "\n".join(line for name, entry in sets.items() for line in tell_front(name, entry))

    def replace_rows(before):
        rule = before.index("|---")
        return before[: before.index("\n", rule) + 1] + rows + "\n"

    fill("docs/shrinking.md", "fronts", lambda _: f"\n\n{fronts}\n")
    for page, mark in (("docs/shrinking.md", "summary"), ("README.md", "shrink"), ("README.zh-CN.md", "shrink")):
        fill(page, mark, replace_rows)


out = Path(args.out)
known = json.loads(out.read_text())["sets"] if out.exists() else {}
for name, (train, test, flags, _) in SETS.items():
    if (args.only and name not in args.only) or (args.collect and not (Path(args.work) / name / "front.json").exists()):
        continue
    folder = search(name)
    peers = run_peers(folder) if args.peers else {}
    searches = [gather(folder, peers)]
    for peer, point in peers.items():
        point["milliseconds"] = searches[0]["timed"].get(peer, point)["milliseconds"]
    beyond = [point for peer, point in peers.items() if not find_above(searches, peer, point)]
    shrunk = [{**searches[0], "points": [point for point in searches[0]["points"] if point["steps"]]}]
    if not args.once and (beyond or best_at(shrunk, 0.99) is None):
        one = searches[0]["reference"]
        half = limits_of(one["bytes"], one["milliseconds"], (SETS[name][3] or args.factor) / 2)
        wanted = {"mb": min(peer["bytes"] for peer in beyond) / 1e6, "ms": min(peer["milliseconds"] for peer in beyond)} if beyond else half
        second = search(name, wanted)
        searches += [gather(second, peers)] if (second / "front.json").exists() else []
    known[name] = {
        "machine": describe_machine(),
        "fit": " ".join(["lightune fit", train, "--test", test, *flags]), "searches": searches,
        "best": {f"{keep:.0%}": best_at(searches, keep) for keep in KEEPS},
        "peers": {
            peer: {**{key: point[key] for key in ("bytes", "milliseconds", "test")}, **factors(searches[0]["reference"], point),
                   "dominated_by": find_above(searches, peer, point)} for peer, point in peers.items()
        },
    }  # fmt: skip
    print(name, json.dumps(known[name]["best"]), file=sys.stderr)
sets = {name: known[name] for name in SETS if name in known}
result = {"command": "python benchmarks/shrink_to_budget.py", "sets": sets}
out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
if args.pages:
    fill_pages(sets)
