"""Any number of labels for a text: what a message after a storm reports or asks for.

python examples/multilabel.py [BASE]    BASE is a model's name or folder, minilm by default
"""

import itertools
import random
import sys

import lightune
from lightune.runtime import load

base = sys.argv[1] if len(sys.argv) > 1 else "minilm"
PLACES = ("at the school", "by the bridge", "in the north", "near the market", "on the hill", "at the port")
REPORTS = {
    "water": ("the taps are dry", "we have no clean water", "the wells are dirty"),
    "food": ("nothing to eat since Monday", "the bread is gone", "children are hungry"),
    "shelter": ("the roof is gone", "families sleep outside", "the tents are torn"),
    "power": ("the lights are out", "the cables are down", "no electricity"),
}

draw = random.Random(0)
CALM = ("All is well", "We are safe", "Nothing is needed", "Thanks, we have all we need")
rows = [{"message": f"{calm} {place}.", "about": []} for calm in CALM for place in PLACES]
for place, count in itertools.product(PLACES, (1, 1, 1, 2, 2, 2, 2, 3)):
    for _ in range(5):
        chosen = draw.sample(sorted(REPORTS), count)
        text = " and ".join(draw.choice(REPORTS[name]) for name in chosen)
        rows.append({"message": f"{text[0].upper()}{text[1:]} {place}.", "about": sorted(chosen)})

run = lightune.fit(rows, "runs/multilabel", text="message", label="about", task="multilabel", model=base, epochs=4, overwrite=True)
scores = run.record["scores"]
print(f"micro F1 {scores['micro_f1']['value']:.3f}, exact match {scores['exact_match']['value']:.3f}")

predictor = load(run.artifacts / "onnx-int8")
messages = ["No water and no lights at the station.", "The roof of our house flew away.", "Thank you, we are fine."]
for message, answer in zip(messages, predictor.predict(messages), strict=True):
    print(f"{', '.join(answer['labels']) or '(none)':20} {message}")
print("thresholds:", dict(zip(predictor.answers.labels, predictor.answers.thresholds or (), strict=False)))
