"""The peer's side of the accuracy tables: transformers' Trainer on the four text tasks, at its usual settings.

Usage: python benchmarks/peer_trainer.py TASK MODEL_DIR TRAIN TEST [--epochs N] [--lr X] [--limit N] [--length N]
TASK is classify, pair, multilabel or regress; TRAIN and TEST are JSONL, or one CSV with a split column for multilabel.
Needs: torch transformers accelerate scikit-learn scipy. Prints one JSON line with the scores, seconds and examples per second.
"""

import argparse
import csv
import json
import random
import resource
import tempfile
import time

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("task", choices=["classify", "pair", "multilabel", "regress"])
parser.add_argument("model"), parser.add_argument("train"), parser.add_argument("test")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--lr", type=float, default=1e-4)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--limit", type=int, default=0)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--precision", default="fp32", choices=["bf16", "fp32"])
args = parser.parse_args()


def read(path, part):
    if path.endswith(".csv"):
        return [row for row in csv.DictReader(open(path, encoding="utf-8-sig")) if row["split"] == part]
    return [json.loads(line) for line in open(path, encoding="utf-8")]


train, test = read(args.train, "train"), read(args.test, "test")
random.Random(args.seed).shuffle(train)
train = train[: args.limit or None]
tokenizer = AutoTokenizer.from_pretrained(args.model)
if args.task == "multilabel":
    names = list(train[0])[list(train[0]).index("related") :]
    target = lambda row: [float(row[name] == "1") for name in names]
elif args.task == "regress":
    names, target = ["score"], lambda row: float(row["score"])
else:
    names = sorted({row["label"] for row in train})
    target = lambda row: names.index(row["label"])


def encode(rows):
    texts = lambda row: (row["sentence1"], row["sentence2"]) if "sentence1" in row else (row.get("text", row.get("message")),)
    return [{**tokenizer(*texts(row), truncation=True, max_length=args.length), "labels": target(row)} for row in rows]


def score(prediction):
    logits, gold = prediction.predictions, prediction.label_ids
    if args.task == "regress":
        return {"pearson": float(pearsonr(logits[:, 0], gold)[0]), "spearman": float(spearmanr(logits[:, 0], gold)[0])}
    if args.task == "multilabel":
        return {
            "micro_f1": f1_score(gold, logits > 0, average="micro", zero_division=0),
            "macro_f1": f1_score(gold, logits > 0, average="macro", zero_division=0),
        }
    answers = logits.argmax(-1)
    return {"accuracy": accuracy_score(gold, answers), "macro_f1": f1_score(gold, answers, average="macro", zero_division=0)}


kind = {"multilabel": "multi_label_classification", "regress": "regression"}.get(args.task, "single_label_classification")
model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names), problem_type=kind)
trainer = Trainer(
    model,
    TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=64,
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=args.precision == "bf16",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=10_000,
        disable_tqdm=True,
        train_sampling_strategy="group_by_length",
        seed=args.seed,
    ),
    train_dataset=encode(train),
    eval_dataset=encode(test),
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=score,
)
start = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - start
scores = {name.removeprefix("eval_"): round(float(value), 4) for name, value in trainer.evaluate().items()}
known = ("accuracy", "macro_f1", "micro_f1", "pearson", "spearman", "loss")
print(
    json.dumps(
        {
            "peer": f"transformers Trainer full {args.precision} group_by_length",
            "task": args.task,
            "train": args.train,
            "epochs": args.epochs,
            "lr": args.lr,
            "scores": {name: scores[name] for name in known if name in scores},
            "seconds": round(seconds, 1),
            "examples_per_second": round(len(train) * args.epochs / seconds, 1),
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )
)
