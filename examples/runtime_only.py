"""Predict without torch: an artefact folder needs `pip install lightune` alone. Run examples/classify.py first, or name a folder.

python examples/runtime_only.py [ARTEFACT]
"""

import sys
import time

from lightune.errors import LightuneError
from lightune.runtime import load

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/classify/artifacts/onnx-int8"
try:
    predictor = load(folder, threads=1)  # every file is compared with its sha256 first
except LightuneError as error:
    sys.exit(f"{error} (examples/classify.py makes one)")

print(f"{predictor.name}, {predictor.precision}, {len(predictor.answers.labels)} labels; torch loaded: {'torch' in sys.modules}")
texts = [f"Table {number}: the soup took an hour and the bill was wrong." for number in range(200)]
predictor.predict(texts[:1])

begin = time.perf_counter()
answers = predictor.predict(texts)
print(f"{len(texts) / (time.perf_counter() - begin):.0f} texts a second on one thread; the first: {answers[0]['label']}")

for answer in predictor.stream(iter(texts[:3])):  # any number of texts, a bounded number in memory
    print(answer["label"], round(answer["probability"], 3))
