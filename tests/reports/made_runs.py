"""Made-up runs that look like real ones: every file of a RUN folder, the same for the same arguments."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SUBJECTS = (
    "card_payment",
    "top_up",
    "cash_withdrawal",
    "transfer",
    "exchange_rate",
    "direct_debit",
    "refund",
    "pin",
    "balance",
    "identity",
    "virtual_card",
)
EVENTS = ("pending", "declined", "fee_charged", "not_recognised", "limit_reached", "wrong_amount", "reverted_by_the_bank")
LABELS_77 = tuple(f"{subject}_{event}" for subject in SUBJECTS for event in EVENTS)
LABELS_6 = ("abbreviation", "description", "entity", "human", "location", "numeric")
TEXTS = (
    "Why was my card payment turned down twice this morning at the same shop?",
    "I topped up an hour ago and the money still isn't showing in the app",
    "כמה זמן לוקח להעברה להגיע לחשבון שלי?",
    "我的卡还没有到，已经等了两个星期了 📮",
    "How do I change the PIN 🔐 on the new card, and does the old one stop working straight away or only at midnight?",
)


def make_run(
    folder: Path,
    labels: Sequence[str] = LABELS_6,
    *,
    name: str = "trec-full",
    task: str = "classify",
    method: str = "full",
    accuracy: float = 0.93,
    seed: int = 0,
    without: Sequence[str] = (),
) -> Path:
    """Write the files of a run into `folder`, apart from those named in `without`, and return the folder."""
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    regress = task == "regress"
    counts = _confusion(dice, len(labels), accuracy)
    support = [sum(row) for row in counts]
    rows = sum(support)
    right = sum(counts[index][index] for index in range(len(labels))) / rows
    scores = _scores(right, rows, regress)
    files: dict[str, Any] = {
        "run.json": _run(name, task, method, scores, dice, rows),
        "evaluation.json": _evaluation(labels, counts, scores, dice, task),
        "data.json": _data(labels, support, dice, regress),
        "environment.json": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Xeon Platinum 8488C",
            "cores": 2,
            "memory_bytes": 8_000_000_000,
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "onnxruntime": "1.32.0"},
            "seed": seed,
        },
    }
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    (folder / "steps.jsonl").write_text("\n".join(json.dumps(line) for line in _steps(dice, right, regress)), encoding="utf-8")
    recipe = f'task = "{task}"\nmethod = "{method}"\nmodel = "minilm"\n\n[train]\nepochs = {3 + seed}\nrate = 2e-5\nbatch_tokens = 2048\n'
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    for file in without:
        (folder / file).unlink()
    return folder


def make_shrunk_run(folder: Path, *, points: int = 24, met: bool = True, seed: int = 0, name: str = "trec-small", **options: Any) -> Path:
    """A run with a budget and everything that the search for a smaller model tried: `points` of them, larger ones scoring better."""
    make_run(folder, name=name, seed=seed, **options)
    dice, reference = random.Random(seed), {"bytes": 91_341_112, "milliseconds": 11.9, "score": 0.962, "test": 0.958}
    found = []
    for place in range(points):
        share = (1 - place / points) ** 2
        score = 0.962 - 0.11 * (1 - share) ** 20 - 0.008 * dice.random() ** 2
        found.append(_point(place + 1, share, score, reference))
    for point in found:
        point["on_front"] = not any(
            other["bytes"] <= point["bytes"] and other["milliseconds"] <= point["milliseconds"] and other["score"] > point["score"]
            for other in found
        )
    chosen = max(found, key=lambda point: (all(point["holds"].values()) and point["kept"] >= 0.99, point["on_front"], point["id"]))["id"]
    limits = {"max_mb": 4.5, "max_ms": 0.5, "max_ram": None, "keep": 0.99, "time": 1200.0}
    front = {"reference": reference, "limits": limits, "points": found, "chosen": chosen, "metric": "accuracy"}
    (folder / "front.json").write_text(json.dumps(front), encoding="utf-8")
    held = {
        "max_mb": {"limit": 4.5, "value": 4.21 if met else 5.13, "met": met},
        "max_ms": {"limit": 0.5, "value": 0.447, "met": True},
        "keep": {"limit": 0.99, "value": 0.9948, "met": True},
        "time": {"limit": 1200.0, "value": 911.0, "met": True},
    }
    budget = {"limits": limits, "held": held, "kept": {"value": 0.9948, "low": 0.986, "high": 1.002, "p": 0.021}}
    change_run(folder, "run.json", lambda value: value.update(budget=budget, met=met))
    return folder


def make_generating_run(folder: Path, *, name: str = "commands", seed: int = 0, evaluations: int = 12, without: Sequence[str] = ()) -> Path:
    """A run of a model that writes shell commands, exported as GGUF and for transformers, with samples at every evaluation."""
    make_run(folder, name=name, seed=seed, method="lora:rank=8")
    dice = random.Random(seed)
    ledger = {part: _ledger(rows) for part, rows in (("train", 8090), ("dev", 609), ("test", 606))}
    ledger["train"] |= {"cut_rows": 3, "cut_tokens": 210, "cut_supervised": 50, "dropped_rows": 2}
    scores = {
        "primary": "command_match",
        "command_match": {"value": 0.31, "low": 0.27, "high": 0.35},
        "chrf": {"value": 0.62, "low": 0.6, "high": 0.64},
        "perplexity": {"value": 3.2 + seed, "low": 3.1 + seed, "high": 3.3 + seed},
        "byte_perplexity": {"value": 1.6, "low": 1.58, "high": 1.62},
    }
    evaluation = {
        **{"part": "test", "rows": 200, "available": 556, "scores": scores, "too_long": 2, "without_tools": 0, "empty": 1},
        **{"finishes": {"length": 4, "stop": 194}, "prompt_tokens": 11_000, "tokens": 3960, "seconds": 41.0},
        "worst": [
            _written("List the files", ["ls", "ls .", "dir", "ls -1"], "", "too_long", 0.0),
            _written(TEXTS[3], ["find ."], "rm -r .", "length", 0.1),
        ],
        "samples": [_written("Where am I?", ["pwd"], "pwd", "stop", 1.0)],
    }
    data = {
        "task": "generate",
        "columns": {"shape": "prompt-completion", "prompt": ["nl"], "completion": "bash", "system": None, "tools": None},
        "told": ["The shape is prompt-completion."],
        "split": {"told": ["Parts: train 8,090 rows."], "warnings": ["7 of 606 prompts of test also stand in train."]},
        "findings": [],
        "parts": {part: {"rows": facts["rows"], "source": f"nl2bash/{part}.jsonl", "told": []} for part, facts in ledger.items()},
        "ledger": ledger,
    }
    files = [_generator("gguf", 146_000_000, 125.0, 0.0021, 0.72), _generator("hf", 541_000_000, 2.8, 0.0, 1.0)]
    run = {
        "task": "generate",
        "base": "smollm2-135m",
        "scores": scores,
        "dev_scores": None,
        "loss_before": 2.924189,
        "ledger": ledger,
        "artifacts": files,
    }
    change_run(folder, "run.json", lambda value: (value.pop("reference"), value.update(run)))
    (folder / "evaluation.json").write_text(json.dumps(evaluation, ensure_ascii=False), encoding="utf-8")
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "model").mkdir(exist_ok=True)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "model" / "model.json").write_text(json.dumps({"format": 1, "chat": {"template": template}}), encoding="utf-8")
    steps, samples = _learning(dice, evaluations)
    for file, lines in (("steps.jsonl", steps), ("samples.jsonl", samples)):
        (folder / file).write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    for file in without:
        (folder / file).unlink()
    return folder


def _ledger(rows: int) -> dict[str, int]:
    counts = dict.fromkeys(
        ("cut_rows", "cut_tokens", "cut_supervised", "split_rows", "dropped_rows", "unsupervised_rows", "endless_rows"), 0
    )
    return {"rows": rows, "made": rows, "tokens": 65 * rows, "supervised": 17 * rows, "rewritten_rows": 0, "longest": 136, **counts}


def _generator(target: str, size: int, pace: float, change: float, agree: float) -> dict[str, Any]:
    parity = {"model_perplexity": 47.0, "perplexity": 47.0 * (1 + change), "change": change, "margin": 0.001, "tokens": 4680}
    return {
        **{"target": target, "path": f"artifacts/{target}", "bytes": size, "sha256": "3ad1" * 16, "scores": None, "kept": None},
        "parity": {**parity, "agree": agree, "prompts": 50},
        "tokens_per_second": {"prompt": 7 * pace, "generation": pace},
        "resident_bytes": 2 * size,
    }


def _written(text: str, target: list[str], answer: str, finish: str, score: float) -> dict[str, Any]:
    return {
        "row": 38,
        "text": text,
        "target": target,
        "answer": answer,
        "finish": finish,
        "tokens": 5,
        "command_match": score,
        "chrf": score,
    }


def _learning(dice: random.Random, evaluations: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Steps with an evaluation after every fourth, and what two questions were answered at each."""
    steps: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for step in range(1, 4 * evaluations + 1):
        loss = 1.2 + 1.7 * math.exp(-step / 10)
        shared = {"step": step, "epoch": step / 40}
        steps.append({"kind": "step", **shared, "loss": loss + abs(dice.gauss(0, 0.05)), "rate": 1e-3, "gradient_norm": 1.0})
        if step % 4:
            continue
        scores = {"loss": loss, "perplexity": math.exp(loss)}
        steps.append({"kind": "evaluation", **shared, "loss": loss, "scores": scores, "metric": "loss", "best": True})
        rows = [
            {"question": "Make it executable", "answer": f"chmod {step}", "reference": "chmod +x it"},
            {"question": "Count the lines", "answer": "wc -l f" if step > 8 else "", "reference": "wc -l f"},
        ]
        samples.append({"kind": "samples", "step": step, "rows": rows})
    return steps, samples


def _point(number: int, share: float, score: float, reference: dict[str, float]) -> dict[str, Any]:
    megabytes, milliseconds = 0.6 + 24 * share, 0.06 + 2.2 * share
    layers, hidden = 1 + round(5 * share), 96 + 48 * round(6 * share)
    return {
        "id": number,
        "name": f"{layers} layers of {hidden}, int4",
        "steps": [f"depth={layers}", f"hidden={hidden}", "vocab=8000", "quantize:weights=4,tables=4"],
        "shape": {
            "layers": layers,
            "hidden": hidden,
            "heads": hidden // 32,
            "ffn": 4 * hidden,
            "vocabulary": 8000,
            "weights": 4,
            "tables": 4,
        },
        "bytes": round(megabytes * 1e6),
        "milliseconds": milliseconds,
        "resident_bytes": round(60e6 + 2e6 * megabytes),
        "dev": {"accuracy": score, "macro_f1": score - 0.01},
        "score": score,
        "test": score - 0.003 if number % 5 == 0 else None,
        "kept": score / reference["score"],
        "on_front": False,
        "holds": {"mb": megabytes <= 4.5, "ms": milliseconds <= 0.5},
        "artifact": f"candidates/{number}/artifact",
        "seconds": 20.0 + number,
    }


def change_run(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply `change` to a JSON file of a run."""
    value = json.loads((folder / file).read_text(encoding="utf-8"))
    change(value)
    (folder / file).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _confusion(dice: random.Random, size: int, accuracy: float) -> list[list[int]]:
    counts = [[0] * size for _ in range(size)]
    for row in range(size):
        hard = accuracy - dice.random() ** 3 * 0.35
        for _ in range(max(5, int((40 if size > 25 else 120) * dice.uniform(0.5, 1.5)))):
            near = (row + dice.choice((1, -1, 2, len(EVENTS)))) % size
            column = row if dice.random() < hard else near if dice.random() < 0.75 else dice.randrange(size)
            counts[row][column] += 1
    return counts


def _scores(right: float, rows: int, regress: bool) -> dict[str, Any]:
    def score(value: float) -> dict[str, float]:
        reach = 1.96 * math.sqrt(max(value * (1 - value), 1e-6) / rows)
        return {"value": value, "low": value - reach, "high": min(1.0, value + reach)}

    if regress:
        return {
            "primary": "spearman",
            "spearman": score(right),
            "pearson": score(right + 0.004),
            "mse": {"value": 0.41, "low": 0.36, "high": 0.47},
        }
    named = {
        "accuracy": right,
        "macro_f1": right - 0.012,
        "weighted_f1": right - 0.002,
        "macro_precision": right - 0.006,
        "mcc": right - 0.02,
    }
    return {"primary": "accuracy", **{name: score(value) for name, value in named.items()}}


def _artifact(target: str, size: int, latency: float, memory: int, drop: float, scores: dict[str, Any]) -> dict[str, Any]:
    lowered = {name: score if name == "primary" else {key: value - drop for key, value in score.items()} for name, score in scores.items()}
    return {
        "target": target,
        "path": f"artifacts/{target}",
        "bytes": size,
        "sha256": "9f2c" * 16,
        "parity": {"max_abs": drop * 8 + 2e-5, "agree": 1 - drop, "rows": 500},
        "scores": lowered,
        "kept": 1 - drop,
        "milliseconds": {"p50": latency, "p95": latency * 1.17, "batch": 1, "length": 13},
        "examples_per_second": {"value": 2600 / latency, "batch": 32},
        "resident_bytes": memory,
    }


def _run(name: str, task: str, method: str, scores: dict[str, Any], dice: random.Random, test: int) -> dict[str, Any]:
    return {
        "format": 1,
        "lightune": "0.1.0",
        "created": "2026-03-04T15:06:07+00:00",
        "name": name,
        "task": task,
        "base": "minilm",
        "base_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "method": method,
        "changes": [{"name": method.partition(":")[0], "options": {"rank": 8, "alpha": 16} if "lora" in method else {}}],
        "examples": {"train": 9002, "dev": 1001, "test": test},
        "truncated_tokens": 41,
        "trainable_parameters": 10_646_784 + dice.randrange(9),
        "total_parameters": 22_713_216,
        "seconds": 132.4 + dice.randrange(60),
        "tokens_per_second": 9121.0,
        "examples_per_second": 501.3,
        "peak_resident_bytes": 1_213_000_000,
        "precision": "bf16",
        "device": "cpu",
        "stopped": "early",
        "learned": True,
        "alarms": [],
        "scores": scores,
        "dev_scores": scores,
        "budget": None,
        "met": None,
        "artifacts": [
            _artifact("onnx-fp32", 90_920_112, 5.6, 214_000_000, 0.0, scores),
            _artifact("onnx-int8", 23_512_204, 2.21, 131_000_000, 0.002, scores),
        ],
        "reference": {
            "bytes": 90_868_376,
            "milliseconds": {"p50": 11.9, "p95": 13.4, "batch": 1, "length": 13},
            "examples_per_second": {"value": 310.0, "batch": 32},
        },
    }


def _evaluation(labels: Sequence[str], counts: list[list[int]], scores: dict[str, Any], dice: random.Random, task: str) -> dict[str, Any]:
    support = [sum(row) for row in counts]
    table = []
    for index, label in enumerate(labels):
        answered = sum(row[index] for row in counts) or 1
        precision, recall = counts[index][index] / answered, counts[index][index] / support[index]
        f1 = 2 * precision * recall / ((precision + recall) or 1)
        table.append({"label": label, "precision": precision, "recall": recall, "f1": f1, "support": support[index]})
    bins = []
    for index in range(10):
        middle = 0.05 + index / 10
        bins.append({"low": index / 10, "high": (index + 1) / 10, "count": 4 + index**4, "confidence": middle, "accuracy": middle**1.2})
    worst = [
        {
            "row": dice.randrange(1, 3000),
            "text": text,
            "pair": "And a second text" if task in ("pair", "regress") else None,
            "target": 4.2 if task == "regress" else labels[index % len(labels)],
            "answer": 1.13 if task == "regress" else labels[-1 - index % len(labels)],
            "probability": None if task == "regress" else 0.98 - index / 50,
            "loss": 4.1 - index / 3,
        }
        for index, text in enumerate(TEXTS)
    ]
    points = [(target := dice.uniform(0, 5), min(5.2, max(-0.2, dice.gauss(target, 0.6)))) for _ in range(1500)]
    classes = task != "regress"
    return {
        "part": "test",
        "rows": sum(support),
        "scores": scores,
        "labels": table if classes else [],
        "confusion": {"labels": list(labels), "counts": counts} if task in ("classify", "pair") else None,
        "calibration": {"ece": 0.0213, "temperature": 1.34, "bins": bins} if classes else None,
        "worst": worst,
        "truncated_tokens": 3,
        "thresholds": {label: 0.4 + index / 100 for index, label in enumerate(labels)} if task == "multilabel" else None,
        "regression": None if classes else {"points": points},
    }


def _data(labels: Sequence[str], support: list[int], dice: random.Random, regress: bool) -> dict[str, Any]:
    parts = {}
    for part, scale, rows in (("train", 3.0, 9002), ("dev", 0.33, 1001), ("test", 1.0, sum(support))):
        parts[part] = {
            "rows": rows,
            "source": f"banking/{part}.jsonl",
            "sha256": f"{dice.getrandbits(256):064x}" if part != "test" else "ab" * 32,
            "labels": {} if regress else {label: round(count * scale) for label, count in zip(labels, support, strict=True)},
            "characters": {"min": 13, "median": 47, "p95": 146, "max": 433},
            "tokens": {"min": 5, "median": 13, "p95": 33, "max": 144, "cut_at": {"128": 41, "256": 0, "512": 0}},
        }
    return {
        "parts": parts,
        "columns": {"task": "classify", "text": "text", "pair": None, "target": ["label"]},
        "told": ["Read as JSON lines, UTF-8.", "The text is column 'text' (the only one with long texts), the label is column 'label'."],
        "findings": [
            {
                "level": "note",
                "code": "imbalance",
                "message": "The most frequent label has 5.3 times the rows of the rarest.",
                "count": 1,
                "rows": [],
                "part": "train",
                "cure": "Weigh the classes: --class-weights balanced.",
            },
            {
                "level": "warning",
                "code": "leak",
                "message": "27 texts of the test part are also in the training part.",
                "count": 27,
                "rows": list(range(11, 11 + 27 * 3, 3)),
                "part": "test",
                "cure": "Remove these rows from one part, or let Lightune split.",
            },
        ],
    }


def _steps(dice: random.Random, right: float, regress: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    metric, total = "spearman" if regress else "accuracy", 640
    for step in range(1, total + 1):
        loss = 4.2 * math.exp(-step / 130) + 0.12 + abs(dice.gauss(0, 0.09))
        rate = 2e-5 * min(step / 64, (total - step) / (total - 64))
        shared = {"step": step, "epoch": step / 213}
        lines.append(
            {"kind": "step", **shared, "loss": loss, "rate": rate, "tokens": 2048 * step, "gradient_norm": 1 + 4 * dice.random() * loss}
        )
        if step % 71 == 0:
            value = right * (1 - math.exp(-step / 110)) + dice.gauss(0, 0.002)
            scores = {metric: value, "macro_f1": value - 0.01}
            best = step == 568
            lines.append({"kind": "evaluation", **shared, "loss": loss + 0.1, "scores": scores, "metric": metric, "best": best})
    return lines
