"""Are the tokens that Lightune learns from the ones that TRL's answer-only loss takes, token for token?

    python benchmarks/mask_parity.py folder TOKENIZER          # the tokenizer of the model smollm2-135m as transformers saves it
    TRL_PYTHON benchmarks/mask_parity.py dump TOKENIZER TRL_OUT DATA...
    python benchmarks/mask_parity.py compare TOKENIZER TRL_OUT DATA... [--out RESULT.json]

`dump` runs in an environment of its own with trl, peft and datasets, where TRL prepares the data: SFTTrainer with prompt and completion in
chat form, completion_only_loss, no truncation. DATA is FILE.jsonl:PROMPT:COMPLETION, of which the first 500 rows are taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROWS = 500
LENGTH = 8192


def rows_of(spec: str) -> list[dict[str, str]]:
    """The first rows of FILE:PROMPT:COMPLETION as prompt and completion."""
    path, prompt, completion = spec.rsplit(":", 2)
    with open(path, encoding="utf-8") as stream:
        rows = [json.loads(line) for line, _ in zip(stream, range(ROWS), strict=False)]
    return [{"prompt": row[prompt], "completion": row[completion]} for row in rows]


def save_tokenizer(folder: str) -> None:
    """Write the tokenizer of smollm2-135m, chat template included, as a folder of transformers."""
    from transformers import AutoTokenizer

    from lightune.sources import resolve_model

    source = resolve_model("smollm2-135m")
    AutoTokenizer.from_pretrained(source.folder, gguf_file=source.file).save_pretrained(folder)


def dump(folder: str, out: str, specs: list[str]) -> None:
    """TRL's token ids and the mask of its loss for every row."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    found: dict[str, Any] = {"versions": {name: version(name) for name in ("trl", "transformers", "tokenizers", "torch")}, "sets": {}}
    for spec in specs:
        chats = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows_of(spec)
        ]
        arguments = SFTConfig(
            tempfile.mkdtemp(), max_length=None, completion_only_loss=True, use_cpu=True, bf16=False, report_to=[], save_strategy="no"
        )
        model = AutoModelForCausalLM.from_config(config)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(chats), processing_class=tokenizer)
        collated = [trainer.data_collator([row]) for row in trainer.train_dataset]
        found["sets"][spec] = [
            {"ids": batch["input_ids"][0].tolist(), "trained": (batch["labels"][0] != -100).tolist()} for batch in collated
        ]
    Path(out).write_text(json.dumps(found))


def compare(folder: str, trl_out: str, specs: list[str]) -> dict[str, Any]:
    """For each data set, how many rows and tokens there are and how many of them differ."""
    from transformers import AutoTokenizer

    from lightune.data import read_conversations
    from lightune.runtime.chat import chat_format
    from lightune.runtime.tokenization import Encoder
    from lightune.supervision import supervise

    theirs = json.loads(Path(trl_out).read_text())
    format, encoder = chat_format(AutoTokenizer.from_pretrained(folder)), Encoder.from_file(Path(folder) / "tokenizer.json", LENGTH)
    sets = {}
    for spec in specs:
        rows, ledger = supervise(format, encoder, read_conversations(rows_of(spec)), max_length=LENGTH)
        pairs = list(zip(rows, theirs["sets"][spec], strict=True))
        sets[Path(spec.rsplit(":", 2)[0]).parent.name] = {
            "rows": len(pairs),
            "tokens": ledger.tokens,
            "supervised": ledger.supervised,
            "rows_with_other_ids": sum(own.ids.tolist() != other["ids"] for own, other in pairs),
            "rows_with_other_mask": sum(own.trained.tolist() != other["trained"] for own, other in pairs),
        }
    return {
        "command": " ".join(["python benchmarks/mask_parity.py compare TOKENIZER TRL_OUT", *specs]),
        "peer": theirs["versions"],
        "sets": sets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["folder", "dump", "compare"])
    parser.add_argument("tokenizer")
    parser.add_argument("trl_out", nargs="?")
    parser.add_argument("data", nargs="*")
    parser.add_argument("--out", default="benchmarks/results/mask_parity.json")
    args = parser.parse_args()
    if args.verb == "folder":
        save_tokenizer(args.tokenizer)
    elif args.verb == "dump":
        dump(args.tokenizer, args.trl_out, args.data)
    else:
        result = compare(args.tokenizer, args.trl_out, args.data)
        Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["sets"], indent=2))
        sys.exit(any(each["rows_with_other_ids"] or each["rows_with_other_mask"] for each in result["sets"].values()))


if __name__ == "__main__":
    main()
