"""A number for a text: how many of five stars a hotel review is worth.

python examples/regress.py [BASE]    BASE is a model's name or folder, minilm by default
"""

import random
import sys

import lightune
from lightune.runtime import load

base = sys.argv[1] if len(sys.argv) > 1 else "minilm"
PARTS = ("room", "breakfast", "bed", "view", "staff", "pool", "bathroom", "location")
JUDGEMENTS = {
    "was a disgrace": -1.0,
    "was dirty": -0.8,
    "was a disappointment": -0.6,
    "could be better": -0.3,
    "was fine": 0.1,
    "was good": 0.4,
    "was very good": 0.7,
    "was wonderful": 1.0,
}

draw = random.Random(0)
rows = []
for _ in range(360):
    chosen = draw.choices(sorted(JUDGEMENTS), k=2)
    sentences = [f"The {part} {words}." for part, words in zip(draw.sample(PARTS, 2), chosen, strict=True)]
    stars = 3 + sum(JUDGEMENTS[words] for words in chosen) + draw.uniform(-0.2, 0.2)
    rows.append({"review": " ".join(sentences), "stars": round(stars, 1)})

run = lightune.fit(rows, "runs/regress", task="regress", model=base, epochs=3, overwrite=True)
scores = run.record["scores"]
print(f"Pearson {scores['pearson']['value']:.3f}, mean absolute error {scores['mae']['value']:.2f} stars")

texts = ["The sauna was wonderful. The bar was very good.", "The lift was dirty. The carpet was a disgrace."]
for text, answer in zip(texts, load(run.artifacts / "onnx-int8").predict(texts), strict=True):
    print(f"{answer['value']:.1f}  {text}")
