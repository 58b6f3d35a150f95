"""The packages that Lightune uses: (name, the extra that brings it, what it is for)."""

from __future__ import annotations

NEEDED = (
    ("numpy", "", "arrays"),
    ("onnxruntime", "", "running ONNX artefacts"),
    ("tokenizers", "", "texts to tokens"),
    ("cyclopts", "", "this command line"),
    ("scikit-learn", "metrics", "evaluate: accuracy, F1 and the other metrics"),
    ("scipy", "metrics", "evaluate: correlations of regressions"),
    ("sacrebleu", "metrics", "BLEU and chrF of generated text"),
    ("rouge-score", "metrics", "ROUGE of generated text"),
    ("torch", "train", "fit, export, and predicting with an unexported model"),
    ("transformers", "train", "fit: loading base models"),
    ("accelerate", "train", "fit: several processes, GPUs and nodes"),
    ("datasets", "train", "hub data sets and saved datasets folders"),
    ("pyarrow", "train", "Parquet and Arrow files, files larger than memory"),
    ("pandas", "train", "data frames"),
    ("onnx", "train", "export to ONNX"),
    ("jinja2", "train", "reports"),
    ("peft", "peft", "methods of PEFT: --method peft:NAME"),
    ("gguf", "gguf", "base models in GGUF files, export to GGUF"),
    ("xllamacpp", "generate", "generating from GGUF files"),
    ("llguidance", "generate", "answers that fit a JSON schema"),
    ("fastapi", "serve", "serve: HTTP"),
    ("uvicorn", "serve", "serve: the server"),
    ("prometheus-client", "serve", "serve: metrics"),
    ("lm-eval", "harness", "lm_eval's tasks"),
    ("zstandard", "zst", ".zst files"),
)
