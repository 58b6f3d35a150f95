"""One label for a text: what a restaurant review is about.

python examples/classify.py [BASE]    BASE is a model's name or folder, minilm by default
"""

import sys
from pathlib import Path

import lightune
from lightune.runtime import load

base = sys.argv[1] if len(sys.argv) > 1 else "minilm"
reviews = Path(__file__).with_name("reviews.csv")

run = lightune.fit(reviews, "runs/classify", model=base, epochs=2, overwrite=True)
scores = run.record["scores"]
accuracy = scores["accuracy"]
print(f"accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})")

artefact = run.artifacts / "onnx-int8"
texts = ["The noodles were cold.", "We were charged for water.", "Our waiter remembered us."]
for text, answer in zip(texts, load(artefact).predict(texts), strict=True):
    print(f"{answer['label']:8} {answer['probability']:.2f}  {text}")
print(f"report: {run.folder / 'report.html'}")
