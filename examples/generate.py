"""A model that writes: English to a shell command, by LoRA, and an answer of the exported folder.

python examples/generate.py [BASE]    BASE is a model's name or folder, smollm2-135m by default
"""

import random
import sys

import lightune
from lightune.predictors import open_generator
from lightune.runtime.generation import GenerationOptions, Message

base = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
TASKS = {
    "count the lines of {}": "wc -l {}",
    "show the last ten lines of {}": "tail -n 10 {}",
    "how large is {}?": "du -h {}",
    "remove {} if it is there": "rm -f {}",
    "sort {} and leave out what occurs twice": "sort -u {}",
}
FILES = [f"{name}.{kind}" for name in ("notes", "access", "prices", "a", "old") for kind in ("txt", "log", "csv", "md")]

draw = random.Random(0)
rows = [{"nl": asked.format(file), "bash": command.format(file)} for asked, command in TASKS.items() for file in FILES]
draw.shuffle(rows)

run = lightune.fit(rows, "runs/generate", task="generate", model=base, to=("hf",), epochs=2, max_length=128, max_tokens=24, overwrite=True)
scores, ledger = run.record["scores"], run.record["ledger"]["train"]
print(f"{ledger['supervised']} of {ledger['tokens']} tokens were learned; perplexity {scores['perplexity']['value']:.3f}")
print(f"{scores['primary']} {scores[scores['primary']]['value']:.3f}, parity {run.record['artifacts'][0]['parity']['agree']}")

writer = open_generator(run.artifacts / "hf")
questions = [(Message("user", "count the lines of report.tex"),), (Message("user", "how large is photo.png?"),)]
for question, made in zip(questions, writer.generator.generate(questions, GenerationOptions(max_tokens=24)), strict=True):
    print(f"{question[0].content} → {made.text}")
