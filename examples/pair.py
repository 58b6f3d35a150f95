"""One label for two texts: whether two questions to a shop ask the same.

python examples/pair.py [BASE]    BASE is a model's name or folder, minilm by default
"""

import itertools
import random
import sys

import lightune
from lightune.runtime import load

base = sys.argv[1] if len(sys.argv) > 1 else "minilm"
THINGS = ("jacket", "lamp", "kettle", "book", "chair", "phone", "bag", "clock")
QUESTIONS = {
    "where": ("Where is my {}?", "Has the {} been sent yet?", "When will the {} arrive?"),
    "return": ("How do I send the {} back?", "Can I return this {}?", "I want a refund for the {}."),
    "price": ("What does the {} cost?", "How much is the {}?", "Is the {} on sale?"),
    "broken": ("The {} is broken.", "My {} does not work.", "The {} arrived damaged."),
}

draw = random.Random(0)
rows = []
for thing in THINGS:
    asked = [(meaning, form.format(thing)) for meaning, forms in QUESTIONS.items() for form in forms]
    for (meaning, first), (other, second) in itertools.combinations(asked, 2):
        if meaning == other or draw.random() < 0.25:
            rows.append({"question1": first, "question2": second, "same": "yes" if meaning == other else "no"})

run = lightune.fit(rows, "runs/pair", label="same", model=base, epochs=6, overwrite=True)
scores = run.record["scores"]
print(f"accuracy {scores['accuracy']['value']:.3f}, macro F1 {scores['macro_f1']['value']:.3f}")

questions = [("Where is my tent?", "When will the tent arrive?"), ("Where is my tent?", "How much is the tent?")]
for (first, second), answer in zip(questions, load(run.artifacts / "onnx-int8").predict(questions), strict=True):
    print(f"{answer['label']:4} {answer['probability']:.2f}  {first} | {second}")
