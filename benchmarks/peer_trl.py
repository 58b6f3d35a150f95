"""The peer's side of benchmarks/generation.py: TRL's SFTTrainer with PEFT's LoRA, on rows in the order in which they stand.

Usage: python benchmarks/peer_trl.py MODEL_DIR TRAIN.jsonl OUT_DIR [--steps N] [--batch N] [--rate X] [--length N] [--checkpointing]
TRAIN.jsonl holds prompt and completion. The rate rises over a share of the steps and falls linearly, as Lightune's does: its first step
already learns, where transformers' own schedule begins with a rate of 0. No weight decay, no dropout, loss of the answers' tokens alone.
Needs: torch transformers peft trl datasets. Writes the adapter into OUT_DIR and prints one JSON line: losses of the steps, seconds, tokens
a second over all steps, and peak resident memory in bytes.
"""

import argparse
import json
import math
import resource
import tempfile
import time

import torch
from datasets import load_dataset
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("model"), parser.add_argument("data"), parser.add_argument("out")
parser.add_argument("--steps", type=int, default=100), parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--rate", type=float, default=1e-3), parser.add_argument("--warmup", type=float, default=0.1)
parser.add_argument("--rank", type=int, default=8), parser.add_argument("--alpha", type=float, default=16.0)
parser.add_argument("--length", type=int, default=512), parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
parser.add_argument("--threads", type=int), parser.add_argument("--checkpointing", action="store_true")
args = parser.parse_args()
HALF = args.precision == "bf16"


class Clock(TrainerCallback):
    """When the training began and ended, and the tokens that it read."""

    def on_train_begin(self, *_, **__):
        self.begin, self.tokens = time.perf_counter(), 0

    def on_train_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.begin


def read_rows():
    """Prompt and completion as conversations, which go through the chat template."""
    rows = load_dataset("json", data_files=args.data, split="train")
    return rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        },
        remove_columns=rows.column_names,
    )


def make_trainer(clock):
    options = SFTConfig(
        tempfile.mkdtemp(), max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=args.rate, weight_decay=0.0,
        bf16=HALF, use_cpu=not torch.cuda.is_available(), seed=args.seed, max_length=args.length, completion_only_loss=True, train_sampling_strategy="sequential",
        gradient_checkpointing=args.checkpointing, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16 if HALF else torch.float32),
        args=options,
        train_dataset=read_rows(),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=args.rank, lora_alpha=args.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    warmup = math.ceil(args.warmup * args.steps)
    share = lambda step: (step + 1) / warmup if step < warmup else (args.steps - step) / max(args.steps - warmup, 1)
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), share)
    collate = trainer.data_collator

    def counted(rows):
        batch = collate(rows)
        clock.tokens += int(batch["attention_mask"].sum())
        return batch

    trainer.data_collator = counted
    return trainer


if args.threads:
    torch.set_num_threads(args.threads)
clock = Clock()
trainer = make_trainer(clock)
trainer.train()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
trainer.model.save_pretrained(args.out)
print(
    json.dumps(
        {
            "peer": "trl+peft", "steps": trainer.state.global_step, "seconds": round(clock.seconds, 2), "tokens": clock.tokens,
            "tokens_per_second": round(clock.tokens / clock.seconds, 1), "peak_resident_bytes": peak,
            "trainable_parameters": sum(item.numel() for item in trainer.model.parameters() if item.requires_grad),
            "device": trainer.args.device.type,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        }
    )
)  # fmt: skip
