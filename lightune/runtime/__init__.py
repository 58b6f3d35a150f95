"""Predict without torch: numpy, onnxruntime and tokenizers are enough.

from lightune.runtime import load

load("artifact").predict(["Where is Lugano?"])
"""

from lightune.runtime.predictor import Predictor, load

__all__ = ["Predictor", "load"]
