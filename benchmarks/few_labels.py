"""Eight examples a label: our contrastive warm-up, our plain training, and SetFit's published recipe, in turn, each in its own process.

Usage: python benchmarks/few_labels.py --data DIR --models DIR --work DIR [--only NAME ...] [--draws N] [--most-steps N] [--test-rows N] [--collect]
DIR/NAME/{train,test,validation}.jsonl as in SETS below; models is a folder with minilm/ as transformers loads it.
Every finished draw is kept in WORK as one JSON file and not repeated; --collect runs nothing and only gathers what is there. Sets without a draw
there stay as they are in the results.
Writes benchmarks/results/few_labels.json: seconds of training (loading and scoring not counted) and test accuracy of every draw, and their means;
and the table of docs/training.md from it.

The warm-up draws as many partners as `contrast.suggest_partners` says. The peer is the recipe of setfit 1.1 (Tunstall et al. 2022) in plain transformers: the same base, mean pooling and L2 norm, dropout as in its
configuration; all pairs of equal labels (a text with itself too) and all of different ones, the fewer repeated until there are as many; one epoch,
16 pairs a step, AdamW without decay, 2e-5 after 10 % warm-up and then falling linearly, gradients clipped at 1, the squared distance of the cosine
from 1 or 0; then scikit-learn's LogisticRegression as it is. On banking77 that would be 23,400 steps, so there it gets `max_steps`: the
1,540 steps of the paper's R = 20 pairs of each kind a text.
--most-steps (of every side) and --test-rows are for a quick look and are written into the result.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import describe_machine
from pages import fill

from lightune.runtime.predictor import usable_cores

SETS = {
    "trec": ("test", 5, None),
    "sst2": ("validation", 5, None),
    "banking77": ("test", 2, 1540),
}  # test part, draws, the peer's most steps
SIDES = ("contrast", "plain", "setfit")
PER_LABEL, LENGTH = 8, 256

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True), parser.add_argument("--models", required=True), parser.add_argument("--work", required=True)
parser.add_argument("--only", nargs="*"), parser.add_argument("--draws", type=int), parser.add_argument("--collect", action="store_true")
parser.add_argument("--most-steps", type=int), parser.add_argument("--test-rows", type=int), parser.add_argument("--one", nargs=3)
parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "few_labels.json"))
args = parser.parse_args()


def read_rows(name, part):
    lines = (Path(args.data) / name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], str(row["label"])) for row in map(json.loads, lines)]


def draw_few(rows, seed):
    """PER_LABEL rows of every label, the same for every side."""
    draw, few = np.random.default_rng(seed), []
    for label in sorted({label for _, label in rows}):
        own = [row for row in rows if row[1] == label]
        few += [own[place] for place in draw.permutation(len(own))[:PER_LABEL]]
    return few


def train_ours(few, test, seed, contrastive):
    import torch

    from lightune import contrast, models, sources
    from lightune.data import Example
    from lightune.methods import make_method
    from lightune.recipes import TrainOptions
    from lightune.tasks import find_task
    from lightune.training import Training

    train, unseen = ([Example(text, None, label, number) for number, (text, label) in enumerate(rows, 1)] for rows in (few, test))
    task = find_task("classify").describe(train)
    model = models.start(sources.resolve_model(str(Path(args.models) / "minilm")), task, max_length=LENGTH, seed=seed)
    torch.manual_seed(seed)
    model.apply(make_method("full"))
    partners = contrast.suggest_partners(len(task.answers.labels)) if contrastive else 0
    options = TrainOptions(contrast=partners, seed=seed)
    begin = time.perf_counter()
    training = contrast.warm_up(model, train, options) if contrastive else Training(model, train, [], options)
    for fact in training.steps():
        if args.most_steps and fact.step + 1 >= args.most_steps:
            training.finish_early()
    if contrastive:
        contrast.fit_head(model, train, [])
    seconds = time.perf_counter() - begin
    right = model.logits(unseen).argmax(1) == task.targets(unseen)
    return {"accuracy": float(right.mean()), "seconds": seconds, "steps": training.step}


def train_setfit(few, test, seed, most):
    import torch
    from sklearn.linear_model import LogisticRegression
    from torch.nn import functional
    from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

    folder = Path(args.models) / "minilm"
    tokenizer, body = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed), torch.set_num_threads(usable_cores())  # as ours does

    def embed(texts):
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        mask = batch["attention_mask"][:, :, None]
        return functional.normalize((body(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)

    def embed_all(texts):
        body.eval()
        with torch.inference_mode():
            return np.concatenate([embed(texts[start : start + 64]).numpy() for start in range(0, len(texts), 64)])

    begin = time.perf_counter()
    texts, labels = [text for text, _ in few], np.array([label for _, label in few])
    left, right = np.triu_indices(len(few))
    same = labels[left] == labels[right]
    kinds = [np.flatnonzero(same), np.flatnonzero(~same)]
    count = max(map(len, kinds))
    order = draw.permutation(np.concatenate([np.resize(draw.permutation(kind), count) for kind in kinds]))
    whole = -(-len(order) // 16)
    total = min(filter(None, (whole, most, args.most_steps)))
    optimizer = torch.optim.AdamW(body.parameters(), lr=2e-5, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, -(-total // 10), total)
    body.train()
    for step in range(total):
        chosen = order[step * 16 : step * 16 + 16]
        one, other = (embed([texts[place] for place in side[chosen]]) for side in (left, right))
        loss = functional.mse_loss(functional.cosine_similarity(one, other), torch.from_numpy(same[chosen].astype(np.float32)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(body.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    head = LogisticRegression().fit(embed_all(texts), labels)
    seconds = time.perf_counter() - begin
    found = head.predict(embed_all([text for text, _ in test])) == np.array([label for _, label in test])
    return {"accuracy": float(found.mean()), "seconds": seconds, "steps": total, "steps_of_one_epoch": whole}


if args.one:
    side, name, seed = args.one[0], args.one[1], int(args.one[2])
    few, test = draw_few(read_rows(name, "train"), seed), read_rows(name, SETS[name][0])[: args.test_rows]
    facts = train_setfit(few, test, seed, SETS[name][2]) if side == "setfit" else train_ours(few, test, seed, side == "contrast")
    print(json.dumps({**facts, "train_rows": len(few), "test_rows": len(test)}))
    sys.exit()


def run(side, name, seed):
    """One draw of one side, from WORK where it was run before; None where there is none to collect."""
    kept = Path(args.work) / f"few-{name}-{seed}-{side}.json"
    if not kept.exists() and not args.collect:
        places = ["--data", args.data, "--models", args.models, "--work", args.work]
        command = [sys.executable, __file__, *places, "--one", side, name, str(seed)]
        for flag, value in (("--most-steps", args.most_steps), ("--test-rows", args.test_rows)):
            command += [flag, str(value)] if value else []
        line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]
        kept.write_text(line + "\n")
    return json.loads(kept.read_text()) if kept.exists() else None


def fill_page(sets):
    """Put a line for each set between the marks of docs/training.md."""
    lines = ["| set | draws | contrastive warm-up | SetFit's recipe | plain training |", "|---|---|---|---|---|"]
    for name, sides in sets.items():
        cells = [
            f"{one['mean_accuracy']:.3f}, {one['mean_seconds']:.0f} s" if (one := sides.get(side)) else "–"
            for side in ("contrast", "setfit", "plain")
        ]
        lines.append(f"| {name} | {len(sides['contrast']['draws'])} | {' | '.join(cells)} |")
    fill("docs/training.md", "few", lambda _: "\n\n" + "\n".join(lines) + "\n\n")


Path(args.work).mkdir(parents=True, exist_ok=True)
out = Path(args.out)
known = json.loads(out.read_text()) if out.exists() else {"sets": {}, "machines": {}}
found, machines = known["sets"], known["machines"]
for name, (_, draws, _) in SETS.items():
    if args.only and name not in args.only:
        continue
    rows = {side: [] for side in SIDES}
    for seed in range(args.draws or draws):
        for place in range(len(SIDES)):  # in turn, and another one first each time
            side = SIDES[(place + seed) % len(SIDES)]
            if facts := run(side, name, seed):
                rows[side].append({"draw": seed, **facts})
    if not any(rows.values()):
        continue
    found[name] = {
        side: {"mean_accuracy": float(np.mean([item["accuracy"] for item in items])), "deviation": float(np.std([item["accuracy"] for item in items])),
               "mean_seconds": float(np.mean([item["seconds"] for item in items])), "draws": items}
        for side, items in rows.items() if items
    }  # fmt: skip
    machines[name] = describe_machine()
result = {
    "command": "python benchmarks/few_labels.py", "examples_a_label": PER_LABEL, "most_steps": args.most_steps, "test_rows": args.test_rows,
    "machines": machines, "sets": {name: found[name] for name in SETS if name in found},
}  # fmt: skip
out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
fill_page(result["sets"])
